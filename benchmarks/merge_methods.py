"""Merge methods against each other: modelgit from files and out of its store, a plain numpy mean, mergekit.

    python -m benchmarks.merge_methods [--mb 1000] [--repeat 3] [--mergekit VENV/bin/mergekit-yaml] [--out REPORT.json]

Every figure is for a whole process, start-up included: wall time, user and system CPU time, and the peak of anonymous
memory (mapped files left out). All files are in the page cache. Tools take turns in every repetition; medians are
shown. Without --mergekit the rival is left out (`python -m venv VENV; VENV/bin/pip install mergekit==0.1.5`). Both
get one thread for each processor; mergekit gets the settings it was measured with elsewhere: density 0.5, weights 0.25.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.merging.models import write
from benchmarks.vcs.measuring import COOL_S, Measured, environment, facts, facts_table, measure
from benchmarks.vcs.tables import table

Settings = Mapping[str, object]
HALF: Settings = {"density": 0.5}


@dataclass(frozen=True)
class Case:
    """A merge that both tools can do: mergekit's name, ours with its settings, models, and the goal for the ratio."""

    name: str
    method: str
    settings: Settings
    models: int = 4
    goal: float = 3.0


CASES = [
    Case("linear", "linear", {}),
    Case("slerp", "slerp", {}, 2),
    Case("nuslerp", "nuslerp", {}, 2),
    Case("task_arithmetic", "task_arithmetic", {}),
    Case("model_stock", "model_stock", {}),
    Case("sce", "sce", {}),
    Case("multislerp", "multislerp", {}),
    Case("karcher", "karcher", {}),
    Case("dare_linear", "dare_linear", HALF),
    Case("dare_ties", "dare_ties", {**HALF, "normalize": False}),
    Case("breadcrumbs", "breadcrumbs", HALF, 4, 8.0),
    Case("ties", "ties", HALF, 4, 8.0),
    Case("della", "della", HALF, 4, 8.0),
]
MODEL_LIMIT_BYTES, FILES_LIMIT, STORE_LIMIT = 400e6, 1.5, 3.0
NO_BASE = ("linear", "karcher", "nuslerp", "multislerp")
NO_WEIGHT = ("slerp", "model_stock", "karcher", "sce")
DENSITY = ("ties", "dare_ties", "dare_linear", "breadcrumbs", "della")


@dataclass(frozen=True)
class Bench:
    """Where things are, and how they are measured."""

    work: Path
    folders: Sequence[Path]
    mergekit: str | None
    prime_gib: float

    @property
    def files(self) -> list[str]:
        """The base's weights and the fine-tunes'."""
        return [str(folder / "model.safetensors") for folder in self.folders]

    def run(self, *command: str, inputs: Sequence[str] = ()) -> Measured:
        """Run a command with warm inputs; its results are removed."""
        for file in inputs:
            warm(Path(file))
        env = environment(self.work / "home", HF_HUB_OFFLINE="1", PYTHONPATH=str(Path(__file__).parents[1]))
        done = measure(command, self.work, env, prime_gib=self.prime_gib)
        if done.code:
            raise SystemExit(f"{' '.join(command[:6])} …: exit code {done.code}\n{done.tail}")
        return done

    def worker(self, *words: str, inputs: Sequence[str] = ()) -> Measured:
        """Run `benchmarks.merging.worker`."""
        return self.run(sys.executable, "-m", "benchmarks.merging.worker", *words, inputs=inputs)


