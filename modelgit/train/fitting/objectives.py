"""What a step minimises: the arithmetic of `choices.Objective`, given the batch of every training domain.

Each objective says what the network is to be run on, once a step, and makes a loss of the features (n, d) and class
scores (n, classes) that come back, domain by domain. Between the two the network may be run together with others. What
an objective carries from step to step (GroupDRO's weights) can be saved and given back.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from modelgit.train.choices import Coral, Erm, GroupDro, Irm, Mixup, Objective, Vrex
from modelgit.train.config import seed_hash

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
Domain = tuple[Tensor, Tensor]  # inputs (n, ...), labels (n,)


@dataclass(slots=True)
class Step:
    """One step: its number from 1, what seeds it, its batch (n, ...) with labels (n,), what objectives carry.

    The batch holds `share` examples of every domain, one domain after another.
    """

    number: int
    seed: object
    inputs: Tensor
    labels: Tensor
    share: int
    carried: dict[str, Tensor] = field(default_factory=dict)

    @property
    def domains(self) -> list[Domain]:
        """The part of each domain."""
        return list(zip(torch.split(self.inputs, self.share), torch.split(self.labels, self.share), strict=True))


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the network made of a step's inputs: features (n, d) and class scores (n, classes)."""

    features: Tensor
    scores: Tensor

    def by_domain(self, step: Step) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns features, class scores and labels of each domain."""
        parts = (torch.split(each, step.share) for each in (self.features, self.scores, step.labels))
        return list(zip(*parts, strict=True))


def loss_of(objective: Objective, step: Step, forward: Forward) -> Tensor:
    """Returns the loss of a step, a scalar that gradients flow from."""
    return loss_from(objective, step, Outputs(*forward(inputs_of(objective, step))))


def inputs_of(objective: Objective, step: Step) -> Tensor:
    """Returns what the network is to be run on, (n, ...), in one pass."""
    if isinstance(objective, Mixup):
        return mixed(objective, step)
    return step.inputs


def loss_from(objective: Objective, step: Step, outputs: Outputs) -> Tensor:
    """Returns the loss of a step, given what the network made of its inputs."""
    return LOSSES[objective.name](objective, step, outputs)


def begins_afresh(objective: Objective, number: int) -> bool:
    """Tells whether the optimiser begins afresh before step `number`: the loss changes its scale there."""
    return isinstance(objective, Irm | Vrex) and objective.anneal > 0 and number == objective.anneal + 1


def erm(_objective: Erm, step: Step, outputs: Outputs) -> Tensor:
    """Returns the mean cross-entropy over all examples."""
    return functional.cross_entropy(outputs.scores, step.labels)


def domain_losses(step: Step, outputs: Outputs) -> Tensor:
    """Returns the mean cross-entropy of each domain, (domains,)."""
    return torch.stack([functional.cross_entropy(scores, y) for _, scores, y in outputs.by_domain(step)])


def coral(objective: Coral, step: Step, outputs: Outputs) -> Tensor:
    """Returns mean loss + gamma * mean over pairs of [mean (mu_i - mu_j)^2 + mean (C_i - C_j)^2]."""
    loss = domain_losses(step, outputs).mean()
    pairs = list(itertools.combinations([moments(features) for features, _, _ in outputs.by_domain(step)], 2))
    if not pairs:
        return loss
    apart = [(m - n).square().mean() + (c - d).square().mean() for (m, c), (n, d) in pairs]
    return loss + objective.gamma * torch.stack(apart).mean()


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean (1, d) and unbiased covariance (d, d) of features (n, d)."""
    flat = features.flatten(1)
    mean = flat.mean(0, keepdim=True)
    centred = flat - mean
    return mean, centred.T @ centred / max(1, len(flat) - 1)


