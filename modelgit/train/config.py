"""What a fine-tuning is told: plain values, checked when they are made, with no torch behind them.

Seeds and draws follow DomainBed (Gulrajani & Lopez-Paz 2021, arXiv:2007.01434, `domainbed/lib/misc.py`): every random
stream is seeded by a hash of what it is for, so adding a setting changes no other draw.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from modelgit.errors import RecipeError

T = TypeVar("T")
Group = Literal["none", "name"]
Averaging = Literal["none", "sma"]


def check(name: str, value: object, holds: bool, expected: str) -> None:
    """Raises RecipeError unless `holds`."""
    if not holds:
        raise RecipeError(f"{name} = {value}: expected {expected}")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """A data set and how it is split.

    `held_out` is the domain never trained on. With `group = "name"` images of one name (the same thing in several
    domains) stay on one side of every split, and `test_fraction` of the names are kept for the held-out domain.
    `fold` rotates those test names; `trial` draws another validation split.
    """

    path: str
    held_out: str | None = None
    group: Group = "none"
    test_fraction: float = 0.4
    validation_fraction: float = 0.2
    fold: int = 0
    trial: int = 0
    limit_per_class: int | None = None
    image_size: int = 64

    def __post_init__(self) -> None:
        check("path", repr(self.path), bool(self.path), "a folder or a .zip")
        check("held_out", repr(self.held_out), self.held_out != "", "the name of a domain")
        check("group", repr(self.group), self.group in get_args(Group), "one of 'none', 'name'")
        check("fold", self.fold, self.fold >= 0, "0 or more")
        check("trial", self.trial, self.trial >= 0, "0 or more")
        check("test_fraction", self.test_fraction, 0 < self.test_fraction < 1, "between 0 and 1")
        check("validation_fraction", self.validation_fraction, 0 < self.validation_fraction < 1, "between 0 and 1")
        enough = self.limit_per_class is None or self.limit_per_class >= 1
        check("limit_per_class", self.limit_per_class, enough, "at least 1")
        check("image_size", self.image_size, 8 <= self.image_size <= 1024, "between 8 and 1024 pixels")


@dataclass(frozen=True, slots=True)
class Augment:
    """How far a view may be from its image: each amount is drawn uniformly, for each image and view on its own.

    `rotation` in radians either way, `scale`, `contrast` and `shift` as shares, `brightness` in steps of 255; `mirror`
    and `grey` are probabilities. What moves in from outside is white.
    """

    rotation: float = 0.25
    scale: float = 0.2
    shift: float = 0.15
    contrast: float = 0.3
    brightness: float = 25.0
    mirror: float = 0.5
    grey: float = 0.1

    def __post_init__(self) -> None:
        check("rotation", self.rotation, 0 <= self.rotation <= 3.2, "from 0 to 3.2 radians")
        check("brightness", self.brightness, 0 <= self.brightness <= 255, "from 0 to 255")
        for name in ("scale", "shift", "contrast"):
            value = getattr(self, name)
            check(name, value, 0 <= value < 1, "from 0 up to, but not, 1")
        for name in ("mirror", "grey"):
            value = getattr(self, name)
            check(name, value, 0 <= value <= 1, "from 0 to 1")


@dataclass(frozen=True, slots=True)
class FineTune:
    """One fine-tuning by AdamW: linear warm-up, then a constant learning rate.

    `batch` examples a step, in equal parts from every training domain. The first `frozen_stages` stages of the network
    stay as they are; what they make of `views` augmented copies of every image is computed once and kept.
    With `averaging = "sma"` the result is the mean of the weights after each step from `average_from` on
    (Arpit et al. 2022, arXiv:2110.10832). `eval_every` 0 evaluates at the end only.
    """

    steps: int
    lr: float
    seed: int = 0
    weight_decay: float = 1e-4
    dropout: float = 0.0
    batch: int = 33
    warmup_steps: int = 10
    frozen_stages: int = 0
    views: int = 4
    augment: Augment = Augment()
    averaging: Averaging = "none"
    average_from: int = 0
    eval_every: int = 0

    def __post_init__(self) -> None:
        check("steps", self.steps, self.steps >= 1, "at least 1")
        check("lr", self.lr, 0 < self.lr < 10, "above 0 and below 10")
        check("weight_decay", self.weight_decay, 0 <= self.weight_decay <= 10, "from 0 to 10")
        check("dropout", self.dropout, 0 <= self.dropout < 1, "from 0 up to, but not, 1")
        check("batch", self.batch, self.batch >= 1, "at least 1")
        check("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more")
        check("frozen_stages", self.frozen_stages, self.frozen_stages >= 0, "0 or more")
        check("views", self.views, 0 <= self.views <= 64, "from 0 to 64")
        check("eval_every", self.eval_every, self.eval_every >= 0, "0 or more")
        check("averaging", repr(self.averaging), self.averaging in get_args(Averaging), "one of 'none', 'sma'")
        below = self.averaging == "none" or 0 <= self.average_from < self.steps
        check("average_from", self.average_from, below, f"from 0 to {self.steps - 1}, below steps")


def seed_hash(*arguments: object) -> int:
    """Returns a seed below 2**31 that depends on all arguments."""
    return int(hashlib.md5(str(arguments).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


def draw(name: str, choices: Sequence[T], run: int, trial: int) -> T:
    """Returns the choice that run `run` of trial `trial` makes for the setting `name`, uniformly.

    Each setting has a stream of its own, seeded as in DomainBed's hparams_registry.

    Raises:
        RecipeError: there is nothing to choose from.
    """
    import numpy as np

    check(name, list(choices), len(choices) > 0, "at least one choice")

    stream = np.random.RandomState(seed_hash(seed_hash(run, trial), name))
    return choices[int(stream.choice(len(choices)))]
