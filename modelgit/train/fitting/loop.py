"""The loop: one readable pass for CPU and CUDA.

On the CPU, with one thread, the same inputs and seed give the same weights bit for bit, also when the run was stopped
and resumed: every random number comes from generators seeded here, and all that changes is part of `Run`.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modelgit.errors import TrainingError
from modelgit.events import Advanced, Finished, Listener, Measured, Noted, Started
from modelgit.train.config import FineTune, seed_hash
from modelgit.train.data.dataset import Integers
from modelgit.train.features import Features
from modelgit.train.fitting.averaging import Average, Weights, average_of, copies
from modelgit.train.fitting.batches import Source, drawn, source_of
from modelgit.train.fitting.crews import SOLO, Crew, divided, refuse_in_crews, shared, whole
from modelgit.train.fitting.norms import adapting, estimate, norms_of, statistics_of
from modelgit.train.fitting.objectives import Step, begins_afresh, loss_of
from modelgit.train.fitting.optimisers import learning_rate, optimiser_for
from modelgit.train.fitting.passes import Passes, Tail, compiled, dropped, freeze
from modelgit.train.memory import out_of_memory, ran_out, step_keys
from modelgit.train.networks.lora import leave_to_factors
from modelgit.train.networks.network import Network

REPORT_EVERY = 10


@dataclass(frozen=True, slots=True)
class Validation:
    """What a validation found: mean over the training domains of accuracy and cross-entropy, accuracy on each."""

    accuracy: float
    loss: float
    domains: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """The state of a run after `step` steps; `loss` is the mean in training since the last one (None at step 0)."""

    step: int
    loss: float | None
    val_accuracy: float | None
    val_loss: float | None = None
    domains: Mapping[str, float] = field(default_factory=dict)  # validation accuracy on each training domain

    def values(self) -> dict[str, float]:
        """Returns what was validated, as numbers by name."""
        means = {"val_accuracy": self.val_accuracy, "val_loss": self.val_loss}
        known = {name: value for name, value in means.items() if value is not None}
        return {**known, **{f"val_accuracy/{domain}": value for domain, value in self.domains.items()}}


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
    source: Source
    tail: Tail
    crew: Crew
    passes: Passes  # the tail as it is run: compiled, or by a crew
    step: int = 0
    carried: dict[str, Tensor] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last point, as far as they have been looked at
    pending: list[Tensor] = field(default_factory=list)  # those after: on a GPU a look waits for all that is queued
    best: tuple[float, Weights] | None = None
    best_step: int = 0  # after which the best were there
    raw: Weights | None = None  # the last weights, where their average is what the run is for
    over: bool = False
    together: int = 1  # how many runs have shared its passes, at most: sums are rounded otherwise then
    norms: list[_BatchNorm] = field(default_factory=list)  # those whose statistics the run may change

    @property
    def changing(self) -> list[Tensor]:
        """Parameters, and statistics that go with them."""
        return [*self.parameters, *statistics_of(self.norms)]

    @property
    def kept_step(self) -> int | None:
        """After which step the weights were there that are kept for validating best; None where the last are kept."""
        return self.best_step if self.best is not None else None


Validate = Callable[[], Validation]
Keep = Callable[[Run], None]


def start(network: Network, task: Task, config: FineTune, crew: Crew = SOLO) -> Run:
    """Returns a run that has not taken a step; what stays as it is has lost its gradients.

    Raises:
        TrainingError: the settings ask for what a crew of processes cannot do.
    """
    refuse_in_crews(config, crew)
    freeze(network, config.frozen_stages)
    if config.trains != "all":
        head = set(network.get_submodule(network.head_name).parameters())
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.requires_grad and (parameter in head) == (config.trains == "head"))
    if config.lora is not None:
        leave_to_factors(network)
    parts = task.features.padded and task.labels.device.type == "cpu" and not config.compile and crew.size == 1
    parts = parts and config.batch_norm != "train"  # statistics are of the whole batch
    tail = divided(Tail(network, config, parts=parts), config, crew, task.labels.device)
    parameters = [p for p in network.parameters() if p.requires_grad]
    draws = torch.Generator().manual_seed(seed_hash("batches", config.seed))
    optimiser = optimiser_for(trained_at(network, parameters, config, 1), config)
    source = source_of(task.features, task.labels, task.train)
    run = Run(
        network, task, config, parameters, average_of(config.averaging), draws, optimiser, source, tail, crew, tail
    )
    run.norms = norms_of(network, config)
    set_trained(run, 1)
    return run


@dataclass(frozen=True, slots=True)
class Member:
    """A run and those around it: who validates it, who is told, who keeps it between validations."""

    run: Run
    validate: Validate
    listener: Listener
    keep: Keep


@dataclass(frozen=True, slots=True)
class Clock:
    """When a run began to take steps, and at which."""

    began: float
    first: int


def fit(member: Member) -> None:
    """Trains the run's network in place; it is kept after every validation but the last.

    Raises:
        TrainingError: the loss is not finite, or memory runs out.
    """
    run = member.run
    with repeatable(run.config.deterministic):
        clock = begin(member)
        while not ended(run):
            take_step(run)
            look_after(member, clock)
        end(member)


def begin(member: Member) -> Clock:
    """Tells that a run begins, or goes on, and looks at where it starts if that could be the best."""
    run, listener = member.run, member.listener
    listener(Started(run.task.name, run.config.steps, "steps"))
    if run.step:
        listener(Noted(f"{run.task.name}: goes on from step {run.step} of {run.config.steps}"))
        listener(Advanced(run.task.name, run.step, "resumed"))
    elif run.config.keep == "best":
        found = member.validate()
        consider(run, found)
        run.points.append(Point(0, None, found.accuracy, found.loss, found.domains))
    return Clock(time.monotonic(), run.step)


def ended(run: Run) -> bool:
    """Tells whether there are no more steps to take."""
    return run.step >= run.config.steps or run.over


def look_after(member: Member, clock: Clock) -> None:
    """Tells of a step that was taken, validates and keeps the run where it is time to."""
    run, config = member.run, member.run.config
    if run.step % REPORT_EVERY == 0 or run.step == config.steps:
        say_how_far(member, clock)
    if run.step == config.steps or (config.eval_every and run.step % config.eval_every == 0):
        look(run, member.validate)
        member.listener(Measured(run.task.name, run.step, run.points[-1].values()))
        if not ended(run):
            member.keep(run)


def say_how_far(member: Member, clock: Clock) -> None:
    """Tells what the last steps came to, in words and in numbers."""
    run = member.run
    name, loss = run.task.name, settled(run)[-1]
    rate = (run.step - clock.first) / (time.monotonic() - clock.began)
    rate *= share_of(run) * len(run.source.bounds) * run.config.accumulate
    done = (run.step - clock.first - 1) % REPORT_EVERY + 1
    member.listener(Advanced(name, done, f"loss {loss:.3f}, {rate:,.0f} samples/s"))
    lr = learning_rate(run.config, run.step)
    member.listener(Measured(name, run.step, {"loss": loss, "learning_rate": lr, "samples_per_second": rate}))


def end(member: Member) -> None:
    """Gives the network its weights and tells that the run is over."""
    run = member.run
    finish(run)
    accuracy = run.best[0] if run.best is not None else run.points[-1].val_accuracy or 0
    if run.kept_step not in (None, run.step):
        told = f"kept step {run.kept_step} of {run.step}: no later step validated better"
        member.listener(Noted(f"{run.task.name}: {told}"))
    member.listener(Finished(run.task.name, f"validation {100 * accuracy:.1f} %"))


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Allows only operations that give the same bits every time, for as long as the block runs, if that is wanted."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS takes it from nowhere else
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def trained_at(network: Network, parameters: list[nn.Parameter], config: FineTune, number: int) -> list[nn.Parameter]:
    """Returns what step `number` changes: the head alone while it is probed again."""
    if number > config.reprobe_steps:
        return parameters
    return list(network.get_submodule(network.head_name).parameters())


# -------------------------------------------------------------------------------------------------------- a step


def take_step(run: Run) -> None:
    """Takes the next step."""
    prepare(run, run.step + 1)
    with explained(run, run.step + 1), adapting(adapted_at(run, run.step + 1)):
        loss = gradients(run, run.step + 1)
        descend(run)
    enter(run, loss)


def adapted_at(run: Run, number: int) -> list[_BatchNorm]:
    """Returns the layers that normalise by the batch in step `number`: none while the head alone is trained."""
    return run.norms if run.config.batch_norm == "train" and number > run.config.reprobe_steps else []


def prepare(run: Run, number: int) -> None:
    """Sets the optimiser up for a step."""
    if number == run.config.reprobe_steps + 1 > 1 or begins_afresh(run.config.objective, number):
        run.optimiser = optimiser_for(set_trained(run, number), run.config)
    for group in run.optimiser.param_groups:
        group["lr"] = learning_rate(run.config, number)


def descend(run: Run) -> None:
    """Follows the gradients that the parameters have."""
    if run.config.clip:
        nn.utils.clip_grad_norm_([p for p in run.parameters if p.grad is not None], run.config.clip)
    run.optimiser.step()


def enter(run: Run, loss: Tensor) -> None:
    """Counts a step that was taken, its loss on the device, and lets the average see the weights."""
    run.pending.append(loss)
    run.step += 1
    run.average.add(run.parameters, run.step)


def set_trained(run: Run, number: int) -> list[nn.Parameter]:
    """Leaves gradients to what step `number` changes, and returns it."""
    trained = trained_at(run.network, run.parameters, run.config, number)
    for parameter in run.parameters:
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    alone = run.crew.size == 1
    run.passes = compiled(run.tail, run.config) if alone else shared(run.tail, run.config, run.crew)
    return trained


def gradients(run: Run, number: int) -> Tensor:
    """Gives the parameters the gradients of a step and returns its loss."""
    config, device = run.config, run.task.labels.device
    losses = list[Tensor]()
    for parameter in run.parameters:
        parameter.grad = None
    for part in range(config.accumulate):
        loss = loss_of(config.objective, step_of(run, number, part), forward(run, number, part))
        loss = loss / config.accumulate if config.accumulate > 1 else loss
        if device.type == "cpu":  # elsewhere a look at the value would have to wait for it
            refuse_infinite(run, number, loss.item())
        sent = loss * run.crew.size if run.crew.size > 1 else loss  # what a crew sends is then averaged
        sent.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return reduce(torch.add, losses)


@contextmanager
def explained(run: Run, number: int) -> Iterator[None]:
    """Says what to turn down when a step runs out of memory, or off when it cannot be compiled; as TrainingError."""
    try:
        yield
    except ValueError as error:
        if not run.norms:
            raise
        raise TrainingError(f"step {number}: {error}", hint="a larger batch, or batch_norm = 'frozen'") from error
    except (RuntimeError, MemoryError) as error:
        if ran_out(error):
            remedy = step_keys(run.config, texts=run.task.features.padded)
            raise out_of_memory(f"step {number} of {run.task.name}", error, remedy) from error
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0]
            raise TrainingError(f"step {number}: cannot compile: {reason}", hint="set compile = false") from error
        raise


def step_of(run: Run, number: int, part: int) -> Step:
    """Returns what a step is told: its batch is equal parts of every domain."""
    share = share_of(run)
    x, labels = drawn(run.task.features, run.source, share, run.draws)
    return Step(number, (run.config.seed, part), x, labels, share, run.carried)


def share_of(run: Run) -> int:
    """Returns how many examples of each domain a batch has."""
    return run.config.batch_per_domain or max(1, run.config.batch // len(run.source.bounds))


def forward(run: Run, number: int, part: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns the network as objectives see it in one step: inputs to features and class scores, dropout included."""
    stream = (number,) if part == 0 else (number, part)

    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        kept = dropped(run.config, stream, (len(x), run.network.feature_size), x.device)
        return run.passes(x, kept)

    return outputs