def mixture(objective: Mixup, step: Step) -> list[tuple[Domain, Domain, float]]:
    """Returns a random ring of domains: each, its neighbour, cut to one length, and the share of the first."""
    draws = torch.Generator().manual_seed(seed_hash("mixup", step.seed, step.number))
    domains = step.domains
    ring = torch.randperm(len(domains), generator=draws).tolist()
    shares = beta(objective.alpha, len(ring), draws)
    pairs = [(domains[i], domains[j]) for i, j in zip(ring, [*ring[1:], ring[0]], strict=True)]
    counts = [min(len(y), len(target)) for (_, y), (_, target) in pairs]
    return [
        ((x[:n], y[:n]), (other[:n], target[:n]), share)
        for ((x, y), (other, target)), n, share in zip(pairs, counts, shares, strict=True)
    ]


def mixed(objective: Mixup, step: Step) -> Tensor:
    """Returns the inputs of neighbours in the ring, mixed."""
    return torch.cat([share * x + (1 - share) * other for (x, _), (other, _), share in mixture(objective, step)])


def mixup(objective: Mixup, step: Step, outputs: Outputs) -> Tensor:
    """Returns the mean over a random ring of domains of the mixed loss of neighbours."""
    labels = [(y, target, share) for (_, y), (_, target), share in mixture(objective, step)]
    scores = torch.split(outputs.scores, [len(y) for y, _, _ in labels])
    return torch.stack([blended(s, *label) for s, label in zip(scores, labels, strict=True)]).mean()


def blended(scores: Tensor, first: Tensor, second: Tensor, share: float) -> Tensor:
    """Returns the cross-entropy with two sets of labels, mixed as the inputs are."""
    return share * functional.cross_entropy(scores, first) + (1 - share) * functional.cross_entropy(scores, second)


def beta(alpha: float, count: int, draws: torch.Generator) -> list[float]:
    """Returns draws from Beta(alpha, alpha): a share of two Gamma variables."""
    parameter = torch.full((count, 2), alpha, dtype=torch.float64)
    gammas = torch._standard_gamma(parameter, generator=draws)
    total = gammas.sum(1)
    return [float(a / t) if float(t) > 0 else 0.5 for a, t in zip(gammas[:, 0], total, strict=True)]


def group_dro(objective: GroupDro, step: Step, outputs: Outputs) -> Tensor:
    """Returns q . losses, the weights q moved towards the worst domains first."""
    losses = domain_losses(step, outputs)
    weights = step.carried.get("groupdro")
    weights = torch.ones_like(losses) if weights is None else weights.to(losses.device)
    weights = weights * (objective.eta * losses.detach()).exp()
    step.carried["groupdro"] = weights / weights.sum()
    return step.carried["groupdro"] @ losses


def irm(objective: Irm, step: Step, outputs: Outputs) -> Tensor:
    """Returns mean loss + weight * mean over domains of the product of the head's gradients on two half batches."""
    loss = domain_losses(step, outputs).mean()
    penalty = torch.stack([scale_penalty(scores, y) for _, scores, y in outputs.by_domain(step)]).mean()
    return loss + annealed(objective, step.number) * penalty


def scale_penalty(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns g_even * g_odd, g the derivative of the loss by a factor on the scores at 1: unbiased for its square."""
    factor = torch.ones((), device=scores.device, dtype=scores.dtype, requires_grad=True)
    halves = [functional.cross_entropy(scores[i::2] * factor, labels[i::2]) for i in (0, 1)]
    even, odd = (torch.autograd.grad(half, factor, create_graph=True)[0] for half in halves)
    return even * odd


def vrex(objective: Vrex, step: Step, outputs: Outputs) -> Tensor:
    """Returns mean loss + weight * variance of the domains' losses."""
    losses = domain_losses(step, outputs)
    return losses.mean() + annealed(objective, step.number) * (losses - losses.mean()).square().mean()


def annealed(objective: Irm | Vrex, number: int) -> float:
    """Returns the weight of the penalty at a step: 1 for the first `anneal`."""
    return objective.penalty if number > objective.anneal else 1.0


LOSSES: dict[str, Callable[..., Tensor]] = {
    "erm": erm,
    "coral": coral,
    "mixup": mixup,
    "groupdro": group_dro,
    "irm": irm,
    "vrex": vrex,
}
