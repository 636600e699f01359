"""Choices of a fine-tuning that come with settings of their own: what a step minimises, what is kept of its path.

Plain values, checked when they are made; the arithmetic is in `fitting`. A recipe names one
(`objective = "coral"`) or gives a table (`objective = { name = "coral", gamma = 0.5 }`).
"""

from dataclasses import dataclass
from typing import Literal

from modelgit.errors import RecipeError


def check(name: str, value: object, holds: bool, expected: str) -> None:
    """Raises RecipeError unless `holds`."""
    if not holds:
        raise RecipeError(f"{name} = {value}: expected {expected}")


# -------------------------------------------------------------------------------------------------- objectives


@dataclass(frozen=True, slots=True)
class Erm:
    """Empirical risk: the mean cross-entropy over all examples."""

    name: Literal["erm"] = "erm"


@dataclass(frozen=True, slots=True)
class Coral:
    """Align features: plus `gamma` times the distance of means and covariances between domains.

    Sun & Saenko 2016, arXiv:1607.01719, between every pair of domains as in DomainBed.
    """

    gamma: float = 1.0
    name: Literal["coral"] = "coral"

    def __post_init__(self) -> None:
        check("coral.gamma", self.gamma, 0 <= self.gamma <= 1e6, "from 0 to 1e6")


@dataclass(frozen=True, slots=True)
class Mixup:
    """Train on mixtures of examples of two domains, their share drawn from Beta(alpha, alpha).

    Zhang et al. 2018, arXiv:1710.09412; between domains: Yan et al. 2020, arXiv:2001.00677.
    """

    alpha: float = 0.2
    name: Literal["mixup"] = "mixup"

    def __post_init__(self) -> None:
        check("mixup.alpha", self.alpha, 0 < self.alpha <= 100, "above 0, at most 100")


@dataclass(frozen=True, slots=True)
class GroupDro:
    """Weigh domains by their losses, the worst most: weights grow by exp(`eta` * loss) every step.

    Sagawa et al. 2020, arXiv:1911.08731, algorithm 1.
    """

    eta: float = 1e-2
    name: Literal["groupdro"] = "groupdro"

    def __post_init__(self) -> None:
        check("groupdro.eta", self.eta, 0 <= self.eta <= 10, "from 0 to 10")


@dataclass(frozen=True, slots=True)
class Irm:
    """Ask for a head that is best in every domain at once, by a penalty on its gradient.

    Arjovsky et al. 2019, arXiv:1907.02893, IRMv1. The penalty weighs 1 for `anneal` steps, `penalty` from then on;
    the optimiser begins afresh at the change.
    """

    penalty: float = 100.0
    anneal: int = 500
    name: Literal["irm"] = "irm"

    def __post_init__(self) -> None:
        check("irm.penalty", self.penalty, 0 <= self.penalty <= 1e9, "from 0 to 1e9")
        check("irm.anneal", self.anneal, self.anneal >= 0, "0 or more steps")


@dataclass(frozen=True, slots=True)
class Vrex:
    """Ask for equal losses in all domains, by a penalty on their variance.

    Krueger et al. 2021, arXiv:2003.00688. `penalty` and `anneal` as in irm.
    """

    penalty: float = 10.0
    anneal: int = 500
    name: Literal["vrex"] = "vrex"

    def __post_init__(self) -> None:
        check("vrex.penalty", self.penalty, 0 <= self.penalty <= 1e9, "from 0 to 1e9")
        check("vrex.anneal", self.anneal, self.anneal >= 0, "0 or more steps")


ERM = Erm()
Objective = Erm | Coral | Mixup | GroupDro | Irm | Vrex

# --------------------------------------------------------------------------------------- averaging along the run


@dataclass(frozen=True, slots=True)
class NoAveraging:
    """The weights after the last step."""

    name: Literal["none"] = "none"


@dataclass(frozen=True, slots=True)
class Sma:
    """The mean of the weights after every step from `start` on (Arpit et al. 2022, arXiv:2110.10832, eq. 1)."""

    start: int = 0
    name: Literal["sma"] = "sma"

    def __post_init__(self) -> None:
        check("sma.start", self.start, self.start >= 0, "0 or more steps")


@dataclass(frozen=True, slots=True)
class Ema:
    """An exponential moving average: mean <- decay * mean + (1 - decay) * weights, after every step."""

    decay: float = 0.999
    name: Literal["ema"] = "ema"

    def __post_init__(self) -> None:
        check("ema.decay", self.decay, 0 <= self.decay < 1, "from 0 up to, but not, 1")


@dataclass(frozen=True, slots=True)
class Swa:
    """The mean of the weights after every `every`-th step from `start` on (Izmailov et al. 2018, arXiv:1803.05407)."""

    start: int = 0
    every: int = 10
    name: Literal["swa"] = "swa"

    def __post_init__(self) -> None:
        check("swa.start", self.start, self.start >= 0, "0 or more steps")
        check("swa.every", self.every, self.every >= 1, "at least 1 step")


@dataclass(frozen=True, slots=True)
class Lawa:
    """The mean of the last `keep` checkpoints, one every `every` steps (Kaddour 2022, arXiv:2209.14981)."""

    keep: int = 5
    every: int = 10
    name: Literal["lawa"] = "lawa"

    def __post_init__(self) -> None:
        check("lawa.keep", self.keep, 1 <= self.keep <= 100, "from 1 to 100 checkpoints")
        check("lawa.every", self.every, self.every >= 1, "at least 1 step")


@dataclass(frozen=True, slots=True)
class Swad:
    """The mean of all weights along the valley of the validation loss; training ends when the valley does.

    Cha et al. 2021, arXiv:2102.08604, section 3.2: the valley begins where the loss has been no lower for `converge`
    validations, and ends where for `tolerance` of them it stayed above `ratio` times its level. Validations come
    every `eval_every` steps.
    """

    converge: int = 3
    tolerance: int = 6
    ratio: float = 1.3
    name: Literal["swad"] = "swad"

    def __post_init__(self) -> None:
        check("swad.converge", self.converge, 1 <= self.converge <= 100, "from 1 to 100 validations")
        check("swad.tolerance", self.tolerance, 1 <= self.tolerance <= 100, "from 1 to 100 validations")
        check("swad.ratio", self.ratio, 1 <= self.ratio <= 100, "from 1 to 100")


NO_AVERAGING = NoAveraging()
Averaging = NoAveraging | Sma | Ema | Swa | Lawa | Swad

# ------------------------------------------------------------------------------------------ what of it is trained


@dataclass(frozen=True, slots=True)
class Lora:
    """Train factors of low rank in place of all weights: (`alpha` / `rank`) B A for each linear layer of `targets`.

    Targets are names of layers, or their last parts; none: all linear layers but the head (Hu et al. 2021,
    arXiv:2106.09685).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check("lora.rank", self.rank, 1 <= self.rank <= 4096, "from 1 to 4096")
        check("lora.alpha", self.alpha, 0 < self.alpha <= 1e6, "above 0, at most 1e6")
        named = all(target.strip(".") == target != "" for target in self.targets)
        check("lora.targets", list(self.targets), named, "names of layers, such as 'query', or none")