# ----------------------------------------------------------------------------------------------------- looking


def settled(run: Run) -> list[float]:
    """Returns the losses since the last point. Raises TrainingError if one is not finite, naming step and tensor."""
    values: list[float] = torch.stack(run.pending).tolist() if run.pending else []
    for number, value in enumerate(values, run.step - len(values) + 1):
        refuse_infinite(run, number, value)
    run.losses += values
    run.pending.clear()
    return run.losses


def refuse_infinite(run: Run, number: int, loss: float) -> None:
    """Raises TrainingError for a loss that is not finite, naming step and tensor."""
    if not math.isfinite(loss):
        hint = "turn the learning rate down"
        raise TrainingError(f"step {number}: the loss is {loss}{culprit(run.network)}", hint=hint)


def look(run: Run, validate: Validate) -> None:
    """Validates the weights, or their average where that is what counts, and enters a point."""
    losses = settled(run)
    average = None if run.average.validates_raw else run.average.weights()
    with in_place(run.changing, average):
        if average is not None and run.config.batch_norm == "train":
            measure_norms(run)
        found = validate()
        consider(run, found)
    run.points.append(Point(run.step, sum(losses) / len(losses), found.accuracy, found.loss, found.domains))
    run.losses.clear()
    run.over = run.average.validated(found.loss)