def warm(path: Path) -> None:
    """Read a file once."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 22)
        while file.readinto(buffer):
            pass


# ------------------------------------------------------------------------------------------------- the tools


def from_files(bench: Bench, case: Case) -> Measured:
    """Merge files into a file."""
    files = bench.files[: case.models + 1]
    out = bench.work / "merged.safetensors"
    done = bench.worker("files", case.method, json.dumps(case.settings), str(out), *files, inputs=files)
    out.unlink()
    return done


def from_store(bench: Bench, case: Case) -> Measured:
    """Merge versions of a store into it; the new pack is removed."""
    store = bench.work / "store"
    packs = set((store / "packs").iterdir())
    for pack in packs:
        warm(pack)
    done = bench.worker("store", case.method, json.dumps(case.settings), str(store), str(case.models))
    for pack in set((store / "packs").iterdir()) - packs:
        pack.unlink()
    return done


def plain_mean(bench: Bench) -> Measured:
    """Run the plain mean of four."""
    out, files = bench.work / "mean.safetensors", bench.files[1:5]
    done = bench.worker("mean", str(out), *files, inputs=files)
    out.unlink()
    return done


def rival(bench: Bench, case: Case) -> Measured | None:
    """Run mergekit, if it is there."""
    if bench.mergekit is None:
        return None
    config, out = bench.work / f"{case.name}.yml", bench.work / "mergekit-out"
    config.write_text(recipe(bench, case))
    words = ("--no-copy-tokenizer", "--quiet", "--random-seed", "0")
    done = bench.run(bench.mergekit, str(config), str(out), *words, inputs=bench.files[: case.models + 1])
    shutil.rmtree(out)
    return done


def recipe(bench: Bench, case: Case) -> str:
    """Return mergekit's configuration."""
    models = [str(folder) for folder in bench.folders[1 : case.models + 1]]
    lines = [f"merge_method: {case.name}", "dtype: bfloat16"]
    if case.name == "slerp":
        lines += [f"base_model: {models[0]}", "parameters:", "  t: 0.5"]
    elif case.name not in NO_BASE:
        lines.append(f"base_model: {bench.folders[0]}")
    each = ["weight: 0.25"] * (case.name not in NO_WEIGHT) + ["density: 0.5"] * (case.name in DENSITY)
    lines.append("models:")
    for model in models:
        lines.append(f"  - model: {model}")
        lines += ["    parameters:"] * bool(each) + [f"      {parameter}" for parameter in each]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------- the runs

Runs = dict[str, list[Measured]]


def compare(bench: Bench, cases: Sequence[Case], repeat: int) -> dict[str, Runs]:
    """Return every measurement: by case, then by tool."""
    found: dict[str, Runs] = {"mean": {"numpy": []}}
    for number in range(repeat):
        found["mean"]["numpy"].append(plain_mean(bench))
        for case in cases:
            runs = found.setdefault(case.name, {})
            for tool, done in in_turn(bench, case, number):
                runs.setdefault(tool, []).append(done)
                tell(f"{case.name}, {tool}", done)
    return found


def in_turn(bench: Bench, case: Case, number: int) -> Iterator[tuple[str, Measured]]:
    """Yield each tool's cost, another one first each time."""
    tools = ["files", "store", "mergekit"]
    for tool in tools[number % 3 :] + tools[: number % 3]:
        done = {"files": from_files, "store": from_store, "mergekit": rival}[tool](bench, case)
        if done is not None:
            yield tool, done


def many_heads(bench: Bench, counts: Sequence[int], methods: Sequence[str]) -> list[dict[str, object]]:
    """Return the peak of memory for so many heads: the same few files under several weights, links to them."""
    rows = []
    for count in counts:
        heads = [bench.files[1 + i % (len(bench.files) - 1)] for i in range(count)]
        for method in methods:
            out = bench.work / "merged.safetensors"
            done = bench.worker("files", method, "{}", str(out), bench.files[0], *heads)
            out.unlink()
            stored = bench.work / f"store-{count}"
            bench.worker("fill", str(stored), bench.files[0], *heads)
            inside = bench.worker("store", method, "{}", str(stored), str(count))
            shutil.rmtree(stored)
            rows.append({"heads": count, "method": method, "files": asdict(done), "store": asdict(inside)})
            tell(f"{count} heads, {method}, files", done)
            tell(f"{count} heads, {method}, store", inside)
    return rows


