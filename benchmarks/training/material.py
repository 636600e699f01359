"""What the loops of the training benchmark begin with, in what precision they compute, and how they are timed."""

import json
import multiprocessing
import random
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelgit.train.config import FineTune
from modelgit.train.feature_cache import embedded
from modelgit.train.features import Features, Place, shortened
from modelgit.train.fitting.loop import Run, Task, start
from modelgit.train.networks.network import Design, Inputs, Network
from modelgit.train.networks.registry import build_network
from modelgit.train.pretrained import pretrained_file

EXAMPLES, SIZE, BATCH, CLASSES, RATE = 96, 64, 33, 10, 1e-5
FEWEST, MOST = 4, 28  # words of a text
T = TypeVar("T")
Precision = Literal["fp32", "tf32", "bf16"]


class Spent(NamedTuple):
    """CPU seconds of all processes that took part, and seconds of the clock."""

    cpu_s: float
    clock_s: float


Steps = Callable[[int], Spent]  # takes so many steps and returns what they took


@dataclass(frozen=True)
class Case:
    """What is trained, behind how many frozen stages, where, in what precision, and whether steps are compiled."""

    architecture: str
    stages: int
    device: str = "cpu"
    precision: Precision = "fp32"
    compiled: bool = False


CASES = {"pictures": Case("efficientnet-lite0", 9), "texts": Case("all-minilm-l6-v2", 4), "small": Case("mlp", 0)}

# What the makers state for matrix products, dense, in TFLOP/s: FP32 without tensor cores, TF32 and bfloat16 with.
PEAKS: dict[str, dict[Precision, float]] = {
    "H200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4},
    "H100 80GB HBM3": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4},
    "H100 PCIe": {"fp32": 51.2, "tf32": 378.0, "bf16": 756.0},
    "A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0},
}


def peak_tflops(card: str, precision: Precision) -> float:
    """Return what a card's maker states it can do at most, 0 where that is not known here."""
    return next((peaks[precision] for name, peaks in PEAKS.items() if name in card), 0.0)


def card_here() -> str:
    """Return the name of the GPU that this process sees."""
    return torch.cuda.get_device_name()


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
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    words = [word for word in vocabulary if len(word) > 2 and word.isascii() and word.isalpha() and word.islower()]
    draws = random.Random(0)
    texts = [" ".join(draws.choices(words, k=draws.randint(FEWEST, MOST))) for _ in range(EXAMPLES)]
    return network, texts


# -------------------------------------------------------------------------------------------------------- timing


def set_up(case: Case) -> None:
    """Let this process compute in one thread and in the case's precision; bfloat16 is each loop's own autocast."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = case.precision == "tf32"  # PyTorch allows it to convolutions unless told not to


def now(case: Case) -> Spent:
    """Return CPU seconds of this process and the clock; on CUDA once all that was queued is done."""
    if case.device == "cuda":
        torch.cuda.synchronize()
    return Spent(time.process_time(), time.perf_counter())


def timed(case: Case, take: Callable[[int], None]) -> Steps:
    """Return what takes steps and tells how long they took."""

    def steps(count: int) -> Spent:
        began = now(case)
        take(count)
        ended = now(case)
        return Spent(ended.cpu_s - began.cpu_s, ended.clock_s - began.clock_s)

    return steps


def compared(loops: Mapping[str, Steps], rounds: int, count: int) -> dict[str, list[Spent]]:
    """Return what each loop took in each round; the loops take turns, after two steps to warm up."""
    for steps in loops.values():
        steps(2)
    times: dict[str, list[Spent]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, steps in loops.items():
            times[name].append(steps(count))
    return times


def seconds(times: Mapping[str, Sequence[Spent]], case: Case) -> dict[str, list[float]]:
    """Return the seconds that speed is told by: of the CPU, which neighbours disturb little; on CUDA of the clock."""
    return {
        name: [each.clock_s if case.device == "cuda" else each.cpu_s for each in all_] for name, all_ in times.items()
    }


def ratios(times: Mapping[str, Sequence[float]], name: str, other: str) -> list[float]:
    """Return how many times faster a loop was than another, in each round, in order of size."""
    return sorted(theirs / own for own, theirs in zip(times[name], times[other], strict=True))


def in_a_process(work: Callable[..., T], *arguments: object) -> T:
    """Return what work gives in a process that begins as a copy of this one, as long as nothing was computed here."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(work, arguments)


# ---------------------------------------------------------------------------------------------------------- runs


def fresh_run(given: Material) -> Run:
    """Return a run of modelgit's that has taken no step."""
    case = given.case
    train = {name: np.arange(EXAMPLES) for name in ("a", "b", "c")}
    precision = "bfloat16" if case.precision == "bf16" else "float32"
    config = FineTune(
        steps=10**6, lr=RATE, batch=BATCH, frozen_stages=case.stages, precision=precision, compile=case.compiled
    )
    return start(given.network, Task("benchmark", given.features, given.labels, train), config)


def flops_of_a_step(given: Material) -> int:
    """Return the floating-point operations of a step, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    from modelgit.train.fitting.loop import take_step

    run = fresh_run(replace(given, case=replace(given.case, compiled=False)))
    with FlopCounterMode(display=False) as counter:
        take_step(run)
    return int(counter.get_total_flops())
