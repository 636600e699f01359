"""The benchmark of training at a small size: it runs and reports every figure. What they are is for a quiet machine."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("accelerate") is None, reason="the Trainer of transformers needs accelerate")
def test_training_speed_is_reported(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    words = ["small", "--rounds", "1", "--steps", "3", "--starts", "1", "--trainer", "--together", "3"]
    words += ["--precision", "bf16", "--processes", "2", "--peak-tflops", "0.1", "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks.train_speed", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    names = {"modelgit", "by hand", "transformers"}
    assert set(report["samples_per_s"]) == set(report["set_up_and_peak_mb"]) == set(report["mfu"]) == names
    assert all(100 < before < peak < before + 100 for before, peak in report["set_up_and_peak_mb"].values())
    assert set(report["together_s"]) == {"one after another", "one stack", "2 processes"}
    assert all(cpu_s > 0 and clock_s > 0 for rounds in report["together_s"].values() for cpu_s, clock_s in rounds)
    first, others = 768 * 64, 64 * 32 + 32 * 10  # weights; the gradient of the examples themselves is not wanted
    assert report["flops_of_a_sample"] == 4 * first + 6 * others
    assert all(0 < share < 1 for share in report["mfu"].values())
    assert set(report["first_step_cpu_s"]) == {"imports", "network and examples", "first step"}
    assert all(0 < part < 60 for part in report["first_step_cpu_s"].values())
    assert "| 3 runs |" in done.stdout and ": small, bf16, not compiled" in done.stdout
