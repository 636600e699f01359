"""A Hugging Face folder imported, fine-tuned on texts behind frozen stages, and scored; its small files are kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_encoder import encoder_files

from modelgit.errors import DataError
from modelgit.porcelain.importing import import_model
from modelgit.porcelain.records import read_record
from modelgit.porcelain.scores import known_model, workbench
from modelgit.porcelain.tensors import load_state
from modelgit.porcelain.training.adapting import state_at
from modelgit.porcelain.training.running import commit_result, train
from modelgit.porcelain.training.values import TrainRequest
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.train.choices import Lora
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.splits import split
from modelgit.train.networks.network import Design
from modelgit.train.networks.registry import build_network
from modelgit.train.task import Workbench, score

COUNT = 40
CONFIG = FineTune(steps=30, lr=0.003, batch=16, frozen_stages=2, warmup_steps=2)


def texts() -> Dataset:
    """Short judgements in two domains."""
    rows = [f"the {noun} is {'very ' * (i % 3)}{word}" for i in range(COUNT) for noun, word in PAIRS]
    labels = np.array([0, 1, 0, 1] * COUNT, np.int64)
    domains = np.array([0, 0, 1, 1] * COUNT, np.int64)
    names = tuple(f"{i}" for i in range(len(rows)))
    read = lambda indices: [rows[i] for i in indices]  # noqa: E731
    return Dataset("judgements", "text", ("bad", "good"), ("days", "films"), labels, domains, names, "0" * 64, (), read)


PAIRS = [("day", "bad"), ("day", "good"), ("film", "bad"), ("film", "good")]
DATA = DataConfig("judgements")


def bench_with(repo: Repository) -> Workbench:
    bench, dataset = workbench(repo, "cpu"), texts()
    bench._datasets[DATA] = dataset, split(dataset, DATA)
    return bench


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    folder, files = tmp_path / "model", encoder_files()
    folder.mkdir()
    for path, data in files.items():
        (folder / path).write_bytes(data)
    draws = torch.Generator().manual_seed(0)
    own = build_network(Design("transformers", files), 2).state_dict()
    state = {n: 0.3 * torch.randn(t.shape, generator=draws) for n, t in own.items() if not n.startswith("classifier")}
    state = {n: t + ("LayerNorm.weight" in n) for n, t in state.items()}
    state = {n: t.half() if "word_embeddings" in n else t for n, t in state.items()}
    save_file({**state, "embeddings.position_ids": torch.arange(12)[None]}, folder / "model.safetensors")
    made = Repository.init(tmp_path / "repo")
    import_model(made, folder)
    return made


def request(repo: Repository, config: FineTune = CONFIG, kind: str = "train") -> TrainRequest:
    start = repo.resolve("HEAD")
    return TrainRequest("", "probe" if kind == "probe" else "train", "", "transformers", start, None, DATA, config)


def test_an_imported_folder_is_fine_tuned_and_scored(repo: Repository) -> None:
    record = read_record(repo, "HEAD")
    assert record is not None and record.architecture == "transformers"
    bench = bench_with(repo)
    asked = request(repo)
    result = train(repo, bench, asked)
    commit = commit_result(repo, asked, result)
    before, after = load_state(weights_of(repo, "HEAD")), load_state(weights_of(repo, commit))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("encoder.layer.1.", "encoder.layer.2.")) for name in changed)
    assert {name: t.dtype for name, t in before.items()} == {name: after[name].dtype for name in before}
    assert set(after) - set(before) == {"classifier.weight", "classifier.bias"}
    own, start = repo.version(commit).files, repo.version("HEAD").files
    assert all(own[path] == start[path] for path in ("config.json", "tokenizer.json"))
    assert result.scores.val_accuracy == 1.0
    for stages in (0, 2):
        assert score(bench, after, known_model(repo, commit), DATA, stages).val_accuracy == 1.0
    cache = repo.git_dir / "modelgit" / "cache" / "features"
    kept = {np.load(path, mmap_mode="r").dtype.name for path in cache.glob("*.clean.npy")}
    assert kept == {"float32", "int32"} and not list(cache.glob("*.views.npy"))  # hidden states, and tokens


def test_the_same_run_gives_the_same_bits(repo: Repository) -> None:
    results = [train(repo, bench_with(repo), request(repo)).state for _ in range(2)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_texts_are_nothing_for_a_network_of_pictures(repo: Repository) -> None:
    bench = bench_with(repo)
    with pytest.raises(DataError, match="judgements holds text, and cnn takes images or arrays"):
        bench.prepare(build_network("cnn", 2), DATA, CONFIG)


def test_an_adapter_of_an_encoder_is_scored_with_its_base(repo: Repository) -> None:
    bench = bench_with(repo)
    asked = request(repo, replace(CONFIG, lora=Lora(2, 4.0, ("query", "value"))))
    result = train(repo, bench, asked)
    commit = commit_result(repo, asked, result)
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json"} <= repo.tree(commit).keys()
    assert "model.safetensors" not in repo.tree(commit)
    layer = "base_model.model.encoder.layer.{}.attention.self.{}.lora_{}.weight"
    factors = {layer.format(i, part, x) for i in (1, 2) for part in ("query", "value") for x in "AB"}
    assert set(result.state) == factors | {f"base_model.model.classifier.{part}" for part in ("weight", "bias")}
    found = score(bench, state_at(repo, commit), known_model(repo, commit), DATA, 2)
    assert found.val_accuracy == result.scores.val_accuracy
