"""The benchmark programs on a few megabytes: they run, check what they should, and report every figure."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="they measure through /proc")


def bench(tmp_path: Path, module: str, *words: str) -> dict[str, Any]:
    """Runs a program as the documentation says and returns its report; its table goes to standard output."""
    out = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{module}",
        *words,
        "--out",
        str(out),
        "--work",
        str(tmp_path / "work"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "|---|" in done.stdout
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_the_workload_runs_and_every_file_comes_back_exact(tmp_path: Path) -> None:
    words = ["--mb", "3", "--tunes", "1", "--repeat", "1", "--prime", "0", "--tools", "modelgit", "--quick"]
    report = bench(tmp_path, "vcs.run", *words)
    (run,) = report["runs"]
    steps = {step["step"]: step for step in run["steps"]}
    assert [
        name for name, step in steps.items() if step.get("code") and name not in ("commit touched", "commit unchanged")
    ] == []
    exact = [step["exact"] for step in run["steps"] if step.get("exact") is not None]
    assert len(exact) >= 5 and all(exact)
    assert steps["commit base"]["store_bytes"] < 0.75 * report["model_bytes"]
    assert steps["commit fine-tune"]["store_bytes"] < 1.1 * report["model_bytes"]
    assert 0 < steps["commit base"]["user_s"] < 20 and steps["commit base"]["peak_bytes"] > 1e6


def test_speed_and_memory_are_reported(tmp_path: Path) -> None:
    words = ["--mb", "3", "--large-mb", "0", "--tensors", "40", "--repeat", "1", "--prime", "0", "--quick"]
    report = bench(tmp_path, "storage_speed", *words)
    assert {"commit base", "switch to fine-tune", "fsck --full", "--help", "many tensors, commit"} <= report[
        "steps"
    ].keys()


def test_the_profile_knows_where_the_time_went(tmp_path: Path) -> None:
    out, repo = tmp_path / "report.json", tmp_path / "repo"
    repo.mkdir()
    subprocess.run([sys.executable, "-m", "modelgit", "init", "-q", "."], cwd=repo, check=True)
    command = [sys.executable, "-m", "benchmarks.storage_profile"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for number, kind in enumerate(("parts", "calls")):
        save_file({"w": np.full(65536, number, np.float32)}, repo / "model.safetensors")
        words = ["commit", "-q", "-m", kind]
        subprocess.run([*command, kind, str(out), *words], cwd=repo, env=env, check=True, capture_output=True)
        report = json.loads(out.read_text())
        assert report["code"] == 0
        rows = {row[0]: row for row in report[kind]}
        assert len(rows) > 3
        if kind == "parts":
            assert rows["imports"][2] > 0.01
            assert {"blake3", "Python and the rest", "git (other processes)"} <= rows.keys()


def test_the_bound_of_a_pair_is_below_what_is_stored(tmp_path: Path) -> None:
    make = [sys.executable, "-m", "benchmarks.vcs.models", str(tmp_path), "--mb", "3", "--tunes", "1"]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    pair = [str(tmp_path / "base.safetensors"), str(tmp_path / "ft1.safetensors")]
    dense, whole = bench(tmp_path, "storage_codec_bound", "--pair", *pair)["rows"]
    assert 0.03 < dense["bound"] <= dense["stored_bytes"] / dense["raw_bytes"] < 1.2 * dense["bound"]
    assert 0.7 < dense["same"] < 0.9
    assert whole["stored_bytes"] >= dense["stored_bytes"]


def test_merges_are_measured_from_files_and_out_of_the_store(tmp_path: Path) -> None:
    words = ["--mb", "3", "--repeat", "1", "--prime", "0", "--quick", "--methods", "linear,ties", "--heads", "8"]
    report = bench(tmp_path, "merge_methods", *words)
    assert {case: sorted(tools) for case, tools in report["runs"].items()} == {
        "mean": ["numpy"],
        "linear": ["files", "store"],
        "ties": ["files", "store"],
    }
    assert all(run["code"] == 0 for tools in report["runs"].values() for runs in tools.values() for run in runs)
    assert [(row["heads"], row["method"]) for row in report["heads"]] == [(8, "linear"), (8, "ties")]
    assert all(1e6 < row[tool]["peak_bytes"] < 400e6 for row in report["heads"] for tool in ("files", "store"))


def test_a_greedy_soup_reads_no_head_more_than_twice(tmp_path: Path) -> None:
    rows = bench(tmp_path, "merge_greedy", "--heads", "20", "--kb", "16")["rows"]
    assert [(row["scores"], row["singles"], row["means"], row["passes"]) for row in rows] == [
        ("unknown", 20, 19, 2.0),
        ("known", 0, 19, 1.0),
    ]
    assert 1 <= rows[0]["kept"] == rows[1]["kept"] <= 20
