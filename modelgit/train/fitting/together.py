"""Many fine-tunings at once on one device: the weights of M runs stacked, one pass through the network for all.

A small network leaves a GPU idle between kernels, and a batch of 33 fills none of them. Runs of one architecture on
one data set take the same kernels at the same step, so their weights are stacked, (M, *shape), and one vectorised pass
makes the outputs of all. Only the pass is shared: every run keeps its own batches, dropout, loss, optimiser, average,
validation and file to go on from, by the code that single runs go through. Its parameters are views of the stack.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from modelgit.errors import TrainingError
from modelgit.train.config import FineTune
from modelgit.train.features import even
from modelgit.train.fitting.loop import (
    Clock,
    Member,
    Run,
    begin,
    descend,
    end,
    ended,
    enter,
    explained,
    look_after,
    prepare,
    refuse_infinite,
    repeatable,
    step_of,
)
from modelgit.train.fitting.objectives import Outputs, inputs_of, loss_from
from modelgit.train.fitting.passes import Kept, Tail, dropped

# What runs that go together have in common: all that decides the shapes and kernels of a step.
COMMON = (
    *("steps", "batch", "batch_per_domain", "accumulate", "precision", "trains", "reprobe_steps", "frozen_stages"),
    *("views", "augment", "compile", "checkpoint", "deterministic", "shard_weights", "batch_norm", "lora"),
)


def go_together(one: FineTune, other: FineTune) -> bool:
    """Tells whether two runs of one architecture on one data set can share their passes."""
    apart = one.checkpoint or one.compile or one.batch_norm == "train"
    return not apart and all(getattr(one, name) == getattr(other, name) for name in COMMON)


def fit_together(members: Sequence[Member]) -> None:
    """Trains the networks of all runs in place; those that are behind (resumed earlier) catch up first.

    Raises:
        TrainingError: the loss of a run is not finite, or memory runs out.
    """
    for member in members:
        member.run.together = max(member.run.together, len(members))
    with repeatable(members[0].run.config.deterministic):
        clocks = {id(member): begin(member) for member in members}
        while going := next_group(members):
            advance(going, members, clocks)
        for member in members:
            end(member)


def next_group(members: Sequence[Member]) -> list[Member]:
    """Returns the runs that are at the earliest step, of those that have not ended."""
    going = [member for member in members if not ended(member.run)]
    earliest = min((member.run.step for member in going), default=0)
    return [member for member in going if member.run.step == earliest]


def advance(group: Sequence[Member], members: Sequence[Member], clocks: Mapping[int, Clock]) -> None:
    """Takes steps with a group until one of its runs ends, or others have been caught up with."""
    others = [m.run.step for m in members if not ended(m.run) and m not in group]
    with Stack([member.run for member in group]) as stack:
        while True:
            stack.take_step()
            for number, member in enumerate(group, 1):
                with named(number, len(group)):
                    look_after(member, clocks[id(member)])
            if any(ended(member.run) or member.run.step in others for member in group):
                return


class Stack:
    """The weights of runs that are at the same step, side by side; as long as it is open the runs' are views of it."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        tails = [Tail(run.network, run.config) for run in runs]
        self._tail = tails[0]
        self._weights, self._buffers = stack_module_state(list(tails))  # name -> (M, *shape)
        self._named = [{**dict(tail.named_parameters()), **dict(tail.named_buffers())} for tail in tails]

    def __enter__(self) -> "Stack":
        for name, whole in {**self._weights, **self._buffers}.items():
            for own, part in zip(self._named, whole.detach().unbind(0), strict=True):
                own[name].data = part
        return self

    def __exit__(self, *_exception: object) -> None:
        for own in self._named:
            for tensor in own.values():
                tensor.data = tensor.detach().clone()

    def take_step(self) -> None:
        """Takes the next step of every run."""
        number = self._runs[0].step + 1
        for run in self._runs:
            prepare(run, number)
        for name, weight in self._weights.items():
            weight.requires_grad_(self._named[0][name].requires_grad).grad = None
        with explained(self._runs[0], number):
            losses = self._gradients(number)
            for run in self._runs:
                descend(run)
        for run, loss in zip(self._runs, losses.unbind(0), strict=True):
            enter(run, loss)

    def _gradients(self, number: int) -> Tensor:
        """Gives all parameters the gradients of a step and returns the losses, (M,)."""
        parts = self._runs[0].config.accumulate
        total = torch.zeros(len(self._runs), device=self._runs[0].task.labels.device)
        for part in range(parts):
            losses = self._losses(number, part) / parts
            if losses.device.type == "cpu":  # elsewhere a look at the values would have to wait for them
                self._refuse_infinite(number, losses.tolist())
            losses.sum().backward()  # type: ignore[no-untyped-call]
            total += losses.detach()
        for name, weight in self._weights.items():
            rows = weight.grad.unbind(0) if weight.grad is not None else [None] * len(self._runs)
            for own, row in zip(self._named, rows, strict=True):
                own[name].grad = row
        return total

    def _losses(self, number: int, part: int) -> Tensor:
        """Returns the loss of each run on its batch, (M,)."""
        steps = [step_of(run, number, part) for run in self._runs]
        chosen = [run.config.objective for run in self._runs]
        inputs = [inputs_of(choice, step) for choice, step in zip(chosen, steps, strict=True)]
        x = torch.stack(even(inputs) if self._runs[0].task.features.padded else inputs)
        features, scores = self._passes(x, self._kept(x, number, part))
        outputs = [Outputs(*each) for each in zip(features.unbind(0), scores.unbind(0), strict=True)]
        return torch.stack([loss_from(*each) for each in zip(chosen, steps, outputs, strict=True)])

    def _passes(self, x: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
        """Returns features (M, n, d) and class scores (M, n, classes) of inputs (M, n, …)."""
        alone = vmap(partial(functional_call, self._tail), in_dims=(0, (0, None if kept is None else 0)))
        with stackable_attention(x.device):
            found: tuple[Tensor, Tensor] = alone({**self._weights, **self._buffers}, (x, kept))
        return found

    def _kept(self, x: Tensor, number: int, part: int) -> Kept | None:
        """Returns what dropout keeps in each run, (M, n, d) and (M,); None if no run drops anything."""
        shape, stream = (x.shape[1], self._runs[0].network.feature_size), (number, part) if part else (number,)
        found = [dropped(run.config, stream, shape, x.device) for run in self._runs]
        if not any(found):
            return None
        everything = torch.ones(shape, dtype=torch.bool, device=x.device), 1.0
        which, shares = zip(*(each or everything for each in found), strict=True)
        return torch.stack(which), torch.tensor(shares).to(x.device, non_blocking=True)

    def _refuse_infinite(self, step: int, losses: Sequence[float]) -> None:
        for number, (run, loss) in enumerate(zip(self._runs, losses, strict=True), 1):
            with named(number, len(losses)):
                refuse_infinite(run, step, loss)


def stackable_attention(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which attention has a stacked form: on the CPU as plain products, since its kernel has none.

    Kernels of CUDA have one.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@contextmanager
def named(number: int, count: int) -> Iterator[None]:
    """Says which of the runs an error is about."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"run {number} of {count}: {error.message}", hint=error.hint) from error
