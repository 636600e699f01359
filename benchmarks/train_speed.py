"""How fast the training loop is beside a loop written by hand, on the same network, batches and precision.

    python -m benchmarks.train_speed [--architecture efficientnet-lite0] [--stages 9] [--rounds 8] [--steps 10]
        [--trainer] [--together 8] [--device cuda --peak-tflops 989] [--out build/bench-train.json]

Both loops take turns, `--steps` steps each, in one process and one thread, on random pictures behind `--stages` frozen
stages; figures are medians over rounds of CPU seconds, and the ratio of samples a second. The hand-written loop is what
one would write without this project: index a tensor, forward, cross-entropy, backward, fused AdamW; it draws its
batches from one tensor and validates nothing. `--trainer` adds the `Trainer` of transformers, if that is installed.
`--together M` takes the steps of M runs one after another, and in one stack (as `fine_tune_many` does).
On CUDA seconds are those of the clock, up to the end of what was queued, and the hand-written step is compiled, as is
ours; with the card's `--peak-tflops` the share of them that a loop makes use of is told (MFU; what autograd runs is
counted by torch's FlopCounterMode). Peak memory is the resident set (CUDA: allocations) of a loop alone in a process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from modelgit.train.config import FineTune
from modelgit.train.features import Features, Place, embedded, run_stages
from modelgit.train.fitting.loop import Run, Task, start, take_step
from modelgit.train.fitting.passes import apply_head, freeze
from modelgit.train.fitting.together import Stack
from modelgit.train.networks.network import Network
from modelgit.train.networks.registry import build_network

IMAGES, SIZE, BATCH, CLASSES, RATE = 96, 64, 33, 10, 1e-5
Steps = Callable[[int], None]


@dataclass(frozen=True)
class Case:
    """What is trained, and on what."""

    architecture: str
    stages: int
    device: str = "cpu"


def network_and_features(case: Case) -> tuple[Network, Features, Tensor]:
    """Return a network, what its frozen stages make of random images, and their labels."""
    torch.manual_seed(0)
    device = torch.device(case.device)
    network = build_network(case.architecture, CLASSES).to(device).eval()
    pixels = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    clean = embedded(network, network.prepare(pixels), Place(case.stages, device, None, lambda event: None)).to(device)
    rows = {i: i for i in range(IMAGES)}
    labels = (torch.arange(IMAGES) % CLASSES).to(device)
    return network, Features(clean, clean.half().unsqueeze(0), rows, rows), labels


def fresh_run(case: Case, *, compiled: bool) -> Run:
    """Return a run of modelgit's that has taken no step."""
    network, features, labels = network_and_features(case)
    train = {name: np.arange(IMAGES) for name in ("a", "b", "c")}
    config = FineTune(steps=10**6, lr=RATE, batch=BATCH, frozen_stages=case.stages, compile=compiled)
    return start(network, Task("benchmark", features, labels, train), config)


def ours(case: Case) -> Steps:
    """Return modelgit's loop."""
    run = fresh_run(case, compiled=case.device != "cpu")

    def steps(count: int) -> None:
        for _ in range(count):
            take_step(run)
        run.pending.clear()

    return steps


def one_after_another(case: Case, count: int) -> Steps:
    """Return the steps of so many runs, each by itself."""
    runs = [fresh_run(case, compiled=False) for _ in range(count)]

    def steps(number: int) -> None:
        for run in runs:
            for _ in range(number):
                take_step(run)
            run.pending.clear()

    return steps


def stacked(case: Case, count: int) -> Steps:
    """Return the steps of so many runs, side by side in one stack."""
    runs = [fresh_run(case, compiled=False) for _ in range(count)]

    def steps(number: int) -> None:
        with Stack(runs) as stack:
            for _ in range(number):
                stack.take_step()
        for run in runs:
            run.pending.clear()

    return steps


