"""What the runs say, as Markdown: medians of each kind of step, and ratios to one tool.

python -m benchmarks.vcs.tables REPORT.json
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.vcs.measuring import facts_table

Row = Mapping[str, object]
TIMED = (
    "commit base", "commit fine-tune", "commit touched", "commit unchanged", "switch", "switch to main",
    "switch at once", "new branch", "status", "status after switch", "log -1", "push", "clone", "switch in clone", "gc",
)  # fmt: skip
YARDSTICK = "git-lfs"


def number(row: Row, name: str) -> float:
    """Return a figure of a step."""
    value = row.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0


def steps(runs: Iterable[Row], tool: str, kind: str) -> list[Row]:
    """Return every step of a kind that a tool has done."""
    found = []
    for run in runs:
        if run["tool"] == tool:
            done = run["steps"]
            assert isinstance(done, list)
            found += [step for step in done if step["step"] == kind]
    return found


def median(rows: Sequence[Row], name: str) -> float | None:
    """Return the median of a figure; None without rows."""
    return statistics.median(number(row, name) for row in rows) if rows else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def times(runs: Sequence[Row], tools: Sequence[str]) -> str:
    """Return wall (user + system CPU) seconds of each kind of step."""
    rows = []
    for kind in TIMED:
        row = [kind]
        for tool in tools:
            found = steps(runs, tool, kind)
            wall, user, system = (median(found, name) for name in ("wall_s", "user_s", "system_s"))
            row.append("–" if wall is None else f"{wall:.2f} ({user:.2f} + {system:.2f})")
        rows.append(row)
    return table(["wall s (user + system CPU s), medians", *tools], rows)


def ratios(runs: Sequence[Row], tools: Sequence[str]) -> str:
    """Return time and CPU time of each kind of step as parts of the yardstick's."""
    others = [tool for tool in tools if tool != YARDSTICK]
    rows = []
    for kind in TIMED:
        base = steps(runs, YARDSTICK, kind)
        row = [kind, *(ratio(steps(runs, tool, kind), base) for tool in others)]
        rows += [row] if base else []
    return table([f"wall (CPU) / {YARDSTICK}'s", *others], rows)


def ratio(rows: Sequence[Row], base: Sequence[Row]) -> str:
    """Return wall and CPU of steps over others'."""
    if not rows or not base:
        return "–"
    cpu = [statistics.median(number(row, "user_s") + number(row, "system_s") for row in some) for some in (rows, base)]
    wall = [median(some, "wall_s") or 0.0 for some in (rows, base)]
    return f"{wall[0] / max(wall[1], 1e-9):.2f} ({cpu[0] / max(cpu[1], 1e-9):.2f})"


def memory(runs: Sequence[Row], tools: Sequence[str]) -> str:
    """Return the largest anonymous memory of each kind of step."""
    rows = []
    for kind in ("commit base", "commit fine-tune", "switch", "push", "clone"):
        found = [steps(runs, tool, kind) for tool in tools]
        rows.append(
            [kind, *(f"{max(number(r, 'peak_bytes') for r in some) / 1e6:.0f}" if some else "–" for some in found)]
        )
    return table(["peak anonymous memory, MB", *tools], rows)


def sizes(runs: Sequence[Row], tools: Sequence[str]) -> str:
    """Return the bytes of the stores after the steps that matter."""
    wanted = [("base", "commit base", 0), ("base and fine-tunes", "commit fine-tune", -1), ("after gc", "gc", -1)]
    rows = []
    for label, kind, which in wanted:
        found = [steps(runs, tool, kind) for tool in tools]
        rows.append([label, *(f"{number(some[which], 'store_bytes') / 1e6:.1f}" if some else "–" for some in found)])
    for label, name in (("remote", "remote_bytes"), ("clone", "clone_bytes")):
        found = [steps(runs, tool, "sizes") for tool in tools]
        rows.append([label, *(f"{number(some[-1], name) / 1e6:.1f}" if some else "–" for some in found)])
    return table(["store, MB", *tools], rows)


def checks(runs: Sequence[Row], tools: Sequence[str]) -> str:
    """Return how many work files were byte-exact, and what failed."""
    lines = []
    for tool in tools:
        done = [step for kind in (*TIMED, "init", "remote") for step in steps(runs, tool, kind)]
        looked = [step["exact"] for step in done if step.get("exact") is not None]
        failed = sorted({str(step["step"]) for step in done if step.get("code") and "touched" not in str(step["step"])})
        failed = [kind for kind in failed if kind != "commit unchanged"]
        note = f"; failed: {', '.join(failed)}" if failed else ""
        lines.append(f"- {tool}: {sum(bool(right) for right in looked)} of {len(looked)} work files byte-exact{note}")
    return "\n".join(lines)


def tables(runs: Sequence[Row]) -> str:
    """Return everything."""
    tools = list(dict.fromkeys(str(run["tool"]) for run in runs))
    versions = ", ".join(dict.fromkeys(f"{run['tool']} ({run['version']})" for run in runs))
    parts = [versions, times(runs, tools)]
    parts += [ratios(runs, tools)] if YARDSTICK in tools else []
    return "\n\n".join([*parts, sizes(runs, tools), memory(runs, tools), checks(runs, tools)])


def main() -> None:
    """Print a report again."""
    report = json.loads(Path(sys.argv[1]).read_text())
    print(f"{facts_table(report['machine'])}\n\n{tables(report['runs'])}")


if __name__ == "__main__":
    main()
