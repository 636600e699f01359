"""The loop: one readable pass for CPU and CUDA.

On the CPU, with one thread, the same inputs and seed give the same weights bit for bit, also when the run was stopped
and resumed: every random number comes from generators seeded here, and all that changes is part of `Run`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from modelgit.errors import TrainingError
from modelgit.events import Advanced, Finished, Listener, Started
from modelgit.train.config import FineTune, seed_hash
from modelgit.train.data.dataset import Integers
from modelgit.train.features import Features, frozen_modules, run_stages
from modelgit.train.fitting.averaging import Average, Weights, average_of, copies
from modelgit.train.fitting.objectives import Domain, Step, begins_afresh, loss_of
from modelgit.train.fitting.optimisers import learning_rate, optimiser_for
from modelgit.train.models import Network

REPORT_EVERY = 10


@dataclass(frozen=True, slots=True)
class Validation:
    """What a validation found: mean over the training domains of accuracy and cross-entropy."""

    accuracy: float
    loss: float


@dataclass(frozen=True, slots=True)
class Point:
    """The state of a run after `step` steps; `loss` is the mean in training since the last point."""

    step: int
    loss: float
    val_accuracy: float | None
    val_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained on: features, labels (n_all,), and the training images of each domain."""

    name: str
    features: Features
    labels: Tensor
    train: Mapping[str, Integers]


@dataclass(slots=True)
class Run:
    """A fine-tuning under way: everything that a step changes."""

    network: Network
    task: Task
    config: FineTune
    parameters: list[nn.Parameter]  # all that the run may change
    average: Average
    draws: torch.Generator
    optimiser: torch.optim.Optimizer
    domains: list[Domain]  # of every domain: rows of the features' views, labels
    step: int = 0
    carried: dict[str, Tensor] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)  # since the last point
    best: tuple[float, Weights] | None = None
    raw: Weights | None = None  # the last weights, where their average is what the run is for
    over: bool = False


Validate = Callable[[], Validation]
Keep = Callable[[Run], None]


def start(network: Network, task: Task, config: FineTune) -> Run:
    """Returns a run that has not taken a step; what stays as it is has lost its gradients."""
    freeze(network, config.frozen_stages)
    if config.trains != "all":
        head = set(network.get_submodule(network.head_name).parameters())
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.requires_grad and (parameter in head) == (config.trains == "head"))
    parameters = [p for p in network.parameters() if p.requires_grad]
    draws = torch.Generator().manual_seed(seed_hash("batches", config.seed))
    optimiser = optimiser_for(trained_at(network, parameters, config, 1), config)
    run = Run(network, task, config, parameters, average_of(config.averaging), draws, optimiser, domains_of(task))
    set_trained(run, 1)
    return run


def domains_of(task: Task) -> list[Domain]:
    """Returns where the images of every domain stand among the views, and their labels."""
    features = task.features
    return [
        (torch.tensor([features.viewed[int(i)] for i in indices], device=features.views.device), task.labels[indices])
        for indices in task.train.values()
    ]


def fit(run: Run, validate: Validate, listener: Listener, keep: Keep = lambda _run: None) -> list[Point]:
    """Trains the run's network in place and returns the curve; `keep` is called after every validation but the last.

    Raises:
        TrainingError: the loss is not finite, or memory runs out.
    """
    config, task = run.config, run.task
    listener(Started(task.name, config.steps, "steps"))
    if run.step:
        listener(Advanced(task.name, run.step, "resumed"))
    elif config.keep == "best":
        consider(run, validate())
    began, first = time.monotonic(), run.step
    while run.step < config.steps and not run.over:
        take_step(run)
        if run.step % REPORT_EVERY == 0 or run.step == config.steps:
            rate = (run.step - first) / (time.monotonic() - began)
            done = (run.step - first - 1) % REPORT_EVERY + 1
            listener(Advanced(task.name, done, f"loss {settled(run)[-1]:.3f}, {rate:.1f} steps/s"))
        if run.step == config.steps or (config.eval_every and run.step % config.eval_every == 0):
            look(run, validate)
            if run.step < config.steps and not run.over:
                keep(run)
    finish(run)
    listener(Finished(task.name, f"validation {100 * (run.points[-1].val_accuracy or 0):.1f} %"))
    return run.points


def freeze(network: Network, stages: int) -> None:
    """Leaves gradients to what comes behind the first `stages` stages."""
    network.eval()
    network.requires_grad_(True)
    for frozen in frozen_modules(network, stages):
        frozen.requires_grad_(False)


def trained_at(network: Network, parameters: list[nn.Parameter], config: FineTune, number: int) -> list[nn.Parameter]:
    """Returns what step `number` changes: the head alone while it is probed again."""
    if number > config.reprobe_steps:
        return parameters
    return list(network.get_submodule(network.head_name).parameters())


# -------------------------------------------------------------------------------------------------------- a step


def take_step(run: Run) -> None:
    """Takes the next step."""
    config, number = run.config, run.step + 1
    if number == config.reprobe_steps + 1 > 1 or begins_afresh(config.objective, number):
        run.optimiser = optimiser_for(set_trained(run, number), config)
    for group in run.optimiser.param_groups:
        group["lr"] = learning_rate(config, number)
    run.losses.append(update(run, number))
    run.step = number
    run.average.add(run.parameters, number)