def by_hand(case: Case) -> Steps:
    """Return a loop written by hand."""
    network, features, labels = network_and_features(case)
    stages = case.stages
    freeze(network, stages)
    inputs = (
        features.clean.contiguous(memory_format=torch.channels_last) if features.clean.dim() == 4 else features.clean
    )
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], RATE, fused=True)
    draws = torch.Generator().manual_seed(0)

    def scores_of(x: Tensor) -> Tensor:
        return apply_head(network, run_stages(network, x, stages, None))

    forward = scores_of if case.device == "cpu" else torch.compile(scores_of, dynamic=False, mode="reduce-overhead")

    def steps(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(IMAGES, (BATCH,), generator=draws).to(inputs.device, non_blocking=True)
            scores = forward(inputs[rows])
            loss = functional.cross_entropy(scores, labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if case.device == "cpu" and not bool(loss.isfinite()):
                raise SystemExit("the loss is not finite")

    return steps


class Tail(nn.Module):
    """What lies behind the frozen stages, as transformers' Trainer wants a model: inputs and labels to a loss."""

    def __init__(self, network: Network, stages: int) -> None:
        super().__init__()
        self.network, self._stages = network, stages

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the loss of a batch."""
        scores = apply_head(self.network, run_stages(self.network, x, self._stages, None))
        return {"loss": functional.cross_entropy(scores, labels)}


def by_trainer(case: Case) -> Steps:
    """Return the loop of transformers' Trainer; each call trains anew, its own start and end are left out."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    network, features, labels = network_and_features(case)
    stages = case.stages
    freeze(network, stages)
    rows = [{"x": features.clean[i % IMAGES].cpu(), "labels": labels[i % IMAGES].cpu()} for i in range(100 * IMAGES)]

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Takes the time between the first and the last step."""

        def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
            if not TRAINER_TIMES:
                TRAINER_TIMES.append(seconds(case))

        def on_train_end(self, args: object, state: object, control: object, **_: object) -> None:
            TRAINER_TIMES.append(seconds(case))

    def steps(count: int) -> None:
        TRAINER_TIMES.clear()
        arguments = TrainingArguments(
            "build/bench-trainer", per_device_train_batch_size=BATCH, max_steps=count, learning_rate=RATE,
            save_strategy="no", logging_strategy="no", report_to=[], use_cpu=case.device == "cpu",
            optim="adamw_torch_fused", disable_tqdm=True,
        )  # fmt: skip
        Trainer(Tail(network, stages), arguments, train_dataset=rows, callbacks=[Clock()]).train()

    return steps


TRAINER_TIMES: list[float] = []
LOOPS: dict[str, Callable[[Case], Steps]] = {"modelgit": ours, "by hand": by_hand, "transformers": by_trainer}


def seconds(case: Case) -> float:
    """Return the CPU seconds of this process so far; on CUDA the clock, once all that was queued is done."""
    if case.device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(steps: Steps, count: int, case: Case) -> float:
    """Return the seconds of some steps."""
    TRAINER_TIMES.clear()
    began = seconds(case)
    steps(count)
    return TRAINER_TIMES[1] - TRAINER_TIMES[0] if TRAINER_TIMES else seconds(case) - began


def flops_of_a_step(case: Case) -> int:
    """Return the floating-point operations of a step, forward and backward."""
    run = fresh_run(case, compiled=False)
    with FlopCounterMode(display=False) as counter:
        take_step(run)
    return int(counter.get_total_flops())


def compared(case: Case, loops: Mapping[str, Steps], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each loop in each round; the loops take turns, after two steps to warm up."""
    for steps in loops.values():
        steps(2)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(arguments.rounds):
        for name, steps in loops.items():
            times[name].append(seconds_of(steps, arguments.steps, case))
    return times


def peak_mb(name: str, arguments: argparse.Namespace) -> float:
    """Return the peak resident set of a process that runs one loop alone."""
    command = [sys.executable, "-m", "benchmarks.train_speed", "--alone", name, "--architecture"]
    command += [
        arguments.architecture,
        "--device",
        arguments.device,
        "--stages",
        str(arguments.stages),
        "--steps",
        str(arguments.steps),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return float(done.stdout.splitlines()[-1])  # the Trainer prints as well


def first_step_seconds() -> float:
    """Return the CPU seconds from the start of Python to the end of the first step of a small network."""
    code = "from benchmarks.train_speed import Case, ours; ours(Case('mlp', 0))(1)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description="The training loop beside one written by hand.")
    parser.add_argument("--architecture", default="efficientnet-lite0")
    parser.add_argument("--stages", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--trainer", action="store_true", help="add the Trainer of transformers")
    parser.add_argument("--together", type=int, default=0, metavar="M", help="add M runs, in turn and in one stack")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device at this precision: tells MFU")
    parser.add_argument("--alone", choices=sorted(LOOPS), help="run one loop and print its peak memory in MB")
    parser.add_argument("--out", type=Path, default=Path("build/bench-train.json"))
    return parser.parse_args()


def print_together(case: Case, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Print and return what runs come to in turn, and in one stack."""
    count = arguments.together
    loops = {"one after another": one_after_another(case, count), "together": stacked(case, count)}
    times = compared(case, loops, arguments)
    rate = {name: count * BATCH * arguments.steps / statistics.median(found) for name, found in times.items()}
    print(f"\n| {count} runs | samples / s | of one after another |\n|---|---|---|")
    for name, value in rate.items():
        print(f"| {name} | {value:.0f} | {value / rate['one after another']:.2f} |")
    return times


def print_loops(case: Case, arguments: argparse.Namespace) -> dict[str, object]:
    """Print and return what the loops come to."""
    names = ["modelgit", "by hand", *(["transformers"] if arguments.trainer else [])]
    times = compared(case, {name: LOOPS[name](case) for name in names}, arguments)
    rate = {name: BATCH * arguments.steps / statistics.median(found) for name, found in times.items()}
    memory = {name: peak_mb(name, arguments) for name in names}
    print("| loop | samples / s | modelgit / it | peak memory, MB | modelgit / it |\n|---|---|---|---|---|")
    for name in names:
        faster, leaner = rate["modelgit"] / rate[name], memory["modelgit"] / memory[name]
        print(f"| {name} | {rate[name]:.0f} | {faster:.2f} | {memory[name]:.0f} | {leaner:.2f} |")
    found: dict[str, object] = {"seconds": times, "samples_per_s": rate, "peak_mb": memory}
    if arguments.peak_tflops:
        each = flops_of_a_step(case) / BATCH
        found["mfu"] = {name: each * value / arguments.peak_tflops / 1e12 for name, value in rate.items()}
        print(f"\nshare of the peak (MFU): {found['mfu']}")
    return found


def main() -> None:
    """Print the tables, and write them."""
    arguments = parsed()
    torch.set_num_threads(1)
    case = Case(arguments.architecture, arguments.stages, arguments.device)
    if arguments.alone:
        LOOPS[arguments.alone](case)(arguments.steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(peak if case.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20)
        return
    table = {"arguments": {k: str(v) for k, v in vars(arguments).items()}, **print_loops(case, arguments)}
    if arguments.together:
        table["together_s"] = print_together(case, arguments)
    table["first_step_cpu_s"] = first_step_seconds()
    print(f"\nstart of Python to the first step: {table['first_step_cpu_s']:.1f} CPU s")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
