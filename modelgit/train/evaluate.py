"""Accuracy of a network, domain by domain."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from modelgit.train.data.dataset import Integers
from modelgit.train.features import Features, in_chunks
from modelgit.train.measuring.calibration import calibration_error
from modelgit.train.measuring.serving import FEWEST

HELD_OUT = ""  # no domain is called so
Scored = Callable[[Tensor], Tensor]  # features behind the frozen stages to class scores


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`correct` of `n` images."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        """The share of correct answers."""
        return self.correct / self.n

    @property
    def stderr(self) -> float:
        """Its binomial standard error."""
        return math.sqrt(self.value * (1 - self.value) / self.n)


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracies on the validation split of each training domain, and on the held-out domain if there is one.

    `answers` are the classes answered, in the order of the split, by the same names; HELD_OUT for the held-out domain.
    Of the held-out domain, else of all validation splits, `ece` is the expected calibration error, and `worst_group`
    the lowest accuracy on one class in one domain, of those with FEWEST examples or more.
    """

    validation: Mapping[str, Accuracy]
    held_out: Accuracy | None
    answers: Mapping[str, Integers] = field(default_factory=dict, compare=False)  # arrays: == of them is no truth
    ece: float | None = None
    worst_group: Accuracy | None = None

    @property
    def val_accuracy(self) -> float:
        """The unweighted mean over training domains: what runs are selected by."""
        return sum(a.value for a in self.validation.values()) / len(self.validation)

    @property
    def ood_accuracy(self) -> float | None:
        """The accuracy on the domain never trained on."""
        return self.held_out.value if self.held_out else None


@dataclass(frozen=True, slots=True)
class Outputs:
    """Logits (n, classes) on the validation split of each training domain and on the held-out domain, with labels."""

    validation: Mapping[str, tuple[Tensor, Tensor]]
    held_out: tuple[Tensor, Tensor] | None

    @property
    def val_loss(self) -> float:
        """The cross-entropy, as an unweighted mean over the training domains."""
        losses = [float(functional.cross_entropy(*pair)) for pair in self.validation.values()]
        return sum(losses) / len(losses)

    def scores(self) -> Scores:
        """Returns the accuracies."""
        held_out = accuracy(*self.held_out) if self.held_out is not None else None
        pairs = {**self.validation, **({HELD_OUT: self.held_out} if self.held_out is not None else {})}
        answers = {name: logits.argmax(1).cpu().numpy() for name, (logits, _) in pairs.items()}
        inside = {domain: accuracy(*pair) for domain, pair in self.validation.items()}
        return Scores(inside, held_out, answers, *self._served())

    def _served(self) -> tuple[float | None, Accuracy | None]:
        """Returns how far confidence is from accuracy, and the accuracy on the group that is served worst."""
        pairs = [self.held_out] if self.held_out is not None else list(self.validation.values())
        logits, labels = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
        likely = torch.softmax(logits.double(), 1).numpy()
        if not np.isfinite(likely).all():  # a model that was destroyed is sure of nothing
            return None, None
        groups = [accuracy(x[y == c], y[y == c]) for x, y in pairs for c in range(x.shape[1]) if (y == c).any()]
        worst = min((group for group in groups if group.n >= FEWEST), key=lambda group: group.value, default=None)
        return calibration_error(likely, labels.numpy()), worst


def average_outputs(members: Sequence[Outputs]) -> Outputs:
    """Returns the mean of the members' logits: a functional ensemble."""

    def mean(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([logits for logits, _ in pairs]).mean(0), pairs[0][1]

    validation = {domain: mean([m.validation[domain] for m in members]) for domain in members[0].validation}
    tested = [m.held_out for m in members if m.held_out is not None]
    return Outputs(validation, mean(tested) if tested else None)


def posterior(members: Sequence[Outputs]) -> tuple[float, ...]:
    """Returns how likely each member is to have made the validation labels: the mean over examples of its posterior.

    The prior is uniform, the likelihood what a member gives to the label; domains count alike. Li et al. 2022,
    arXiv:2208.03306, section 2.1, who estimate domains of text so.
    """
    found = []
    for domain in members[0].validation:
        pairs = [member.validation[domain] for member in members]
        told = torch.stack([functional.log_softmax(x, 1).gather(1, y.unsqueeze(1)).squeeze(1) for x, y in pairs])
        found.append(torch.softmax(told.double(), 0).mean(1))
    mean: list[float] = torch.stack(found).mean(0).tolist()
    return tuple(mean)


def mix_outputs(members: Sequence[Outputs], weights: Sequence[float]) -> Outputs:
    """Returns the logarithm of the members' class probabilities, mixed by weights that add up to 1."""

    def mixed(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        chances = [w * torch.softmax(logits, 1) for (logits, _), w in zip(pairs, weights, strict=True)]
        return torch.stack(chances).sum(0).log(), pairs[0][1]

    validation = {domain: mixed([m.validation[domain] for m in members]) for domain in members[0].validation}
    tested = [m.held_out for m in members if m.held_out is not None]
    return Outputs(validation, mixed(tested) if tested else None)


def made_of(stages: Scored, features: Features, indices: Integers) -> Tensor:
    """Returns what the last stages make of the clean features of examples, (n, …)."""
    with torch.no_grad():
        places, rows = zip(*((places, stages(x)) for places, x in in_chunks(features, indices)), strict=True)
    found = torch.cat(rows)
    return found[torch.from_numpy(np.argsort(np.concatenate(places))).to(found.device)]


def accuracy(scores: Tensor, labels: Tensor) -> Accuracy:
    """Returns how often the highest score (n, classes) is the label (n,)."""
    return Accuracy(int((scores.argmax(1) == labels).sum()), len(labels))