def consider(run: Run, found: Validation) -> None:
    """Keeps the weights in place if they are the best so far and the best are wanted."""
    if run.config.keep == "best" and (run.best is None or found.accuracy > run.best[0]):
        run.best, run.best_step = (found.accuracy, copies(run.changing)), run.step


def finish(run: Run) -> None:
    """Gives the network the weights that the run is for. Raises TrainingError if a tensor is not finite."""
    if found := culprit(run.network):  # the last step's loss does not show it
        raise TrainingError(f"step {run.step}: the loss is finite{found}", hint="turn the learning rate down")
    wanted = run.best[1] if run.best is not None else run.average.weights()
    again = run.config.batch_norm == "re-estimate"
    if wanted is not None:
        if again and run.config.commit_raw:
            measure_norms(run)
        run.raw = copies(run.changing)
        give(run.changing[: len(wanted)], wanted)  # the best with its statistics, an average without
    if again or (wanted is not None and run.best is None):
        measure_norms(run)


def stands_as_looked_at(run: Run) -> bool:
    """Tells whether a run that is finished has the weights and statistics that its last validation looked at."""
    return run.raw is None and run.config.batch_norm != "re-estimate"


def measure_norms(run: Run) -> None:
    """Gives the layers whose statistics the run may change those of the weights that it has now."""
    if run.norms:
        estimate(run.network, run.norms, (run.task.features, run.task.train), run.config)


@contextmanager
def in_place(places: Sequence[Tensor], weights: Weights | None) -> Iterator[None]:
    """Puts weights in the first of the places for as long as the block runs; None leaves them alone."""
    if weights is None:
        yield
        return
    kept = copies(places)
    give(places[: len(weights)], weights)
    try:
        yield
    finally:
        give(places, kept)


def give(places: Sequence[Tensor], values: Weights) -> None:
    """Sets parameters, and statistics, to values."""
    with torch.no_grad():
        for place, value in zip(places, values, strict=True):
            place.copy_(value)


def culprit(network: Network) -> str:
    """Returns which tensor is not finite, in words."""
    bad = [name for name, tensor in network.state_dict().items() if not bool(torch.isfinite(whole(tensor)).all())]
    return f", and tensor '{bad[0]}' is not finite" if bad else ""
