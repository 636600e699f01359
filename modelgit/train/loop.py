"""The loop: one readable pass for CPU and CUDA.

On the CPU, with one thread, the same inputs and seed give the same weights bit for bit: every random number comes
from generators seeded here.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelgit.errors import TrainingError
from modelgit.events import Advanced, Finished, Listener, Started
from modelgit.train.config import FineTune, seed_hash
from modelgit.train.datasets import Integers
from modelgit.train.features import Features, frozen_modules, run_stages
from modelgit.train.models import Network

REPORT_EVERY = 10


@dataclass(frozen=True, slots=True)
class Point:
    """The state of a run after `step` steps; the loss is the mean since the last point."""

    step: int
    loss: float
    val_accuracy: float | None


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained on: features, labels (n_all,), and the training images of each domain."""

    name: str
    features: Features
    labels: Tensor
    train: Mapping[str, Integers]


def fit(
    network: Network, task: Task, config: FineTune, validate: Callable[[], float], listener: Listener
) -> list[Point]:
    """Trains `network` in place behind its frozen stages and returns the curve.

    Raises:
        TrainingError: the loss is not finite, or memory runs out.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
    mean = RunningMean(parameters, config.average_from) if config.averaging == "sma" else None
    points: list[Point] = []
    losses: list[float] = []
    listener(Started(task.name, config.steps, "steps"))
    began = time.monotonic()
    for step, (x, y) in enumerate(batches(task, config), 1):
        set_rate(optimiser, config, step)
        losses.append(update(network, optimiser, x, y, config, step))
        if mean is not None:
            mean.add(parameters, step)
        if step % REPORT_EVERY == 0 or step == config.steps:
            rate = step / (time.monotonic() - began)
            listener(Advanced(task.name, (step - 1) % REPORT_EVERY + 1, f"loss {losses[-1]:.3f}, {rate:.1f} steps/s"))
        if step == config.steps or (config.eval_every and step % config.eval_every == 0):
            with mean.in_place(parameters) if mean is not None else nullcontext():
                points.append(Point(step, sum(losses) / len(losses), validate()))
            losses.clear()
    if mean is not None:
        mean.put(parameters)
    check_finite(network, config.steps)
    listener(Finished(task.name, f"validation {100 * (points[-1].val_accuracy or 0):.1f} %"))
    return points


def freeze(network: Network, stages: int) -> None:
    """Leaves gradients to what comes behind the first `stages` stages."""
    network.eval()
    network.requires_grad_(True)
    for frozen in frozen_modules(network, stages):
        frozen.requires_grad_(False)


def batches(task: Task, config: FineTune) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields `config.steps` batches: equal parts of every domain, drawn with replacement, each in a random view."""
    draws = torch.Generator().manual_seed(seed_hash("batches", config.seed))
    per_domain = max(1, config.batch // len(task.train))
    views = task.features.views.shape[0]
    for _ in range(config.steps):
        chosen: list[int] = []
        for indices in task.train.values():
            rows = torch.randint(len(indices), (per_domain,), generator=draws)
            chosen += indices[rows.numpy()].tolist()
        view = torch.randint(views, (len(chosen),), generator=draws)
        yield task.features.augmented(chosen, view), task.labels[chosen]


def set_rate(optimiser: torch.optim.Optimizer, config: FineTune, step: int) -> None:
    """Warms the learning rate up linearly."""
    rate = config.lr * min(1.0, step / max(1, config.warmup_steps))
    for group in optimiser.param_groups:
        group["lr"] = rate


def update(
    network: Network, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, config: FineTune, step: int
) -> float:
    """Takes one step and returns its loss."""
    try:
        loss = functional.cross_entropy(logits(network, x, config, step), y)
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise TrainingError(
                f"step {step}: the loss is {value}{culprit(network)}", hint="turn the learning rate down"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(
            f"step {step}: out of memory on {x.device}", hint="turn down batch or views, or freeze more stages"
        ) from error
    return value


def out_of_memory(error: RuntimeError) -> bool:
    """Tells whether an error of PyTorch means that memory ran out: a class on CUDA, words on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_finite(network: Network, step: int) -> None:
    """Raises TrainingError if a tensor of the result is not finite: the last step's loss does not show it."""
    if found := culprit(network):
        raise TrainingError(f"step {step}: the loss is finite{found}", hint="turn the learning rate down")


def culprit(network: Network) -> str:
    """Returns which tensor is not finite, in words."""
    bad = [name for name, tensor in network.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    return f", and tensor '{bad[0]}' is not finite" if bad else ""


def logits(network: Network, x: Tensor, config: FineTune, step: int) -> Tensor:
    """Returns the class scores in training, dropout before the head included."""
    z = run_stages(network, x, config.frozen_stages, None)
    if config.dropout:
        draws = torch.Generator(z.device).manual_seed(seed_hash("dropout", config.seed, step))
        kept = torch.rand(z.shape, generator=draws, device=z.device) >= config.dropout
        z = z * kept / (1 - config.dropout)
    return apply_head(network, z)


def apply_head(network: Network, z: Tensor) -> Tensor:
    """Returns the class scores of feature vectors (n, feature_size)."""
    result: Tensor = network.get_submodule(network.head_name)(z)
    return result


class RunningMean:
    """The mean of the weights along a run: SMA, Arpit et al. 2022, arXiv:2110.10832, eq. 1."""

    def __init__(self, parameters: list[nn.Parameter], start: int) -> None:
        self._start = start
        self._count = 0
        self._mean = [p.detach().clone() for p in parameters]

    def add(self, parameters: list[nn.Parameter], step: int) -> None:
        """Takes the weights after `step` in; before the start the mean follows the weights."""
        self._count = self._count + 1 if step > self._start else 1
        for mean, parameter in zip(self._mean, parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 / self._count)

    @contextmanager
    def in_place(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Puts the mean in the network's place for as long as the block runs: the mean is what is validated."""
        kept = [p.detach().clone() for p in parameters]
        self.put(parameters)
        try:
            yield
        finally:
            give(parameters, kept)

    def put(self, parameters: list[nn.Parameter]) -> None:
        """Gives the network the mean."""
        give(parameters, self._mean)


def give(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    """Sets parameters to values."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
