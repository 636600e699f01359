"""Folders of transformers imported, trained, committed and exported: the library reads what comes out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_encoder import encoder_files, picture_files

from modelgit.porcelain.importing import import_model
from modelgit.porcelain.scores import known_model, workbench
from modelgit.porcelain.sharing import export
from modelgit.porcelain.tensors import load_state
from modelgit.porcelain.training.adapting import state_at
from modelgit.porcelain.training.running import commit_result, train
from modelgit.porcelain.training.values import TrainRequest
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.train.choices import Lora
from modelgit.train.config import Columns, DataConfig, FineTune
from modelgit.train.features import run_stages
from modelgit.train.task import loaded, score

CONFIG = FineTune(steps=4, lr=0.01, batch=8, frozen_stages=2, views=1, warmup_steps=1)
TEXTS = ["a very good film", "the day is bad"]


def imported(place: Path, kind: str, files: dict[str, bytes]) -> Repository:
    """Returns a repository that holds the folder that the library itself writes."""
    import transformers

    folder, model = place / "model", getattr(transformers, kind)
    torch.manual_seed(0)
    model(model.config_class.from_dict(json.loads(files["config.json"]))).save_pretrained(folder)
    for path in files.keys() - {"config.json"}:
        (folder / path).write_bytes(files[path])
    repo = Repository.init(place / "repo")
    import_model(repo, folder)
    return repo


def trained(repo: Repository, data: DataConfig, config: FineTune) -> tuple[str, float]:
    """Returns the commit of a training, and what it scored on validation."""
    asked = TrainRequest("", "train", "", "transformers", repo.resolve("HEAD"), None, data, config)
    result = train(repo, workbench(repo, "cpu"), asked)
    return commit_result(repo, asked, result), result.scores.val_accuracy


def features_of(repo: Repository, commit: str, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what the network of a version reads, and its features."""
    model = known_model(repo, commit)
    network = loaded(workbench(repo, "cpu"), model.design, load_state(weights_of(repo, commit)), len(model.classes))
    x = network.prepare(inputs, "text" if isinstance(inputs, list) else "images")
    with torch.no_grad():
        return x, run_stages(network, x, 0, None)


def test_a_network_of_pictures_comes_out_as_it_went_in(tmp_path: Path, make_zip: Callable[..., Path]) -> None:
    from transformers import AutoModel

    repo = imported(tmp_path, "ViTForImageClassification", picture_files(num_labels=3))
    data = DataConfig(str(make_zip(count=6)), image_size=32)
    commit, _ = trained(repo, data, CONFIG)
    out = tmp_path / "out"
    export(repo, commit, out)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[3] for name in changed if "encoder.layer" in name} == {"1", "2"}
    assert {"vit.layernorm.weight", "classifier.weight"} <= changed and "vit.embeddings.cls_token" not in changed
    x, found = features_of(repo, commit, torch.full((2, 3, 32, 32), 90, dtype=torch.uint8))
    with torch.no_grad():
        said = AutoModel.from_pretrained(out).eval()(pixel_values=x).last_hidden_state[:, 0]
    assert torch.allclose(found, said, atol=1e-6)


def test_a_decoder_of_texts_and_its_adapter(tmp_path: Path) -> None:
    from transformers import AutoModel

    repo = imported(tmp_path, "GPT2LMHeadModel", encoder_files("gpt2"))
    rows = [f"the {noun} is {word},{word}" for noun in ("day", "film") for word in ("bad", "good") for _ in range(10)]
    table = tmp_path / "rows.csv"
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    data = DataConfig(str(table), columns=Columns(input="text", label="label"))
    commit, _ = trained(repo, data, CONFIG)
    export(repo, commit, tmp_path / "out")
    x, found = features_of(repo, commit, TEXTS)
    mask = x.ne(0).long()
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(tmp_path / "out").eval()(input_ids=x.long() - mask, attention_mask=mask)
    assert torch.allclose(found, hidden.last_hidden_state[torch.arange(2), mask.sum(1) - 1], atol=1e-6)

    adapter, accuracy = trained(repo, data, replace(CONFIG, lora=Lora(2, 4.0, ("c_attn", "c_proj"))))
    blob = repo.version(adapter).files["adapter_config.json"]
    told = json.loads(repo.read_blob(blob))
    assert told["fan_in_fan_out"] is True and "transformer.h.1.attn.c_attn" in told["target_modules"]
    changed = state_at(repo, adapter)
    assert score(workbench(repo, "cpu"), changed, known_model(repo, adapter), data).val_accuracy == accuracy