def set_trained(run: Run, number: int) -> list[nn.Parameter]:
    """Leaves gradients to what step `number` changes, and returns it."""
    trained = trained_at(run.network, run.parameters, run.config, number)
    for parameter in run.parameters:
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def update(run: Run, number: int) -> Tensor:
    """Changes the weights once and returns the loss."""
    config = run.config
    total = torch.zeros((), device=run.task.labels.device)
    try:
        run.optimiser.zero_grad(set_to_none=True)
        for part in range(config.accumulate):
            step = Step(number, (config.seed, part), forward(run, number, part), batch(run), run.carried)
            loss = loss_of(config.objective, step) / config.accumulate
            if loss.device.type == "cpu":  # elsewhere a look at the value would have to wait for it
                refuse_infinite(run, number, loss.item())
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if config.clip:
            nn.utils.clip_grad_norm_([p for p in run.parameters if p.grad is not None], config.clip)
        run.optimiser.step()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(
            f"step {number}: out of memory on {total.device}",
            hint="turn down batch or views, freeze more stages, or accumulate smaller batches",
        ) from error
    return total


def batch(run: Run) -> list[Domain]:
    """Returns equal parts of every domain, drawn with replacement, each image in a random view."""
    features, count = run.task.features, len(run.domains)
    per_domain = run.config.batch_per_domain or max(1, run.config.batch // count)
    drawn = [torch.randint(len(rows), (per_domain,), generator=run.draws) for rows, _ in run.domains]
    view = torch.randint(features.views.shape[0], (per_domain * count,), generator=run.draws)
    rows = torch.cat([rows[chosen.to(rows.device)] for (rows, _), chosen in zip(run.domains, drawn, strict=True)])
    labels = [labels[chosen.to(labels.device)] for (_, labels), chosen in zip(run.domains, drawn, strict=True)]
    return list(zip(torch.split(features.augmented(rows, view), per_domain), labels, strict=True))


def forward(run: Run, number: int, part: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns the network as objectives see it in one step: inputs to features and class scores, dropout included."""
    config = run.config

    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(x, config):
            z = run_stages(run.network, x, config.frozen_stages, None)
            if config.dropout:
                stream = ("dropout", config.seed, number) if part == 0 else ("dropout", config.seed, number, part)
                draws = torch.Generator(z.device).manual_seed(seed_hash(*stream))
                kept = torch.rand(z.shape, generator=draws, device=z.device) >= config.dropout
                z = z * kept / (1 - config.dropout)
            return z.float(), apply_head(run.network, z).float()

    return outputs


def autocast(x: Tensor, config: FineTune) -> AbstractContextManager[object]:
    """Returns a context in which matrix products are done in the precision asked for."""
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(x.device.type, torch.bfloat16)


def apply_head(network: Network, z: Tensor) -> Tensor:
    """Returns the class scores of feature vectors (n, feature_size)."""
    result: Tensor = network.get_submodule(network.head_name)(z)
    return result


# ----------------------------------------------------------------------------------------------------- looking


def settled(run: Run) -> list[float]:
    """Returns the losses since the last point. Raises TrainingError if one is not finite, naming step and tensor."""
    values: list[float] = torch.stack(run.losses).tolist()
    for number, value in enumerate(values, run.step - len(values) + 1):
        refuse_infinite(run, number, value)
    return values


def refuse_infinite(run: Run, number: int, loss: float) -> None:
    """Raises TrainingError for a loss that is not finite, naming step and tensor."""
    if not math.isfinite(loss):
        hint = "turn the learning rate down"
        raise TrainingError(f"step {number}: the loss is {loss}{culprit(run.network)}", hint=hint)


def look(run: Run, validate: Validate) -> None:
    """Validates the weights, or their average where that is what counts, and enters a point."""
    losses = settled(run)
    with in_place(run.parameters, None if run.average.validates_raw else run.average.weights()):
        found = validate()
        consider(run, found)
    run.points.append(Point(run.step, sum(losses) / len(losses), found.accuracy, found.loss))
    run.losses.clear()
    run.over = run.average.validated(found.loss)


def consider(run: Run, found: Validation) -> None:
    """Keeps the weights in place if they are the best so far and the best are wanted."""
    if run.config.keep == "best" and (run.best is None or found.accuracy > run.best[0]):
        run.best = found.accuracy, copies(run.parameters)


def finish(run: Run) -> None:
    """Gives the network the weights that the run is for. Raises TrainingError if a tensor is not finite."""
    if found := culprit(run.network):  # the last step's loss does not show it
        raise TrainingError(f"step {run.step}: the loss is finite{found}", hint="turn the learning rate down")
    wanted = run.best[1] if run.best is not None else run.average.weights()
    if wanted is not None:
        run.raw = copies(run.parameters)
        give(run.parameters, wanted)


@contextmanager
def in_place(parameters: list[nn.Parameter], weights: Weights | None) -> Iterator[None]:
    """Puts weights in the network's place for as long as the block runs; None leaves it alone."""
    if weights is None:
        yield
        return
    kept = copies(parameters)
    give(parameters, weights)
    try:
        yield
    finally:
        give(parameters, kept)


def give(parameters: list[nn.Parameter], values: Weights) -> None:
    """Sets parameters to values."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def out_of_memory(error: RuntimeError) -> bool:
    """Tells whether an error of PyTorch means that memory ran out: a class on CUDA, words on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def culprit(network: Network) -> str:
    """Returns which tensor is not finite, in words."""
    bad = [name for name, tensor in network.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    return f", and tensor '{bad[0]}' is not finite" if bad else ""
