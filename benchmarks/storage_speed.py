"""How fast modelgit's own commands are, how much memory they take, and where the time goes.

    python -m benchmarks.storage_speed [--mb 400] [--large-mb 4000] [--tensors 10000] [--repeat 3] [--prime 2]
        [--profile] [--work build/bench-speed] [--out build/bench-speed.json]

Every figure is of a whole command, start of Python included: user and system CPU seconds of it and its children,
medians of `--repeat` fresh repositories. Rates are GB of raw weights per CPU second; "net" leaves out the start-up,
which is measured as well (Python, numpy and modelgit's store imported, nothing done). `--large-mb 0` leaves out the
large model, `--tensors 0` the file of many tensors. `--profile` adds what each command spends its time in.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.vcs.measuring import Measured, as_json, environment, facts, facts_table, machine, measure, tree_bytes
from benchmarks.vcs.models import WIDTHS, Shape, many, write_model, write_models
from benchmarks.vcs.tables import table

ROOT = Path(__file__).parents[1]
MODEL = "model.safetensors"
SETTLE_S = 1.1  # git compares times by the second
NOTHING_TO_COMMIT = 10
LIGHT, LITTLE_GIB = ("status", "log -1", "--help"), 0.25  # commands that need little memory
STARTS, TENSOR_BYTES, FEW = 7, 32 * 1024, 8 * 1024 * 1024
COMPILE = "import compileall, modelgit; compileall.compile_dir(modelgit.__path__[0], quiet=1)"
IMPORTS = "import modelgit.cli.app, modelgit.porcelain.work, modelgit.store.files.materialise, modelgit.store.objects"
# What to reach: step, figure, at most or at least, and the words for it.
GOALS = (
    ("commit fine-tune", "cpu", "<=", 1.2),
    ("switch to fine-tune", "cpu", "<=", 0.6),
    ("switch to base", "cpu", "<=", 0.6),
    ("commit, file touched", "rate", ">=", 4.0),
    ("commit, stat cache hit", "cpu", "<=", 0.15),
    ("commit base", "rate", ">=", 1.0),
    ("export base", "rate", ">=", 1.5),
    ("status", "cpu", "<=", 0.2),
    ("log -1", "cpu", "<=", 0.2),
    ("--help", "cpu", "<=", 0.12),
)


@dataclass
class Bench:
    """A folder to work in, and everything measured so far."""

    root: Path
    prime_gib: float
    settle_s: float
    rows: dict[str, list[Measured]] = field(default_factory=dict)
    wrapped: tuple[str, ...] = ("-m", "modelgit")

    def fresh(self, name: str = "repo") -> Path:
        """Return a new, empty repository."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.run(folder, "init", "-q", ".")
        return folder

    def env(self) -> dict[str, str]:
        """Return the environment of every command."""
        path = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(ROOT)]).lstrip(os.pathsep)
        return environment(self.root / "home", PYTHONPATH=path)

    def run(self, folder: Path, *words: str, prime_gib: float = 0) -> Measured:
        """Run modelgit; an exit code that says more than "nothing to commit" ends the benchmark."""
        os.sync()
        done = measure([sys.executable, *self.wrapped, *words], folder, self.env(), prime_gib=prime_gib)
        if done.code not in (0, NOTHING_TO_COMMIT):
            raise SystemExit(f"modelgit {' '.join(words)}: exit code {done.code}\n{done.tail}")
        return done

    def step(self, label: str, folder: Path, *words: str) -> None:
        """Run modelgit and keep what it cost."""
        prime_gib = min(LITTLE_GIB, self.prime_gib) if label in LIGHT else self.prime_gib
        done = self.run(folder, *words, prime_gib=prime_gib)
        self.rows.setdefault(label, []).append(done)
        cost = f"{done.wall_s:7.2f} s  user {done.user_s:6.2f}  system {done.system_s:6.2f}"
        print(f"{label:34} {cost}  {done.peak_bytes / 1e6:7.1f} MB", file=sys.stderr, flush=True)


