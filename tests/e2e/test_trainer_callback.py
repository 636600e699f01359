"""The callback in the real `Trainer` of transformers: a very small BERT, four steps on the CPU."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoder import encoder_files

import modelgit
from modelgit.errors import FormatError, RepositoryError, UsageError
from modelgit.integrations.transformers import ModelgitCallback
from modelgit.porcelain.records import read_record
from modelgit.repo.repository import Repository

transformers = pytest.importorskip("transformers")
ROWS = [{"input_ids": [2, 4 + i % 9, 3], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(16)]


def network() -> Any:
    torch.manual_seed(0)
    table = json.loads(encoder_files()["config.json"])
    del table["model_type"]
    return transformers.BertForSequenceClassification(transformers.BertConfig(**table, num_labels=2))


def trainer(model: Any, callback: ModelgitCallback, folder: Path, **more: Any) -> Any:
    said = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, **more}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        run_name="tiny",
        **said,
    )
    return transformers.Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS[:4], callbacks=[callback])


def test_each_save_becomes_a_commit(tmp_path: Path) -> None:
    callback = ModelgitCallback(tmp_path / "models", message="{run} at step {step}")
    model = network()
    trainer(model, callback, tmp_path / "out").train()

    repo = Repository.open(tmp_path / "models")
    last, first = repo.log(["HEAD"])
    assert callback.commits == [first.commit, last.commit]
    assert [entry.subject for entry in (first, last)] == ["tiny at step 2", "tiny at step 4"]
    assert last.trailers["Training-Step"] == ["4"] and last.trailers["Training-Epoch"] == ["1"]
    assert [row.partition("=")[0] for row in last.trailers["Metric"]] == [
        "eval_loss",
        "grad_norm",
        "learning_rate",
        "loss",
    ]
    weights = modelgit.Repository(tmp_path / "models").load("main")
    state = model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], value) for name, value in state.items())
    record = read_record(repo, "HEAD")
    assert record is not None and record.details["seed"] == 42
    assert not [path for path in repo.tree(last.commit) if path.endswith((".pt", ".pth", ".bin"))]


def test_of_a_peft_model_the_adapter_is_committed(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    callback = ModelgitCallback(tmp_path / "models", branch="lora")
    model = peft.get_peft_model(network(), config)
    trainer(model, callback, tmp_path / "out").train()

    repo = Repository.open(tmp_path / "models")
    assert repo.branch() == "lora" and len(callback.commits) == 2
    tree = repo.tree(callback.commits[-1])
    assert "adapter_config.json" in tree and "model.safetensors" not in tree
    again = peft.PeftModel.from_pretrained(network(), str(tmp_path / "models"))
    expected = peft.get_peft_model_state_dict(model)
    found = peft.get_peft_model_state_dict(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def block(callback: ModelgitCallback) -> None:
    """Puts something in the way of the next commit: a file of its user's own."""
    (callback.repository / "config.json").write_text("mine")


def test_a_commit_that_fails_is_a_warning_and_training_goes_on(tmp_path: Path) -> None:
    callback = ModelgitCallback(tmp_path / "models")
    block(callback)
    run = trainer(network(), callback, tmp_path / "out", eval_strategy="no")
    with pytest.warns(RuntimeWarning, match="not committed") as told:
        run.train()
    assert run.state.global_step == 4 and callback.commits == []
    messages = [str(warning.message) for warning in told if "modelgit" in str(warning.message)]
    assert len(messages) == 3
    assert messages[0].startswith("modelgit: the checkpoint of step 2 was not committed: ")
    assert "2 checkpoints were not committed, those of steps 2, 4" in messages[2]
    assert (tmp_path / "models" / "config.json").read_text() == "mine"


def test_strict_ends_the_training_with_the_error(tmp_path: Path) -> None:
    callback = ModelgitCallback(tmp_path / "models", strict=True)
    block(callback)
    run = trainer(network(), callback, tmp_path / "out", eval_strategy="no")
    with pytest.raises((RepositoryError, FormatError), match="config"):
        run.train()
    assert run.state.global_step == 2


def test_a_training_that_saves_nothing_is_told_of(tmp_path: Path) -> None:
    callback = ModelgitCallback(tmp_path / "models")
    with pytest.warns(UserWarning, match="nothing will be saved"):
        trainer(network(), callback, tmp_path / "out", save_strategy="no", eval_strategy="no").train()


def test_mistakes_are_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'steps'"):
        ModelgitCallback(tmp_path / "models", message="{steps}")
    with pytest.raises(UsageError, match="may not be a branch's name"):
        ModelgitCallback(tmp_path / "models", branch="two words")
    assert not (tmp_path / "models").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="cannot make a repository"):
        ModelgitCallback(tmp_path / "file")


def test_the_howto_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "howto" / "integrations.md").read_text()
    page = page.partition("## The `Trainer` of Lightning")[0]
    blocks = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    assert len(blocks) == 2
    scope: dict[str, Any] = {"model": network(), "rows": ROWS}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for block_ in blocks:
            exec(compile(block_, "howto", "exec"), scope)
    assert len(scope["callback"].commits) == 2
