"""One run on several devices: a process for each, a crew, all of which make the same draws and have the same weights.

Every process draws the whole batch and runs the network on its part of the rows; the outputs of all parts are put
together before the loss is taken. So each sees the loss of the whole batch, as one process would (CORAL's covariances,
GroupDRO's domains, mixtures), and its gradient is the sum of what flows back through the parts. Weights are held whole
in every process (DistributedDataParallel), or, for models that do not fit, split over the processes and gathered stage
by stage (FSDP2, `fully_shard`). Only what one step sends differs; drawing, losses and averages are the single run's.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from modelgit.errors import TrainingError
from modelgit.train.config import FineTune
from modelgit.train.fitting.passes import Kept, Passes, Tail

PATIENCE = timedelta(hours=2)  # how long a process waits for another that is at the same step


@dataclass(frozen=True, slots=True)
class Crew:
    """How many processes carry a run out together, and which of them this is; `local` is its number on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0


SOLO = Crew()
TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def crew_of(environment: Mapping[str, str]) -> Crew:
    """Returns what torchrun says of this process; without torchrun it is alone."""
    told = [environment.get(name, "") for name in TOLD]
    if "TORCHELASTIC_RUN_ID" not in environment or not all(value.isdecimal() for value in told):
        return SOLO
    return Crew(*map(int, told))


def join(crew: Crew, place: str, device: torch.device) -> None:
    """Makes this process one of the crew; `place` is where they meet: file:///PATH, or env:// under torchrun.

    Raises:
        TrainingError: this build of PyTorch cannot, or the others do not come.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(crew.local)
    try:
        torch.distributed.init_process_group(backend, place, PATIENCE, crew.size, crew.rank)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"process {crew.rank} of {crew.size} cannot join the others: {error}") from error


def leave() -> None:
    """Leaves the crew; the process can join another."""
    torch.distributed.destroy_process_group()


@contextmanager
def joining(crew: Crew, device: torch.device) -> Iterator[None]:
    """Makes this process one of the crew for as long as the block runs, as torchrun has set it up; alone it is free.

    After an error the others are not waited for: what started them ends them.

    Raises:
        TrainingError: the others do not come.
    """
    if crew.size == 1:
        yield
        return
    join(crew, "env://", device)
    yield
    leave()


def refuse_in_crews(config: FineTune, crew: Crew) -> None:
    """Raises TrainingError for what several processes cannot do together."""
    if crew.size > 1 and config.compile:
        raise TrainingError("compile = true is for one process", hint="set compile = false")
    if crew.size > 1 and config.batch_norm != "frozen":
        what = f"batch_norm = '{config.batch_norm}' is for one process"
        raise TrainingError(what, hint="set batch_norm = 'frozen', or train in one process")


def divided(tail: Tail, config: FineTune, crew: Crew, device: torch.device) -> Tail:
    """Returns the tail, its parameters split over the crew where that is wanted: stage by stage, then the rest."""
    if crew.size == 1 or not config.shard_weights:
        return tail
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        expected = f"shard_weights: expected PyTorch 2.6 or newer, got {torch.__version__}"
        raise TrainingError(expected, hint="set shard_weights = false") from error

    mesh = init_device_mesh(device.type, (crew.size,))
    for stage, _ in tail.network.stages()[config.frozen_stages :]:
        if isinstance(stage, nn.Module):
            fully_shard(stage, mesh=mesh)
    fully_shard(tail, mesh=mesh, reshard_after_forward=True)  # else a validation leaves stale weights in place
    return tail  # in place: it has become a module of a further class


def shared(tail: Tail, config: FineTune, crew: Crew) -> Passes:
    """Returns the tail as the crew runs it: on whole batches, each process its part."""
    model: nn.Module = tail
    if not config.shard_weights and any(parameter.requires_grad for parameter in tail.parameters()):
        model = DistributedDataParallel(tail)

    def passes(x: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
        mine = part_of(len(x), crew)
        own = None if kept is None else (kept[0][mine], kept[1])
        features, scores = model(x[mine], own)
        return joined(features, mine, len(x)), joined(scores, mine, len(x))

    return passes


def part_of(count: int, crew: Crew) -> slice:
    """Returns which of `count` rows this process takes."""
    return slice(count * crew.rank // crew.size, count * (crew.rank + 1) // crew.size)


def joined(own: Tensor, mine: slice, count: int) -> Tensor:
    """Returns the rows of all processes, (count, …); gradients flow to this one's own."""
    whole = torch.zeros(count, *own.shape[1:], dtype=own.dtype, device=own.device)
    whole[mine] = own.detach()
    torch.distributed.all_reduce(whole)  # zeros elsewhere: nothing is rounded
    return torch.cat([whole[: mine.start], own, whole[mine.stop :]])


# ------------------------------------------------------------------------------------------ parts and wholes


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a tensor, from every process's part of it; all must ask for the same one."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # a DTensor
    return found


def divided_like(pattern: Tensor, value: Tensor) -> Tensor:
    """Returns this process's part of a value, if a tensor like it is held in parts."""
    if not hasattr(pattern, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor  # takes a second to import

    assert isinstance(pattern, DTensor)  # nothing else has such a method
    return distribute_tensor(value, pattern.device_mesh, pattern.placements)
