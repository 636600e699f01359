"""How fast the training loop is beside a loop written by hand, on the same network, batches and precision.

    python -m benchmarks.train_speed [--architecture efficientnet-lite0] [--stages 9] [--rounds 8] [--steps 10]
        [--trainer] [--out build/bench-train.json]

Both loops take turns, `--steps` steps each, in one process and one thread, on random pictures behind `--stages` frozen
stages; figures are medians over rounds of CPU seconds, and the ratio of samples a second. The hand-written loop is what
one would write without this project: index a tensor, forward, cross-entropy, backward, fused AdamW; it draws its
batches from one tensor and validates nothing. `--trainer` adds the `Trainer` of transformers, if that is installed.
Peak memory is the growth of this process's resident set while a loop runs alone, in a process of its own.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from modelgit.train.config import FineTune
from modelgit.train.features import Features, Place, embedded, run_stages
from modelgit.train.fitting.loop import Task, start, take_step
from modelgit.train.fitting.passes import apply_head, freeze
from modelgit.train.networks.network import Network
from modelgit.train.networks.registry import build_network

IMAGES, SIZE, BATCH, CLASSES, RATE = 96, 64, 33, 10, 1e-5
Steps = Callable[[int], None]


def network_and_features(architecture: str, stages: int) -> tuple[Network, Features, Tensor]:
    """Return a network, what its frozen stages make of random images, and their labels."""
    torch.manual_seed(0)
    network = build_network(architecture, CLASSES).eval()
    pixels = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    clean = embedded(network, pixels, Place(stages, torch.device("cpu"), None, lambda event: None))
    rows = {i: i for i in range(IMAGES)}
    return network, Features(clean, clean.half().unsqueeze(0), rows, rows), torch.arange(IMAGES) % CLASSES


def ours(architecture: str, stages: int) -> Steps:
    """Return modelgit's loop."""
    network, features, labels = network_and_features(architecture, stages)
    train = {name: np.arange(IMAGES) for name in ("a", "b", "c")}
    config = FineTune(steps=10**6, lr=RATE, batch=BATCH, frozen_stages=stages)
    run = start(network, Task("benchmark", features, labels, train), config)

    def steps(count: int) -> None:
        for _ in range(count):
            take_step(run)
        run.pending.clear()

    return steps


def by_hand(architecture: str, stages: int) -> Steps:
    """Return a loop written by hand."""
    network, features, labels = network_and_features(architecture, stages)
    freeze(network, stages)
    inputs = (
        features.clean.contiguous(memory_format=torch.channels_last) if features.clean.dim() == 4 else features.clean
    )
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], RATE, fused=True)
    draws = torch.Generator().manual_seed(0)

    def steps(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(IMAGES, (BATCH,), generator=draws)
            scores = apply_head(network, run_stages(network, inputs[rows], stages, None))
            loss = functional.cross_entropy(scores, labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if not bool(loss.isfinite()):
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


def by_trainer(architecture: str, stages: int) -> Steps:
    """Return the loop of transformers' Trainer; each call trains anew, its own start and end are left out."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    network, features, labels = network_and_features(architecture, stages)
    freeze(network, stages)
    rows = [{"x": features.clean[i % IMAGES], "labels": labels[i % IMAGES]} for i in range(100 * IMAGES)]

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Takes the time between the first and the last step."""

        def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
            if not TRAINER_TIMES:
                TRAINER_TIMES.append(time.process_time())

        def on_train_end(self, args: object, state: object, control: object, **_: object) -> None:
            TRAINER_TIMES.append(time.process_time())

    def steps(count: int) -> None:
        TRAINER_TIMES.clear()
        arguments = TrainingArguments(
            "build/bench-trainer", per_device_train_batch_size=BATCH, max_steps=count, learning_rate=RATE,
            save_strategy="no", logging_strategy="no", report_to=[], use_cpu=True, optim="adamw_torch_fused",
            disable_tqdm=True,
        )  # fmt: skip
        Trainer(Tail(network, stages), arguments, train_dataset=rows, callbacks=[Clock()]).train()

    return steps


TRAINER_TIMES: list[float] = []
LOOPS: dict[str, Callable[[str, int], Steps]] = {"modelgit": ours, "by hand": by_hand, "transformers": by_trainer}


def cpu_seconds(steps: Steps, count: int) -> float:
    """Return the CPU seconds of some steps."""
    TRAINER_TIMES.clear()
    began = time.process_time()
    steps(count)
    return TRAINER_TIMES[1] - TRAINER_TIMES[0] if TRAINER_TIMES else time.process_time() - began


def peak_mb(name: str, arguments: argparse.Namespace) -> float:
    """Return the peak resident set of a process that runs one loop alone."""
    command = [sys.executable, "-m", "benchmarks.train_speed", "--alone", name, "--architecture"]
    command += [arguments.architecture, "--stages", str(arguments.stages), "--steps", str(arguments.steps)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return float(done.stdout)


def first_step_seconds() -> float:
    """Return the CPU seconds from the start of Python to the end of the first step of a small network."""
    code = "from benchmarks.train_speed import ours; ours('mlp', 0)(1)"
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
    parser.add_argument("--alone", choices=sorted(LOOPS), help="run one loop and print its peak memory in MB")
    parser.add_argument("--out", type=Path, default=Path("build/bench-train.json"))
    return parser.parse_args()


def main() -> None:
    """Print the table, and write it."""
    arguments = parsed()
    torch.set_num_threads(1)
    if arguments.alone:
        LOOPS[arguments.alone](arguments.architecture, arguments.stages)(arguments.steps)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    names = ["modelgit", "by hand", *(["transformers"] if arguments.trainer else [])]
    loops = {name: LOOPS[name](arguments.architecture, arguments.stages) for name in names}
    for steps in loops.values():
        steps(2)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name, steps in loops.items():
            times[name].append(cpu_seconds(steps, arguments.steps))
    rate = {name: BATCH * arguments.steps / statistics.median(found) for name, found in times.items()}
    memory = {name: peak_mb(name, arguments) for name in names}
    print("| loop | samples / CPU s | modelgit / it | peak memory, MB | modelgit / it |\n|---|---|---|---|---|")
    for name in names:
        faster, leaner = rate["modelgit"] / rate[name], memory["modelgit"] / memory[name]
        print(f"| {name} | {rate[name]:.0f} | {faster:.2f} | {memory[name]:.0f} | {leaner:.2f} |")
    first = first_step_seconds()
    print(f"\nstart of Python to the first step: {first:.1f} CPU s")
    table = {"arguments": {k: str(v) for k, v in vars(arguments).items()}, "cpu_s": times, "peak_mb": memory}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**table, "first_step_cpu_s": first}, indent=1) + "\n")


if __name__ == "__main__":
    main()
