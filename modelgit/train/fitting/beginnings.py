"""Where a run begins: with batches that hold what its steps need, and at weights that its end is compared with."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modelgit.errors import RecipeError
from modelgit.train.choices import Irm
from modelgit.train.config import FineTune
from modelgit.train.data.rows import listed
from modelgit.train.evaluate import Scores
from modelgit.train.fitting.loop import Member, Point
from modelgit.train.networks.lora import B
from modelgit.train.networks.network import Network, head_tensors


def refuse_small_batch(config: FineTune, domains: Sequence[str]) -> None:
    """Raises RecipeError for a batch that has too few examples of each domain, naming the smallest that has enough."""
    halves = isinstance(config.objective, Irm)  # its penalty is a product over two halves
    least, each = (2, "two examples") if halves else (1, "an example")
    if config.batch_per_domain is not None:
        if config.batch_per_domain < least:
            raise RecipeError(f"batch_per_domain = {config.batch_per_domain}: expected at least {least} with irm")
        return
    if config.batch // len(domains) < least:
        told = f"batch = {config.batch}: expected at least {least * len(domains)}, {each} of every training domain"
        hint = "a batch has equal parts of them; domains of [data] names fewer"
        raise RecipeError(f"{told} ({listed(domains)})", hint=hint)


def head_at(network: Network) -> dict[str, Tensor]:
    """Returns a copy of the head."""
    state = network.state_dict()
    return {name: state[name].detach().clone() for name in head_tensors(network)}


def validated_start(member: Member, init: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> tuple[Point, ...]:
    """Returns the curve, beginning with what the start scores; the network has the start's weights then.

    It is looked at when the run is over, for it has to wait for nothing then. Not where several processes hold parts.
    """
    run = member.run
    points = tuple(run.points)
    if (points and points[0].step == 0) or run.crew.size > 1:
        return points
    own = run.network.state_dict()
    factors = {name: torch.zeros_like(tensor) for name, tensor in own.items() if name.endswith(B)}  # adapters change 0
    known = {name: tensor for name, tensor in init.items() if name in own}
    run.network.load_state_dict({**own, **known, **head, **factors})
    found = member.validate()
    return (Point(0, None, found.accuracy, found.loss, found.domains), *points)


def fallen(points: Sequence[Point], scores: Scores) -> bool:
    """Tells whether a run scores less than its start, by more than one standard error."""
    before = points[0].val_accuracy if points and points[0].step == 0 else None
    errors = [accuracy.stderr for accuracy in scores.validation.values()]
    noise = sum(error**2 for error in errors) ** 0.5 / len(errors)
    return before is not None and scores.val_accuracy < before - noise


def told_fallen(config: FineTune, points: Sequence[Point], scores: Scores) -> str:
    """Returns what to say of a run that has fallen."""
    ended = f"validation fell from {100 * (points[0].val_accuracy or 0):.1f} % to {100 * scores.val_accuracy:.1f} %"
    way = "" if config.keep == "best" else ", or keep = 'best'"
    return f"{ended}: try a smaller lr (it was {config.lr:g}), more steps (there were {config.steps}){way}"
