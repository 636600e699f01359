"""The training loop beside a loop written by hand, and beside the Trainer of transformers: speed, memory, start.

    python -m benchmarks.train_speed [pictures|texts|small] [--rounds 8] [--steps 10] [--trainer] [--together 8]
        [--device cuda --peak-tflops 989] [--starts 3] [--out build/bench-train.json]

One network, the same examples, batch, precision and optimiser for all. `pictures` is the demo's EfficientNet-Lite0
behind nine frozen stages, `texts` MiniLM behind its embeddings and three layers, `small` a perceptron whose steps are
so short that what is spent around them shows. Pictures and words are drawn at random: speed does not depend on them.

The loops take turns, `--steps` steps each, in one process and one thread; a figure is the median over rounds of CPU
seconds, a ratio the median of the ratios within each round. The hand-written loop is what one would write without this
project: index a tensor, forward, cross-entropy, backward, fused AdamW; it validates nothing. `--trainer` adds the
`Trainer`, as a careful user would set it up: the same tensors, indexed a batch at a time, normalisation frozen, nothing
logged, kept or clipped; its own start and end are left out. `--together M` takes the steps of M runs one after another,
and in one stack (as `fine_tune_many` does).

Peak memory is the resident set (CUDA: allocations) of a process that runs one loop alone. Linux is asked to forget the
peak of the set-up, so that "set up" is what lies there before the first step (Python, PyTorch, network, examples) and
"loop" what the steps add to it: gradients, the optimiser's state, activations.

On CUDA seconds are those of the clock, up to the end of what was queued, and the hand-written step is compiled, as is
ours; with the card's `--peak-tflops` the share of them that a loop makes use of is told (MFU; what autograd runs is
counted by torch's FlopCounterMode).
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from modelgit.train.config import FineTune
from modelgit.train.features import Features, Place, embedded, run_stages, shortened
from modelgit.train.fitting.loop import Run, Task, start, take_step
from modelgit.train.fitting.passes import apply_head, freeze
from modelgit.train.fitting.together import Stack
from modelgit.train.networks.network import Design, Inputs, Network
from modelgit.train.networks.registry import build_network
from modelgit.train.pretrained import pretrained_file

EXAMPLES, SIZE, BATCH, CLASSES, RATE = 96, 64, 33, 10, 1e-5
FEWEST, MOST = 4, 28  # words of a text
T = TypeVar("T")
Steps = Callable[[int], float]  # takes so many steps and returns the seconds they took


@dataclass(frozen=True)
class Case:
    """What is trained, behind how many frozen stages, and where."""

    architecture: str
    stages: int
    device: str = "cpu"


CASES = {"pictures": Case("efficientnet-lite0", 9), "texts": Case("all-minilm-l6-v2", 4), "small": Case("mlp", 0)}


@dataclass(frozen=True)
class Material:
    """A network, what its frozen stages make of the examples, and their labels."""

    case: Case
    network: Network
    features: Features
    labels: Tensor

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns inputs and labels as a loop written by hand takes them; texts are cut at the longest of the batch."""
        x = self.features.clean[rows]
        return shortened(x) if self.features.padded and x.device.type == "cpu" else x, self.labels[rows]


def material(case: Case) -> Material:
    """Returns what all loops begin with."""
    torch.manual_seed(0)
    device = torch.device(case.device)
    network, inputs = minilm() if case.architecture == "all-minilm-l6-v2" else (pictured(case.architecture), pictures())
    network = network.to(device)
    place = Place(case.stages, device, None, lambda event: None)
    clean = embedded(network, network.prepare(inputs), place).to(device)
    clean = clean.contiguous(memory_format=torch.channels_last) if clean.dim() == 4 else clean
    rows = {i: i for i in range(EXAMPLES)}
    features = Features(clean, clean.half().unsqueeze(0), rows, rows, device, padded=network.takes == "text")
    return Material(case, network, features, (torch.arange(EXAMPLES) % CLASSES).to(device))


def again(given: Material) -> Material:
    """Return the same examples for a network with the same weights, but of its own."""
    return replace(given, network=deepcopy(given.network))


def pictured(architecture: str) -> Network:
    """Returns a network for pictures, its weights at random."""
    return build_network(architecture, CLASSES)


def pictures() -> Tensor:
    """Returns random pictures."""
    return torch.randint(0, 256, (EXAMPLES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))


def minilm() -> tuple[Network, Inputs]:
    """Returns MiniLM as it is installed, and texts of words that it knows."""
    folder = pretrained_file("all-minilm-l6-v2")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.json")}
    network = build_network(Design("all-minilm-l6-v2", files), CLASSES)
    known = load_file(folder / "model.safetensors")
    network.load_state_dict({name: known.get(name, tensor) for name, tensor in network.state_dict().items()})
    words = [word for word in json.loads(files["tokenizer.json"])["model"]["vocab"] if re.fullmatch("[a-z]{3,}", word)]
    draws = random.Random(0)
    texts = [" ".join(draws.choices(words, k=draws.randint(FEWEST, MOST))) for _ in range(EXAMPLES)]
    return network, texts


