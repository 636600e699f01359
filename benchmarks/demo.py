"""The demo measured: wall time, CPU time, memory, bytes, the table. Prints the Markdown of docs/benchmarks.md.

    python benchmarks/demo.py build/bench-demo [--set KEY=VALUE ...]

Memory is the anonymous memory of all processes of the run together (coordinator and workers), sampled ten times a
second; mapped files are left out, since the system takes them back at will. Linux only.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
MODELGIT = [sys.executable, "-m", "modelgit"]
PIPELINE = Path(__file__).parents[1] / "examples/ratatouille.toml"


@dataclass(frozen=True)
class Measured:
    """Seconds, and bytes of anonymous memory at the peak."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def anonymous_bytes(session: int) -> int:
    """Returns the anonymous memory of every process of a session."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3]) != session:
                continue
            rows = (folder / "status").read_text().splitlines()
            total += 1024 * sum(int(row.split()[1]) for row in rows if row.startswith("RssAnon:"))
        except (OSError, IndexError, ValueError):
            continue
    return total


def measure(command: list[str]) -> Measured:
    """Runs a command and measures it with all its children."""
    peak, over = [0], threading.Event()
    before = os.times()
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        while not over.wait(0.1):
            peak[0] = max(peak[0], anonymous_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    over.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(time.monotonic() - began, cpu, peak[0])


def help_cpu_s(rounds: int = 11) -> float:
    """Returns the median CPU seconds of `modelgit --help`."""
    return sorted(measure([*MODELGIT, "--help"]).cpu_s for _ in range(rounds))[rounds // 2]


def percent(value: float | None, error: float | None) -> str:
    """Returns an accuracy with its standard error."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def table(report: dict[str, Any]) -> str:
    """Returns the strategies as a Markdown table."""
    rows = ["| strategy | models | held-out, % | validation, % |", "|---|---|---|---|"]
    for row in report["rows"]:
        held_out = percent(row["ood_accuracy"], row["ood_stderr"])
        validation = percent(row["val_accuracy"], row["val_stderr"])
        rows.append(f"| {row['title']} | {row['runs']} | {held_out} | {validation} |")
    return "\n".join(rows)


def main() -> None:
    """Runs the demo in a fresh folder, then again, and prints what was measured."""
    place = Path(sys.argv[1])
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    command = [*MODELGIT, "run", str(PIPELINE), "--repo", str(place / "demo"), "--report", str(place / "report")]
    first = measure([*command, *sys.argv[2:]])
    second = measure([*command, *sys.argv[2:]])
    report = json.loads((place / "report.json").read_text())
    git = sum(path.stat().st_size for path in (place / "demo/.git").rglob("*") if path.is_file())
    system = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {system}")
    print(f"\n{table(report)}\n")
    print("| | |\n|---|---|")
    print(f"| wall time | {first.wall_s:.0f} s ({first.cpu_s:.0f} CPU s) |")
    print(f"| second run (nothing to do) | {second.wall_s:.1f} s ({second.cpu_s:.1f} CPU s) |")
    print(f"| peak anonymous memory, all processes | {first.peak_bytes / MIB:.0f} MiB |")
    weights = report["weight_bytes"]
    sizes = f"{git / 1e6:.0f} MB / {weights / 1e6:.0f} MB = {100 * git / weights:.0f} %"
    print(f"| whole `.git` / sum of the weight files | {sizes} |")
    print(f"| `modelgit --help`, CPU | {help_cpu_s():.2f} s |")


if __name__ == "__main__":
    main()
