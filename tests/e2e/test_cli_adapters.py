"""Merging adapters by hand: a commit whose factors and configuration belong together, and can be recomputed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from telling import Tell, teller

from modelgit.cli.app import main

FILE, CONFIG, STEM = "adapter_model.safetensors", "adapter_config.json", "base_model.model.h.0.attn"


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


def write(rank: int, alpha: int, seed: int) -> np.ndarray[Any, Any]:
    """Writes an adapter into the work tree; returns the change it makes."""
    draws = np.random.default_rng(seed)
    a, b = draws.normal(size=(rank, 40)).astype(np.float32), draws.normal(size=(30, rank)).astype(np.float32)
    save_file({f"{STEM}.lora_A.weight": a, f"{STEM}.lora_B.weight": b}, FILE)
    table = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "base_model_name_or_path": "base"}
    Path(CONFIG).write_text(json.dumps({**table, "target_modules": ["attn"]}))
    return np.asarray(alpha / rank * b.astype(np.float64) @ a.astype(np.float64))


def change() -> np.ndarray[Any, Any]:
    """Returns the change that the adapter in the work tree makes, as its configuration says."""
    tensors, table = load_file(FILE), json.loads(Path(CONFIG).read_text())
    a, b = (tensors[f"{STEM}.lora_{x}.weight"].astype(np.float64) for x in "AB")
    assert len(a) == table["r"] and not table["use_rslora"]
    return np.asarray(table["lora_alpha"] / table["r"] * b @ a)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    place = tmp_path_factory.mktemp("template") / "adapters"
    changes = {}
    with pytest.MonkeyPatch.context() as patch:
        assert main(["init", "-q", str(place)]) == 0
        patch.chdir(place)
        for number, (branch, rank, alpha) in enumerate((("main", 4, 8), ("law", 8, 8), ("code", 2, 6))):
            if branch != "main":
                assert main(["switch", "-q", "-c", branch, "main"]) == 0
            changes[branch] = write(rank, alpha, number)
            assert main(["add", "."]) == 0
            assert main(["commit", "-q", "-m", branch]) == 0
        assert main(["switch", "-q", "law"]) == 0
    return place, changes


@pytest.fixture
def changes(template: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray[Any, Any]]:
    monkeypatch.chdir(shutil.copytree(template[0], tmp_path / "adapters"))
    found: dict[str, np.ndarray[Any, Any]] = template[1]
    return found


def test_a_mean_of_factors_is_refused_with_the_way_on(changes: dict[str, Any], tell: Tell) -> None:
    before = Path(FILE).read_bytes()
    error = tell("merge", "code", code=1)
    assert "--method lora_cat (exact), or lora_svd" in error["hint"]
    assert "shape" not in {conflict["kind"] for conflict in error["conflicts"]}
    assert tell("merge", "code", "--method", "lora_cat", "-n")["cost"]["read_bytes"] > 0
    weights = ("--method", "lora_cat", "--weights", "1,-1")
    assert "weights [1.0, -1.0] add up to 0" in tell("merge", "code", *weights, code=2)["message"]
    assert (
        "--heads means nothing"
        in tell("merge", "code", *weights, "--heads", "drop", "--head-name", "x", code=2)["message"]
    )
    assert Path(FILE).read_bytes() == before


def test_the_exact_mean_and_its_configuration(changes: dict[str, Any], tell: Tell) -> None:
    made = tell("merge", "code", "--method", "lora_cat", "--weights", "1,3")
    wanted = (changes["law"] + 3 * changes["code"]) / 4
    assert np.abs(change() - wanted).max() <= 2e-6 * np.abs(wanted).max()
    assert made["computed"] == 2
    assert json.loads(Path(CONFIG).read_text())["r"] == 10
    assert tell("verify", "--rerun")["tensors"] == 2


def test_the_order_of_names_reaches_no_byte(changes: dict[str, Any], tell: Tell) -> None:
    tell("switch", "-c", "here", "main")
    tell("merge", "law", "code", "--method", "lora_cat")
    first = Path(FILE).read_bytes()
    tell("switch", "-c", "there", "main")
    tell("merge", "code", "law", "--method", "lora_cat")
    assert Path(FILE).read_bytes() == first


def test_a_rank_that_one_asks_for(changes: dict[str, Any], tell: Tell) -> None:
    made = tell("merge", "code", "--method", "lora_svd", "--set", "rank=5")
    u, s, v = np.linalg.svd((changes["law"] + changes["code"]) / 2, full_matrices=False)
    assert np.abs(change() - (u[:, :5] * s[:5]) @ v[:5]).max() <= 1e-5 * s[0]
    error = float(np.sqrt((s[5:] ** 2).sum() / (s**2).sum()))
    assert made["notes"] == [f"rank 5: relative error {error:.3g} over 1 modules, {error:.3g} in h.0.attn"]
    assert tell("verify", "--rerun")["tensors"] == 2


def test_what_is_no_adapter_is_told(changes: dict[str, Any], tell: Tell) -> None:
    Path(CONFIG).unlink()
    tell("commit", "-a", "-m", "no configuration")
    error = tell("merge", "code", "--method", "lora_cat", code=1)
    assert f"no {CONFIG} in law" in error["message"]
    write(4, 8, 5)
    Path(CONFIG).write_text(json.dumps({"r": 4, "lora_alpha": 8, "use_dora": True}))
    tell("add", ".")
    tell("commit", "-m", "another kind")
    assert "'use_dora' is set" in tell("merge", "code", "--method", "lora_cat", code=2)["message"]