# ------------------------------------------------------------------------------------------------------ the loops


def seconds(case: Case) -> float:
    """Return the CPU seconds of this process so far; on CUDA the clock, once all that was queued is done."""
    if case.device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(case: Case, take: Callable[[int], None]) -> Steps:
    """Return what takes steps and tells how long they took."""

    def steps(count: int) -> float:
        began = seconds(case)
        take(count)
        return seconds(case) - began

    return steps


def fresh_run(given: Material, *, compiled: bool) -> Run:
    """Return a run of modelgit's that has taken no step."""
    train = {name: np.arange(EXAMPLES) for name in ("a", "b", "c")}
    config = FineTune(steps=10**6, lr=RATE, batch=BATCH, frozen_stages=given.case.stages, compile=compiled)
    return start(given.network, Task("benchmark", given.features, given.labels, train), config)


def fresh_runs(given: Material, count: int) -> list[Run]:
    """Return runs on the same examples, each with weights of its own."""
    return [fresh_run(again(given), compiled=False) for _ in range(count)]


def ours(given: Material) -> Steps:
    """Return modelgit's loop."""
    return one_after_another([fresh_run(given, compiled=given.case.device != "cpu")], given.case)


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


def by_hand(given: Material) -> Steps:
    """Return a loop written by hand."""
    network, stages = given.network, given.case.stages
    freeze(network, stages)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], RATE, fused=True)
    draws = torch.Generator().manual_seed(0)
    on_cpu = given.case.device == "cpu"

    def scores_of(x: Tensor) -> Tensor:
        return apply_head(network, run_stages(network, x, stages, None))

    forward = scores_of if on_cpu else torch.compile(scores_of, dynamic=False, mode="reduce-overhead")

    def take(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(EXAMPLES, (BATCH,), generator=draws).to(given.labels.device, non_blocking=True)
            inputs, labels = given.batch(rows)
            optimiser.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(forward(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if on_cpu and not bool(loss.isfinite()):
                raise SystemExit("the loss is not finite")

    return timed(given.case, take)


class Tail(nn.Module):
    """What lies behind the frozen stages, as the Trainer wants a model: inputs and labels to a loss."""

    def __init__(self, network: Network, stages: int) -> None:
        super().__init__()
        self.network, self._stages = network, stages

    def train(self, mode: bool = True) -> "Tail":
        """Stays as it is: statistics frozen and no dropout, as in the other loops."""
        return super().train(False)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the loss of a batch."""
        scores = apply_head(self.network, run_stages(self.network, x, self._stages, None))
        return {"loss": functional.cross_entropy(scores, labels)}


def by_trainer(given: Material) -> Steps:
    """Return the loop of transformers' Trainer; each call trains anew, its own start and end are left out."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    case, times = given.case, list[float]()
    freeze(given.network, case.stages)

    class Clock(TrainerCallback):
        """Takes the time when the first step begins, and when the last has ended."""

        def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
            if not times:
                times.append(seconds(case))

        def on_train_end(self, args: object, state: object, control: object, **_: object) -> None:
            times.append(seconds(case))

    def collated(rows: Sequence[int]) -> dict[str, Tensor]:
        inputs, labels = given.batch(torch.tensor(rows, device=given.labels.device))
        return {"x": inputs, "labels": labels}

    def steps(count: int) -> float:
        times.clear()
        arguments = TrainingArguments(
            "build/bench-trainer", per_device_train_batch_size=BATCH, max_steps=count, learning_rate=RATE,
            lr_scheduler_type="constant", max_grad_norm=0.0, optim="adamw_torch_fused", remove_unused_columns=False,
            dataloader_drop_last=True, dataloader_pin_memory=False, use_cpu=case.device == "cpu",
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        dataset = list(range(EXAMPLES // BATCH * BATCH))
        model = Tail(given.network, case.stages)
        trainer = Trainer(model, arguments, collated, dataset, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return times[1] - times[0]

    return steps


LOOPS: dict[str, Callable[[Material], Steps]] = {"modelgit": ours, "by hand": by_hand, "transformers": by_trainer}
LIBRARIES = {"modelgit": (), "by hand": ("torch._dynamo",), "transformers": ("transformers.trainer", "accelerate")}


# ------------------------------------------------------------------------------------------------------- measures


def compared(loops: Mapping[str, Steps], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each loop in each round; the loops take turns, after two steps to warm up."""
    for steps in loops.values():
        steps(2)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(arguments.rounds):
        for name, steps in loops.items():
            times[name].append(steps(arguments.steps))
    return times


def ratios(times: Mapping[str, Sequence[float]], name: str, other: str) -> list[float]:
    """Return how many times faster a loop was than another, in each round, in order of size."""
    return sorted(theirs / own for own, theirs in zip(times[name], times[other], strict=True))


def flops_of_a_step(given: Material) -> int:
    """Return the floating-point operations of a step, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    run = fresh_run(given, compiled=False)
    with FlopCounterMode(display=False) as counter:
        take_step(run)
    return int(counter.get_total_flops())


def memory_alone(name: str, case: Case, count: int) -> tuple[float, float]:
    """Return the MB that lie in the memory of a fresh process when a loop is set up, and their peak in its steps."""
    for library in LIBRARIES[name]:  # once, for that process and for this one, which needs them later
        import_module(library)
    return in_a_process(memory_here, name, case, count)


def in_a_process(work: Callable[..., T], *arguments: object) -> T:
    """Return what work gives in a process that begins as a copy of this one, as long as nothing was computed here."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(work, arguments)


def memory_here(name: str, case: Case, count: int) -> tuple[float, float]:
    """Return the MB that lie in the memory of this process when a loop is set up, and their peak in its steps."""
    torch.set_num_threads(1)
    steps = LOOPS[name](material(case))
    gc.collect()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        steps(count)
        return before, torch.cuda.max_memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what the set-up has given back would hide what the steps take
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak, see proc(5)
    before = peak_mb()
    steps(count)
    return before, peak_mb()


def peak_mb() -> float:
    """Return the peak of this process's resident set, in MB."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) / 1024


def first_step_here(case: Case) -> tuple[float, float]:
    """Return the CPU seconds of this process until a training is ready for its first step, and of that step."""
    torch.set_num_threads(1)
    steps = ours(material(case))
    ready = time.process_time()
    return ready, steps(1)


# --------------------------------------------------------------------------------------------------------- tables


def print_loops(case: Case, arguments: argparse.Namespace) -> dict[str, object]:
    """Print and return what the loops come to."""
    names = ["modelgit", "by hand", *(["transformers"] if arguments.trainer else [])]
    alone = {name: memory_alone(name, case, arguments.steps) for name in names}  # first, as processes are forked
    given = material(case)
    times = compared({name: LOOPS[name](again(given)) for name in names}, arguments)
    rate = {name: BATCH * arguments.steps / statistics.median(found) for name, found in times.items()}
    print("| loop | samples / s | modelgit / it (all rounds) | MB set up + loop | modelgit / it: peak, loop |")
    print("|---|---|---|---|---|")
    own, own_peak = alone["modelgit"]
    for name in names:
        found, (before, peak) = ratios(times, "modelgit", name), alone[name]
        rounds = f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"
        leaner = f"{own_peak / peak:.2f}, {(own_peak - own) / (peak - before):.2f}"
        print(f"| {name} | {rate[name]:.0f} | {rounds} | {before:.0f} + {peak - before:.0f} | {leaner} |")
    table: dict[str, object] = {"seconds": times, "samples_per_s": rate, "set_up_and_peak_mb": alone}
    if arguments.peak_tflops:
        each = flops_of_a_step(given) / BATCH
        shares = {name: each * value / arguments.peak_tflops / 1e12 for name, value in rate.items()}
        print("\nshare of the peak (MFU): " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
        table["mfu"] = shares
    if arguments.together:
        table["together_s"] = print_together(given, arguments)
    return table


def print_together(given: Material, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Print and return what runs come to in turn, and in one stack."""
    count = arguments.together
    loops = {
        "one after another": one_after_another(fresh_runs(given, count), given.case),
        "together": stacked(fresh_runs(given, count), given.case),
    }
    times = compared(loops, arguments)
    print(f"\n| {count} runs | samples / s | of one after another |\n|---|---|---|")
    for name, found in times.items():
        rate = count * BATCH * arguments.steps / statistics.median(found)
        print(f"| {name} | {rate:.0f} | {statistics.median(ratios(times, name, 'one after another')):.2f} |")
    return times


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description="The training loop beside one written by hand.")
    parser.add_argument("case", nargs="?", choices=sorted(CASES), default="pictures")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--trainer", action="store_true", help="add the Trainer of transformers")
    parser.add_argument("--together", type=int, default=0, metavar="M", help="add M runs, in turn and in one stack")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device at this precision: tells MFU")
    parser.add_argument("--starts", type=int, default=3, help="how often the first step is timed")
    parser.add_argument("--out", type=Path, default=Path("build/bench-train.json"))
    return parser.parse_args()


def main() -> None:
    """Print the tables, and write them."""
    imported_s = time.process_time()
    arguments = parsed()
    torch.set_num_threads(1)
    chosen = CASES[arguments.case]
    case = Case(chosen.architecture, chosen.stages, arguments.device)
    table: dict[str, object] = {"arguments": {k: str(v) for k, v in vars(arguments).items()}}
    starts = [in_a_process(first_step_here, case) for _ in range(arguments.starts)]
    ready_s, step_s = (statistics.median(each) for each in zip(*starts, strict=True))
    table["first_step_cpu_s"] = {"imports": imported_s, "network and examples": ready_s, "first step": step_s}
    table.update(print_loops(case, arguments))
    print(f"\nstart of Python to the end of the first step: {imported_s + ready_s + step_s:.1f} CPU s,")
    print(f"imports {imported_s:.1f}, network and examples {ready_s:.1f}, step {step_s:.1f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