def place(bench: Bench, source: Path, folder: Path) -> None:
    """Put a weight file into a work tree, as a training program would, and let git's clock tick."""
    incoming = folder.parent / "incoming"
    shutil.copyfile(source, incoming)
    incoming.replace(folder / MODEL)
    time.sleep(bench.settle_s)


def everyday(bench: Bench, base: Path, tune: Path) -> None:
    """The steps of a working day, in one repository."""
    repo = bench.fresh()
    place(bench, base, repo)
    bench.step("commit base", repo, "commit", "-q", "-m", "base")
    bench.run(repo, "switch", "-q", "-c", "tune")
    place(bench, tune, repo)
    bench.step("commit fine-tune", repo, "commit", "-q", "-m", "tune")
    bench.step("switch to base", repo, "switch", "-q", "main")
    bench.step("switch to fine-tune", repo, "switch", "-q", "tune")
    time.sleep(bench.settle_s)
    (repo / MODEL).touch()
    time.sleep(bench.settle_s)
    bench.step("commit, file touched", repo, "commit", "-q", "-m", "nothing")
    bench.step("commit, stat cache hit", repo, "commit", "-q", "-m", "nothing")
    whole(bench, repo, "")
    for _ in range(STARTS if bench.settle_s else 1):
        bench.step("status", repo, "status")
        bench.step("log -1", repo, "log", "-n", "1")
        bench.step("--help", repo, "--help")


def whole(bench: Bench, repo: Path, suffix: str) -> None:
    """Write both versions out, and check the store."""
    for label, branch in (("export base", "main"), ("export fine-tune", "tune")):
        bench.step(f"{label}{suffix}", repo, "export", "-q", branch, str(bench.root / "out"))
        shutil.rmtree(bench.root / "out")
    bench.step(f"fsck{suffix}", repo, "fsck", "-q")
    bench.step(f"fsck --full{suffix}", repo, "fsck", "-q", "--full")


def large(bench: Bench, base: Path, tune: Path) -> None:
    """The steps whose memory must not grow with the model."""
    repo = bench.fresh("large")
    place(bench, base, repo)
    bench.step("commit base, large", repo, "commit", "-q", "-m", "base")
    bench.run(repo, "switch", "-q", "-c", "tune")
    place(bench, tune, repo)
    bench.step("commit fine-tune, large", repo, "commit", "-q", "-m", "tune")
    whole(bench, repo, ", large")
    shutil.rmtree(repo)


