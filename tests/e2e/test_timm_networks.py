"""A folder of timm's imported, its head trained on frozen features, then all of it, and scored."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_examples_run import write_data

import modelgit as package
from modelgit.porcelain.importing import import_model
from modelgit.porcelain.records import read_record
from modelgit.porcelain.reporting.evaluating import evaluate
from modelgit.repo.repository import Repository

try:
    import timm
except (ImportError, RuntimeError) as error:  # a torchvision of another build than PyTorch raises RuntimeError
    pytest.skip(f"timm cannot be imported: {error}", allow_module_level=True)


def test_a_folder_is_imported_trained_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data.zip", {"dark": 20, "light": 150}, 0)
    tiny = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=10, **tiny)
    (tmp_path / "model").mkdir()
    save_file(theirs.state_dict(), tmp_path / "model" / "model.safetensors")
    config = {
        "architecture": "resnet18",
        "num_classes": 10,
        "model_args": tiny,
        "pretrained_cfg": theirs.pretrained_cfg,
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))

    repo = Repository.init(tmp_path / "repo")
    import_model(repo, tmp_path / "model")
    record = read_record(repo, "HEAD")
    assert record is not None and record.architecture == "timm"
    data = {"path": "data.zip", "image_size": 64}
    mine = package.Repository("repo")
    probed = mine.train({"kind": "probe", "threads": 1, "data": data})
    assert (probed.changed, probed.same) == (2, len(theirs.state_dict()) - 2)
    tuned = mine.train({"threads": 1, "data": data, "train": {"steps": 30, "lr": 0.01, "views": 1}})
    assert mine.load("HEAD").keys() == theirs.state_dict().keys()
    frozen = mine.train({"threads": 1, "data": data, "train": {"steps": 3, "lr": 0.01, "views": 1, "frozen_stages": 1}})
    assert (tuned.changed > 20, frozen.changed) == (True, 2)
    assert evaluate(repo, "HEAD", "data.zip")["accuracy"] > 0.9