def tell(what: str, done: Measured) -> None:
    """Say what was measured, as it comes."""
    peak = done.peak_bytes / 1e6
    print(f"{what}: {done.wall_s:.2f} s wall, {done.cpu_s:.2f} s CPU, {peak:.0f} MB", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------- the tables


def middle(runs: Sequence[Measured], name: str) -> float:
    """Return the median of a figure."""
    return statistics.median(float(getattr(run, name)) for run in runs)


def figures(runs: Sequence[Measured] | None) -> str:
    """Return wall seconds, CPU seconds and MB."""
    if not runs:
        return "–"
    wall, cpu, peak = (middle(runs, name) for name in ("wall_s", "cpu_s", "peak_bytes"))
    return f"{wall:.2f} / {cpu:.2f} / {peak / 1e6:.0f}"


def ratio(above: Sequence[Measured] | None, below: Sequence[Measured] | None) -> str:
    """Return how many times the first takes of the second, in wall time and CPU time."""
    if not above or not below:
        return "–"
    return " / ".join(f"{middle(above, name) / middle(below, name):.1f}" for name in ("wall_s", "cpu_s"))


def methods_table(found: Mapping[str, Runs], cases: Sequence[Case]) -> str:
    """Return a row for every method."""
    head = ["wall s / CPU s / peak MB", "models", "files", "store", "mergekit", "mergekit : files", "goal"]
    rows = [["plain numpy mean", "4", figures(found["mean"]["numpy"]), "–", "–", "–", "–"]]
    for case in cases:
        runs = found[case.name]
        ours, stored, theirs = (runs.get(tool) for tool in ("files", "store", "mergekit"))
        shown = [figures(some) for some in (ours, stored, theirs)]
        rows.append([case.name, str(case.models), *shown, ratio(theirs, ours), f"{case.goal:g}"])
    return table(head, rows)


def goals_table(found: Mapping[str, Runs]) -> str:
    """Return linear against the plain mean, which has no start-up and no ids to compute."""
    if "linear" not in found:
        return ""
    plain, linear = found["mean"]["numpy"], found["linear"]
    rows = [
        [where, ratio(linear[tool], plain), f"{limit:g}"]
        for where, tool, limit in (("from files", "files", FILES_LIMIT), ("out of the store", "store", STORE_LIMIT))
    ]
    return table(["linear of 4 : plain mean, wall / CPU", "ratio", "at most"], rows)


def memory_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the peaks of memory for many heads."""

    def peak(row: Mapping[str, object], tool: str) -> str:
        done = row[tool]
        assert isinstance(done, dict)
        return f"{done['peak_bytes'] / 1e6:.0f}"

    lines = [[str(row["heads"]), str(row["method"]), peak(row, "files"), peak(row, "store")] for row in rows]
    return table(["heads", "method", "files: peak anonymous MB", "store", "at most"], [[*r, "400"] for r in lines])


# -------------------------------------------------------------------------------------------------- the program


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=1000, help="size of each model")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--methods", help="only these, by mergekit's names, with commas between")
    parser.add_argument("--heads", default="2,8,32", help="numbers of heads for the peaks of memory; empty for none")
    parser.add_argument("--head-methods", default="linear,ties", help="methods for these")
    parser.add_argument("--mergekit", help="the rival's program: VENV/bin/mergekit-yaml")
    parser.add_argument("--prime", type=float, default=2, help="GiB of memory to touch before each command")
    parser.add_argument("--quick", action="store_true", help="no yardsticks, no waiting: to try the program out")
    parser.add_argument("--work", type=Path, default=Path("build/bench-merge"))
    parser.add_argument("--models", type=Path, help="where models are made and kept [default: in WORK]")
    parser.add_argument("--out", type=Path, default=Path("build/bench-merge.json"))
    return parser.parse_args(arguments)


def numbers(text: str) -> list[int]:
    """Return numbers with commas between."""
    return [int(word) for word in text.split(",") if word]


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the report."""
    options = parse(arguments)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    folders = write((options.models or work / "models").resolve(), options.mb, 4)
    rival_path = str(Path(options.mergekit).absolute()) if options.mergekit else None
    bench = Bench(work, folders, rival_path, options.prime)
    cases = [case for case in CASES if not options.methods or case.name in options.methods.split(",")]
    shutil.rmtree(work / "store", ignore_errors=True)
    bench.worker("fill", str(work / "store"), *bench.files)
    machine = {} if options.quick else facts(work, options.prime)
    if not options.quick:
        time.sleep(COOL_S)
    found = compare(bench, cases, options.repeat)
    heads = many_heads(bench, numbers(options.heads), options.head_methods.split(","))
    shutil.rmtree(work / "store")
    runs = {case: {tool: [asdict(run) for run in some] for tool, some in by.items()} for case, by in found.items()}
    report = {
        "machine": machine,
        "model_bytes": Path(bench.files[0]).stat().st_size,
        "runs": runs,
        "heads": heads,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2))
    parts = [methods_table(found, cases), goals_table(found), memory_table(heads) if heads else ""]
    print("\n\n".join([*([facts_table(machine)] if machine else []), *(part for part in parts if part)]))


if __name__ == "__main__":
    main()