def many_tensors(bench: Bench, folder: Path, count: int, repeat: int) -> None:
    """The same bytes as many small tensors and as a few large ones: what the many cost beyond their bytes."""
    for _ in range(repeat):
        for label, spec in (("many", many(count, TENSOR_BYTES // 2)), ("few", few(count))):
            files = [folder / f"{label}-{number}.safetensors" for number in (0, 1)]
            for number, path in enumerate(files):
                if not path.exists():
                    write_model(path, spec, number, drift=3e-3, seed=1, dtype="bf16")
            repo = bench.fresh(label)
            place(bench, files[0], repo)
            bench.step(f"{label} tensors, commit", repo, "commit", "-q", "-m", "base")
            place(bench, files[1], repo)
            bench.step(f"{label} tensors, commit fine-tune", repo, "commit", "-q", "-m", "tune")
            bench.step(f"{label} tensors, export fine-tune", repo, "export", "-q", "HEAD", str(bench.root / "out"))
            shutil.rmtree(bench.root / "out")
            shutil.rmtree(repo)


def few(count: int) -> list[Shape]:
    """Return as many bytes as `count` small tensors have, in tensors of 8 MiB."""
    size = count * TENSOR_BYTES
    return many(max(1, size // FEW), min(size, FEW) // 2)


# ---------------------------------------------------------------------- what it comes to


def middle(rows: Sequence[Measured], name: str) -> float:
    """Return the median of a figure."""
    return statistics.median(float(getattr(row, name)) for row in rows)


def rate(rows: Sequence[Measured], size_bytes: int, start_s: float = 0.0) -> float:
    """Return GB of raw weights per CPU second."""
    return size_bytes / 1e9 / max(1e-3, middle(rows, "cpu_s") - start_s)


def steps_table(bench: Bench, sizes: Mapping[str, int]) -> str:
    """Return every step."""
    start = middle(bench.rows["imports"], "cpu_s")
    lines = []
    for label, rows in bench.rows.items():
        size = size_of(label, sizes)
        rates = [f"{rate(rows, size):.2f}", f"{rate(rows, size, start):.2f}"] if size else ["", ""]
        costs = [f"{middle(rows, name):.2f}" for name in ("wall_s", "user_s", "system_s", "cpu_s")]
        lines.append([label, *costs, *rates, f"{max(row.peak_bytes for row in rows) / 1e6:.0f}"])
    head = ["step", "wall s", "user s", "system s", "CPU s", "GB/CPU s", "net", "peak MB"]
    return table(head, lines)


def size_of(label: str, sizes: Mapping[str, int]) -> int:
    """Return the raw bytes a step deals with; 0 where that is no measure of it."""
    if label.startswith(("commit, stat", "status", "log", "--help", "imports")):
        return 0
    if "tensors" in label:
        return sizes["many"]
    return sizes["large" if label.endswith("large") else "model"]


def goals_table(bench: Bench, size_bytes: int) -> str:
    """Return the goals, and whether they are reached."""
    lines = []
    start = middle(bench.rows["imports"], "cpu_s")
    for label, figure, relation, goal in GOALS:
        rows = bench.rows[label]
        if figure == "cpu":
            value = middle(rows, "cpu_s")
            lines.append([label, f"{relation} {goal} CPU s", f"{value:.2f}", yes(value <= goal)])
        else:
            whole, net = rate(rows, size_bytes), rate(rows, size_bytes, start)
            reached = "but for the start-up" if whole < goal <= net else yes(whole >= goal)
            lines.append([label, f"{relation} {goal} GB/CPU s", f"{whole:.2f}, net of start-up {net:.2f}", reached])
    lines += memory_goals(bench)
    for step in ("commit", "commit fine-tune"):
        if f"many tensors, {step}" in bench.rows:
            cpu = [middle(bench.rows[f"{label} tensors, {step}"], "cpu_s") for label in ("many", "few")]
            over = cpu[0] - cpu[1]
            lines.append([f"many tensors, {step}: more CPU than few", "<= 0.4 CPU s", f"{over:.2f}", yes(over <= 0.4)])
    return table(["goal", "reach", "measured", "reached"], lines)


def memory_goals(bench: Bench) -> Iterable[list[str]]:
    """Yield the goals for memory."""
    for label in ("commit base", "commit fine-tune", "export base", "export fine-tune", "fsck", "fsck --full"):
        peaks = [max(row.peak_bytes for row in bench.rows[name]) / 1e6 for name in (label, f"{label}, large")
                 if name in bench.rows]  # fmt: skip
        right = max(peaks) <= 200 and max(peaks) <= 1.2 * min(peaks)
        words = " and ".join(f"{peak:.0f}" for peak in peaks)
        yield [f"{label}: peak anonymous memory", "<= 200 MB, equal within 20 %", words, yes(right)]


def yes(right: bool) -> str:
    """Return the word for it."""
    return "yes" if right else "no"


# ---------------------------------------------------------------------- where the time goes


def profiles(bench: Bench, base: Path, tune: Path) -> dict[str, dict[str, object]]:
    """Return what each command of a working day spends its time in, by parts and by calls."""
    found: dict[str, dict[str, object]] = {}
    for kind in ("parts", "calls"):
        for label, report in profiled(bench, kind, base, tune):
            found.setdefault(label, {}).update(json.loads(report.read_text()))
    return found


def profiled(bench: Bench, kind: str, base: Path, tune: Path) -> Iterable[tuple[str, Path]]:
    """Yield each command's label and the file its profile is in."""
    repo, report = bench.fresh("profiled"), bench.root / "profile.json"
    watched = Bench(
        bench.root, bench.prime_gib, bench.settle_s, wrapped=("-m", "benchmarks.storage_profile", kind, str(report))
    )
    for label, words in (
        ("commit base", ("commit", "-q", "-m", "base")),
        ("commit fine-tune", ("commit", "-q", "-m", "tune")),
        ("switch to base", ("switch", "-q", "main")),
        ("switch to fine-tune", ("switch", "-q", "tune")),
        ("commit, file touched", ("commit", "-q", "-m", "nothing")),
        ("commit, stat cache hit", ("commit", "-q", "-m", "nothing")),
        ("status", ("status",)),
    ):
        prepare(bench, repo, label, base if label == "commit base" else tune)
        watched.step(f"{label}, {kind}", repo, *words)
        yield label, report


def prepare(bench: Bench, repo: Path, label: str, source: Path) -> None:
    """Do what must be done before a step."""
    if label == "commit fine-tune":
        bench.run(repo, "switch", "-q", "-c", "tune")
    if label in ("commit base", "commit fine-tune"):
        place(bench, source, repo)
    if label == "commit, file touched":
        time.sleep(bench.settle_s)
        (repo / MODEL).touch()
        time.sleep(bench.settle_s)


def profile_tables(found: Mapping[str, Mapping[str, object]]) -> str:
    """Return where the time goes, a table for each command."""
    texts = []
    for label, report in found.items():
        parts, calls = report["parts"], report["calls"]
        assert isinstance(parts, list) and isinstance(calls, list)
        rows = [[r[0], f"{r[1]:.0f}", f"{r[2]:.3f}", f"{r[3]:.3f}", f"{r[4]:.3f}"] for r in parts if r[2] >= 0.002]
        texts.append(table([label, "calls", "CPU s", "of it system", "wall s, all threads"], rows))
        own = [[str(r[0]), str(r[1]), f"{r[2]:.3f}", f"{r[3]:.3f}", Path(str(r[4])).name] for r in calls[:10]]
        texts.append(table([f"{label}: main thread", "calls", "own s", "total s", "where"], own))
    return "\n\n".join(texts)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=400, help="size of the model")
    parser.add_argument("--large-mb", type=float, default=4000, help="size of the large model")
    parser.add_argument("--dtype", choices=sorted(WIDTHS), default="bf16")
    parser.add_argument("--tensors", type=int, default=10_000, help="tensors of 32 KiB in a file")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--prime", type=float, default=2, help="GiB of memory to touch before each command")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="no yardsticks, no waiting: to try the program out")
    parser.add_argument("--work", type=Path, default=Path("build/bench-speed"))
    parser.add_argument("--models", type=Path, help="where models are made and kept [default: in WORK]")
    parser.add_argument("--out", type=Path, default=Path("build/bench-speed.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print tables, write JSON."""
    options = parse(arguments)
    bench = Bench(options.work.resolve(), options.prime, 0 if options.quick else SETTLE_S)
    models = (options.models or bench.root / "models").resolve()
    base, _, tune = write_models(models / "small", megabytes=options.mb, tunes=2, dtype=options.dtype)
    sizes = {"model": base.stat().st_size, "many": options.tensors * TENSOR_BYTES, "large": 0}
    measure([sys.executable, "-c", COMPILE], bench.root, bench.env(), prime_gib=0)
    found = machine() if options.quick else facts(bench.root, options.prime)
    for _ in range(STARTS if bench.settle_s else 1):
        bench.rows.setdefault("imports", []).append(
            measure([sys.executable, "-c", IMPORTS], bench.root, bench.env(), prime_gib=0)
        )
    for _ in range(options.repeat):
        everyday(bench, base, tune)
    if options.tensors:
        many_tensors(bench, models, options.tensors, options.repeat)
    if options.large_mb:
        files = write_models(models / "large", megabytes=options.large_mb, tunes=1, dtype=options.dtype)
        sizes["large"] = files[0].stat().st_size
        large(bench, *files)
    seen = profiles(bench, base, tune) if options.profile else {}
    rows = {label: [as_json(row) for row in rows] for label, rows in bench.rows.items()}
    stored = tree_bytes(bench.root / "repo/.git")
    report = {"machine": found, "sizes": sizes, "stored_bytes": stored, "steps": rows, "profiles": seen}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))
    texts = [facts_table(found), steps_table(bench, sizes), goals_table(bench, sizes["model"])]
    print("\n\n".join([*texts, profile_tables(seen)] if seen else texts))


if __name__ == "__main__":
    main()
