"""The callback in the real `Trainer` of Lightning: a linear model, four steps on the CPU."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import modelgit
from modelgit.errors import FormatError, RepositoryError, UsageError
from modelgit.porcelain.records import read_record
from modelgit.repo.repository import Repository

lightning: Any = pytest.importorskip("pytorch_lightning")
from modelgit.integrations.lightning import LightningCallback  # noqa: E402  # for the package imported above

ROWS = torch.utils.data.TensorDataset(torch.arange(16.0)[:, None], torch.arange(16.0)[:, None])


class Line(lightning.LightningModule):  # type: ignore[misc]
    """y = a x + b, with something in its state dict that is no tensor if `odd`."""

    def __init__(self, odd: bool = False) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1)
        self.odd = odd

    def training_step(self, batch: Any, _number: int) -> torch.Tensor:
        loss: torch.Tensor = (self.model(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)

    def get_extra_state(self) -> object:
        return {"an": "object"} if self.odd else torch.zeros(1)

    def set_extra_state(self, state: object) -> None:
        """Takes it back."""


def trainer(callback: LightningCallback, folder: Path, **said: Any) -> Any:
    saver = lightning.callbacks.ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, **said)
    usual = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    usual |= {"default_root_dir": folder, "log_every_n_steps": 1}
    return lightning.Trainer(max_steps=4, callbacks=[saver, callback], **usual)


def fit(callback: LightningCallback, folder: Path, module: Line | None = None, **said: Any) -> Line:
    torch.manual_seed(0)
    module = module or Line()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(num_workers|GPU available|LeafSpec|litlogger).*")
        trainer(callback, folder, **said).fit(module, torch.utils.data.DataLoader(ROWS, batch_size=4))
    return module


def test_each_save_becomes_a_commit(tmp_path: Path) -> None:
    callback = LightningCallback(tmp_path / "models", message="{run} at step {step}")
    module = fit(callback, tmp_path / "out", save_last=True)  # which saves step 4 twice
    repo = Repository.open(tmp_path / "models")
    last, first = repo.log(["HEAD"])
    assert callback.commits == [first.commit, last.commit]
    assert [entry.subject for entry in (first, last)] == ["Line at step 2", "Line at step 4"]
    assert (last.trailers["Training-Step"], last.trailers["Training-Epoch"]) == (["4"], ["0"])
    assert [row.partition("=")[0] for row in last.trailers["Metric"]] == ["loss"]
    weights, state = modelgit.Repository(tmp_path / "models").load("main"), module.state_dict()
    assert weights.keys() == state.keys() >= {"model.weight", "model.bias"}
    assert all(torch.equal(weights[name], value) for name, value in state.items())
    assert not torch.equal(
        modelgit.Repository(tmp_path / "models").load(first.commit)["model.bias"], weights["model.bias"]
    )
    record = read_record(repo, "HEAD")
    assert record is not None and (record.details["module"], record.details["steps"]) == ("Line", 4)
    saved = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["model.bias"], weights["model.bias"])


def test_a_commit_that_fails_is_a_warning_and_training_goes_on(tmp_path: Path) -> None:
    callback = LightningCallback(tmp_path / "models")
    with pytest.warns(RuntimeWarning, match="not committed") as told:
        fit(callback, tmp_path / "out", Line(odd=True))
    assert callback.commits == [] and callback.failed == [2, 4]
    messages = [str(warning.message) for warning in told if "modelgit" in str(warning.message)]
    assert (
        "step 2 was not committed: the state dict: expected tensors by name, got '_extra_state' is a dict"
        in messages[0]
    )
    assert "2 checkpoints were not committed, those of steps 2, 4; what was saved is in" in messages[2]
    assert len(list((tmp_path / "out").glob("*.ckpt"))) == 2
    with pytest.raises(FormatError, match="expected tensors by name"):
        fit(LightningCallback(tmp_path / "models", strict=True), tmp_path / "strict", Line(odd=True))


def test_a_training_that_tells_of_no_checkpoint_is_told_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="save_weights_only is set: no checkpoint will be committed"):
        fit(LightningCallback(tmp_path / "models"), tmp_path / "out", save_weights_only=True)


def test_mistakes_are_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'steps'"):
        LightningCallback(tmp_path / "models", message="{steps}")
    with pytest.raises(UsageError, match="may not be a branch's name"):
        LightningCallback(tmp_path / "models", branch="two words")
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="cannot make a repository"):
        LightningCallback(tmp_path / "file")


def test_the_howto_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "howto" / "integrations.md").read_text()
    block = page.partition("## The `Trainer` of Lightning")[2].split("```python\n")[1].partition("```")[0]
    scope: dict[str, Any] = {"module": Line(), "loader": torch.utils.data.DataLoader(ROWS, batch_size=4)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block, "howto", "exec"), scope)
    assert len(scope["callback"].commits) == 2
