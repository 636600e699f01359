"""One workload through several tools: time, CPU, memory and bytes of each step, and the ratios to Git LFS.

    python -m benchmarks.vcs.run [--mb 400] [--tools modelgit,lfs,dvc,xet] [--repeat 3]
        [--path dvc=DIR] [--python xet=PYTHON] [--prime 2] [--out build/bench-vcs.json]

The workload: a base model on main, five fine-tunes of it on branches of their own, a commit after a touch, one after
nothing, status, log, switches (each file checked byte for byte), push, clone, gc. Tools take turns, so that what else
happens on the machine meets all of them; figures are medians. `--path` puts a folder first on PATH for a tool,
`--python` names the interpreter that has a tool's package. A tool that is not installed is left out.

A switch that follows another within a second finds git's index "racy" (file and index of one time): tools behind
git's clean filter then read the file again. "switch" is measured after a `status` has settled that, "switch at once"
without.
"""

import argparse
import filecmp
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.vcs.measuring import Measured, as_json, environment, facts, facts_table, machine, measure, tree_bytes
from benchmarks.vcs.models import WIDTHS, write_models
from benchmarks.vcs.tables import tables
from benchmarks.vcs.tools import MODEL, TOOLS, Commands, Places, Tool

SETTLE_S = 1.1  # git compares times by the second
MAY_REFUSE = ("commit touched", "commit unchanged")  # "nothing to commit" is the right answer


@dataclass
class Run:
    """One tool's turn: its folders, its environment and what was measured."""

    tool: Tool
    models: dict[str, Path]
    env: dict[str, str]
    prime_gib: float
    settle_s: float
    steps: list[dict[str, object]] = field(default_factory=list)

    def step(self, kind: str, commands: Commands, *, holds: str = "", clone: bool = False) -> bool:
        """Run and measure a step; `holds` names the model that the work file must be afterwards."""
        if not commands:
            return True
        work = self.tool.at.clone if clone and holds != "base" else self.tool.at.work
        os.sync()
        total = Measured()
        for command in commands:
            if not total.code:
                total = total.then(measure(command, work, self.env, prime_gib=self.prime_gib))
        root = self.tool.at.clone if clone else work
        right = None if not holds else self._is(root / MODEL, holds)
        bytes_now = tree_bytes(*self.tool.stores(self.tool.at.work))
        self.steps.append({"step": kind, **as_json(total), "store_bytes": bytes_now, "exact": right})
        cost = f"{total.wall_s:7.2f} s  CPU {total.cpu_s:6.2f}  {total.peak_bytes / 1e6:6.0f} MB"
        say(f"{self.tool.name:16} {kind:20} {cost}  store {bytes_now / 1e6:8.1f} MB")
        if total.code and kind not in MAY_REFUSE:
            say(f"  exit code {total.code}: {total.tail.strip()[-300:]}")
        if right is False:
            say(f"  the file is not {holds}, byte for byte")
        return not total.code

    def place(self, name: str) -> None:
        """Put a model into the work tree, as a training program would, and let git's clock tick."""
        incoming = self.tool.at.work.parent / "incoming"
        shutil.copyfile(self.models[name], incoming)
        incoming.replace(self.tool.at.work / MODEL)
        time.sleep(self.settle_s)

    def settle(self) -> None:
        """Let git's clock tick and its index be refreshed."""
        time.sleep(self.settle_s)
        self.step("status after switch", self.tool.status())

    def _is(self, path: Path, name: str) -> bool:
        return path.is_file() and filecmp.cmp(path, self.models[name], shallow=False)


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def workload(run: Run) -> None:
    """Carry out all steps, until one that the rest needs fails."""
    tool, tunes = run.tool, [name for name in run.models if name != "base"]
    if not run.step("init", tool.init()):
        return
    run.place("base")
    if not (run.step("commit base", tool.commit("base")) and all(fine_tune(run, name, tunes) for name in tunes)):
        return
    look(run)
    for name in switches(tunes):
        run.settle()
        run.step("switch", tool.switch(name), holds="base" if name == "main" else name)
    for name in (tunes[0], "main"):
        run.step("switch at once", tool.switch(name), holds="base" if name == "main" else name)
    share(run, tunes)
    run.step("gc", tool.gc())


def fine_tune(run: Run, name: str, tunes: list[str]) -> bool:
    """Commit one fine-tune on a branch of its own."""
    if name != tunes[0]:
        run.step("switch to main", run.tool.switch("main"), holds="base")
        run.settle()
    run.step("new branch", run.tool.branch(name))
    run.place(name)
    return run.step("commit fine-tune", run.tool.commit(name))


