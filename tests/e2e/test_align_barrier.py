"""The benchmark of barriers at small size: networks trained apart on real digits are joined once they are lined up."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_lining_up_lowers_the_barrier_between_networks_trained_apart(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    words = ["--pairs", "1", "--epochs", "5", "--only", "MLP, 3 x 32", "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks.align_barrier", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {(row["by"], row["repaired"]): row for row in json.loads(out.read_text())["rows"]}
    plain, lined, repaired = (rows[key]["fall"][0] for key in (("-", False), ("weights", False), ("weights", True)))
    assert plain > 20 and lined < 0.4 * plain and repaired < 0.4 * plain
    assert min(rows["-", False]["alone"]) > 65
