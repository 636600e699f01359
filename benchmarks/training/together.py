"""M runs of one network on one device: in turn, in one stack, on streams of one process, in processes.

All take the same steps. Runs in turn are what a worker does with a pipeline's fine-tunings by itself; a stack is what
`modelgit run --together` makes of them; processes are what `--workers` starts. Streams are measured alone: the kernels
of a run wait for those of none, but one thread queues them all.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from benchmarks.training.material import (
    BATCH,
    Case,
    Material,
    Spent,
    Steps,
    again,
    compared,
    flops_of_a_step,
    fresh_run,
    material,
    ratios,
    set_up,
    timed,
)
from modelgit.train.fitting.loop import Run, take_step
from modelgit.train.fitting.together import Stack

IN_TURN = "one after another"


def fresh_runs(given: Material, count: int) -> list[Run]:
    """Return runs on the same examples, each with weights of its own."""
    return [fresh_run(again(given)) for _ in range(count)]


def one_after_another(runs: Sequence[Run], case: Case) -> Steps:
    """Return the steps of runs, each by itself."""

    def take(count: int) -> None:
        for run in runs:
            for _ in range(count):
                take_step(run)
            run.pending.clear()

    return timed(case, take)


def stacked(runs: Sequence[Run], case: Case) -> Steps:
    """Return the steps of runs, side by side in one stack."""

    def take(count: int) -> None:
        with Stack(runs) as stack:
            for _ in range(count):
                stack.take_step()
        for run in runs:
            run.pending.clear()

    return timed(case, take)


def streamed(runs: Sequence[Run], case: Case) -> Steps:
    """Return the steps of runs, each queued on a stream of its own by one thread."""
    streams = [torch.cuda.Stream() for _ in runs]  # type: ignore[no-untyped-call]

    def take(count: int) -> None:
        for _ in range(count):
            for run, stream in zip(runs, streams, strict=True):
                with torch.cuda.stream(stream):
                    take_step(run)
        torch.cuda.synchronize()
        for run in runs:
            run.pending.clear()

    return timed(case, take)


# ------------------------------------------------------------------------------------------------------ processes


class Processes:
    """Processes on one device that take the steps of runs, each those of its share in turn.

    They begin as copies of this one, which must not have computed anything yet; what they set up comes with the first
    steps that they are asked for.
    """

    def __init__(self, case: Case, shares: Sequence[int]) -> None:
        fork = multiprocessing.get_context("fork")
        self._lines: list[Connection] = []
        for runs in shares:
            ours, theirs = fork.Pipe()
            fork.Process(target=serve, args=(theirs, case, runs), daemon=True).start()  # ends with this one
            theirs.close()  # a process that dies is then noticed
            self._lines.append(ours)

    def steps(self, count: int) -> Spent:
        """Take steps in all processes at once, and return what they took until the last was done."""
        began = time.perf_counter()
        for line in self._lines:
            line.send(count)
        cpu_s = sum(line.recv() for line in self._lines)
        return Spent(cpu_s, time.perf_counter() - began)


def serve(line: Connection, case: Case, runs: int) -> None:
    """Take steps as they are asked for, until nobody asks any more."""
    set_up(case)
    count = line.recv()
    steps = one_after_another(fresh_runs(material(case), runs), case)
    while True:
        line.send(steps(count).cpu_s)
        count = line.recv()


def started(case: Case, count: int, processes: int) -> dict[str, Steps]:
    """Return the ways that are processes, each with the runs divided over them."""
    wanted = min(processes or (count if case.device == "cuda" else cores()), count)
    shares = [len(range(first, count, wanted)) for first in range(wanted)]
    found = {f"{wanted} processes": Processes(replace(case, compiled=False), shares).steps}
    if case.compiled:
        found[f"{wanted} processes, compiled"] = Processes(case, shares).steps
    return found


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


# ---------------------------------------------------------------------------------------------------------- table


def ways(given: Material, count: int) -> dict[str, Steps]:
    """Return the ways of one process; the case says whether there are compiled ones among them."""
    plain = replace(given, case=replace(given.case, compiled=False))
    case = plain.case
    found = {IN_TURN: one_after_another(fresh_runs(plain, count), case)}
    if given.case.compiled:
        found[f"{IN_TURN}, compiled"] = one_after_another(fresh_runs(given, count), given.case)
    found["one stack"] = stacked(fresh_runs(plain, count), case)
    if case.device == "cuda":
        found["streams"] = streamed(fresh_runs(plain, count), case)
    return found


def print_together(
    given: Material, apart: Mapping[str, Steps], counts: tuple[int, int, int], peak: float
) -> dict[str, list[Spent]]:
    """Print and return what M runs come to in each way; `counts` are M, rounds and steps of each, `peak` in TFLOP/s."""
    runs, rounds, steps = counts
    times = compared({**ways(given, runs), **apart}, rounds, steps)
    clock = {name: [each.clock_s for each in all_] for name, all_ in times.items()}
    cpu = {name: [each.cpu_s for each in all_] for name, all_ in times.items()}
    samples, each = runs * BATCH * steps, flops_of_a_step(given) / BATCH if peak else 0.0
    print(f"\n| {runs} runs | samples / s | of one after another | the same by CPU time | MFU |\n|---|---|---|---|---|")
    for name in times:
        rate = samples / statistics.median(clock[name])
        faster, leaner = (statistics.median(ratios(found, name, IN_TURN)) for found in (clock, cpu))
        share = f"{rate * each / peak / 1e12:.3f}" if peak else "-"
        print(f"| {name} | {rate:.0f} | {faster:.2f} | {leaner:.2f} | {share} |")
    return times