def look(run: Run) -> None:
    """The steps that change nothing."""
    (run.tool.at.work / MODEL).touch()
    time.sleep(run.settle_s)
    run.step("commit touched", run.tool.commit("touched"))
    run.step("commit unchanged", run.tool.commit("unchanged"))
    run.step("status", run.tool.status())
    run.step("log -1", run.tool.log())


def switches(tunes: list[str]) -> Iterator[str]:
    """Yield where to go: from the last fine-tune, so that each is a move."""
    if len(tunes) > 1:
        yield tunes[1 % len(tunes)]
    yield "main"
    yield tunes[len(tunes) // 2]
    if len(tunes) > 1:
        yield tunes[-1]


def share(run: Run, tunes: list[str]) -> None:
    """Push everything, clone it, and switch in the clone."""
    at, tool = run.tool.at, run.tool
    if not (tool.push(tunes) and run.step("remote", tool.remote())):
        return
    if run.step("push", tool.push(["main", *tunes])) and run.step("clone", tool.clone(), holds="base", clone=True):
        last = tunes[len(tunes) // 2]
        run.step("switch in clone", tool.clone_switch(last), holds=last, clone=True)
    sizes = {"remote_bytes": tree_bytes(*at.remote.parent.glob(f"{at.remote.name}*"))}
    run.steps.append({"step": "sizes", **sizes, "clone_bytes": tree_bytes(*tool.stores(at.clone))})


def one(name: str, options: argparse.Namespace, models: dict[str, Path]) -> dict[str, object] | None:
    """Return what one tool's turn gave; None if it is not installed."""
    root = (options.work / name).resolve()
    shutil.rmtree(root, ignore_errors=True)
    (root / "work").mkdir(parents=True)
    folders, pythons = (dict(pair.split("=", 1) for pair in given) for given in (options.path, options.python))
    python = str(Path(pythons.get(name, sys.executable)).absolute())
    tool = TOOLS[name](Places(root / "work", root / "remote", root / "clone", python))
    path = (
        f"{Path(folders[name]).absolute()}{os.pathsep}{os.environ['PATH']}" if name in folders else os.environ["PATH"]
    )
    env = environment(root / "home", PATH=path, **tool.env)
    version = tool.version(env)
    if not version or "is not a git command" in version or "No module" in version or "Traceback" in version:
        say(f"{name}: not installed, left out")
        return None
    for command in tool.prepare():
        measure(command, root, env, prime_gib=0)
    run = Run(tool, models, env, options.prime, 0 if options.quick else SETTLE_S)
    try:
        workload(run)
    finally:
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    return {"tool": tool.name, "version": version, "steps": run.steps}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=400, help="size of a model")
    parser.add_argument("--tunes", type=int, default=5, help="number of fine-tunes")
    parser.add_argument("--dtype", choices=sorted(WIDTHS), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tools", default="modelgit,lfs,dvc,xet", help=f"some of {','.join(TOOLS)}")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each tool")
    parser.add_argument("--prime", type=float, default=2, help="GiB of memory to touch before each command")
    parser.add_argument("--path", action="append", default=[], metavar="TOOL=DIR")
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--work", type=Path, default=Path("build/bench-vcs"))
    parser.add_argument("--models", type=Path, help="where models are made and kept [default: in WORK]")
    parser.add_argument("--out", type=Path, default=Path("build/bench-vcs.json"))
    parser.add_argument("--keep", action="store_true", help="leave the repositories")
    parser.add_argument("--quick", action="store_true", help="no yardsticks, no waiting: to try the program out")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Make the models, let the tools take turns, print tables and write JSON."""
    options = parse(arguments)
    folder = options.models or options.work / "models"
    files = write_models(
        folder, megabytes=options.mb, tunes=options.tunes, dtype=options.dtype, seed=options.seed
    )  # fmt: skip
    models = {path.stem: path for path in files}
    found = machine() if options.quick else facts(options.work, options.prime)
    report: dict[str, object] = {"machine": found}
    runs: list[dict[str, object]] = []
    report |= {"model_bytes": files[0].stat().st_size, "tunes": options.tunes, "dtype": options.dtype, "runs": runs}
    for _ in range(options.repeat):
        for name in options.tools.split(","):
            done = one(name, options, models)
            runs += [done] if done else []
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1))
    print(f"{facts_table(found)}\n\n{tables(runs)}")


if __name__ == "__main__":
    main()
