"""What a fine-tuning is told: plain values, checked when they are made, with no torch behind them.

Seeds and draws follow DomainBed (Gulrajani & Lopez-Paz 2021, arXiv:2007.01434, `domainbed/lib/misc.py`): every random
stream is seeded by a hash of what it is for, so adding a setting changes no other draw.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from modelgit.train.choices import ERM, NO_AVERAGING, Averaging, Lora, Objective, Sma, Swa, Swad, check

T = TypeVar("T")
Group = Literal["none", "name"]
Source = Literal["auto", "images", "table", "arrays", "saved", "colored-mnist", "rotated-mnist"]
Keep = Literal["last", "best"]
Trains = Literal["all", "head", "featurizer"]
NewHead = Literal["probe", "random"]
Optimiser = Literal["adamw", "adam", "sgd"]
Schedule = Literal["constant", "cosine", "linear"]
Precision = Literal["float32", "bfloat16"]
BatchNorm = Literal["frozen", "train", "re-estimate"]


@dataclass(frozen=True, slots=True)
class Columns:
    """What a table's columns, or a file's arrays, are called; None: by the names that are usual."""

    input: str | None = None
    label: str | None = None
    domain: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        for field in ("input", "label", "domain", "name"):
            check(f"columns.{field}", repr(getattr(self, field)), getattr(self, field) != "", "the name of a column")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """A data set and how it is split.

    `held_out` is the domain never trained on. With `group = "name"` examples of one name (the same thing in several
    domains) stay on one side of every split, and `test_fraction` of the names are kept for the held-out domain.
    `fold` rotates those test names; `trial` draws another validation split.

    `domains` are those to train on, all but the held-out one if empty; `shard` "2/4" is the second of four parts of the
    training examples. Validation is on a part of each training domain, unless `validate_on` names another domain, which
    is then not trained on (leave-one-out), or the held-out one, a part of which is looked at (DomainBed's oracle).

    `kind` says what `path` is, where its looks do not; `classes` names the classes in order, where the data's own are
    not all or not in that order.
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
    domains: tuple[str, ...] = ()
    shard: str | None = None
    validate_on: str | None = None
    kind: Source = "auto"
    columns: Columns = Columns()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check("path", repr(self.path), bool(self.path), "a file or a folder")
        kinds = get_args(Source)
        check("kind", repr(self.kind), self.kind in kinds, f"one of {', '.join(map(repr, kinds))}")
        differ = len(set(self.classes)) == len(self.classes) != 1
        check("classes", list(self.classes), differ, "at least two names, all different")
        check("held_out", repr(self.held_out), self.held_out != "", "the name of a domain")
        check("group", repr(self.group), self.group in get_args(Group), "one of 'none', 'name'")
        check("fold", self.fold, self.fold >= 0, "0 or more")
        check("trial", self.trial, self.trial >= 0, "0 or more")
        check("test_fraction", self.test_fraction, 0 < self.test_fraction < 1, "between 0 and 1")
        check("validation_fraction", self.validation_fraction, 0 < self.validation_fraction < 1, "between 0 and 1")
        enough = self.limit_per_class is None or self.limit_per_class >= 1
        check("limit_per_class", self.limit_per_class, enough, "at least 1")
        check("image_size", self.image_size, 8 <= self.image_size <= 1024, "between 8 and 1024 pixels")
        for domain in self.domains:
            lost = domain in (self.held_out, self.validate_on)
            check("domains", list(self.domains), not lost, f"no domain that is held out or validated on, as {domain}")
        if self.shard is not None:
            part, parts = shard_of(self.shard)
            check("shard", repr(self.shard), 1 <= part <= parts <= 10_000, "K/N, 1 <= K <= N <= 10000")


def shard_of(text: str) -> tuple[int, int]:
    """Returns K and N of "K/N", zeros if it is not of that form."""
    part, _, parts = text.partition("/")
    plain = part.isascii() and parts.isascii() and part.isdigit() and parts.isdigit() and len(text) < 12
    return (int(part), int(parts)) if plain else (0, 0)


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
    """One fine-tuning: `steps` steps of an optimiser, the learning rate warmed up linearly, then on its `schedule`.

    `batch` examples a step, in equal parts from every training domain, or `batch_per_domain` of each if that is given;
    `accumulate` such batches to a step. The first `frozen_stages` stages of the network stay as they are; what they
    make of `views` augmented copies of every image is computed once and kept. With `trains = "head"`, and for the first
    `reprobe_steps` steps, the head alone is trained (then the optimiser begins afresh; Ramé et al. 2023 give 200 steps
    to starts from other tasks); with "featurizer" everything but the head. Where the start has no head for the task,
    `new_head` says how it gets one: by linear probing, or at random from the seed. `clip` bounds the gradient's norm, 0
    does not. `batch_norm` says what becomes of running statistics: "frozen", they stay as they came (only scale and
    shift are trained); "train", layers normalise by the batch and follow it, and an average of weights gets statistics
    of its own; "re-estimate", frozen, and measured anew on the training examples at the end. `eval_every` 0 evaluates
    at the end only; `keep = "best"` returns the weights that scored best on validation, before the first step and at
    every evaluation, instead of the last. With `commit_raw` the weights before averaging are committed too, as the
    parent of the average. With `lora` factors of low rank and the head are trained in place of all weights, and what is
    committed is the adapter.

    How the device does it: `compile` hands the network to torch.compile (on CUDA into graphs that are replayed);
    `checkpoint` computes each stage again for its gradient, which saves memory and costs a third more work;
    `deterministic` allows only operations whose result does not depend on what else a GPU is at; `shard_weights` splits
    weights, gradients and moments over the processes of a run, where there are several, instead of copying them.
    """

    steps: int
    lr: float
    seed: int = 0
    weight_decay: float = 1e-4
    dropout: float = 0.0
    batch: int = 33
    batch_per_domain: int | None = None
    accumulate: int = 1
    warmup_steps: int = 10
    schedule: Schedule = "constant"
    optimiser: Optimiser = "adamw"
    clip: float = 0.0
    precision: Precision = "float32"
    trains: Trains = "all"
    reprobe_steps: int = 0
    new_head: NewHead = "probe"
    frozen_stages: int = 0
    views: int = 4
    augment: Augment = Augment()
    objective: Objective = ERM
    averaging: Averaging = NO_AVERAGING
    eval_every: int = 0
    keep: Keep = "last"
    commit_raw: bool = False
    compile: bool = False
    checkpoint: bool = False
    deterministic: bool = False
    shard_weights: bool = False
    batch_norm: BatchNorm = "frozen"
    lora: Lora | None = None

    def __post_init__(self) -> None:
        check("steps", self.steps, self.steps >= 1, "at least 1")
        check("lr", self.lr, 0 < self.lr < 10, "above 0 and below 10")
        check("weight_decay", self.weight_decay, 0 <= self.weight_decay <= 10, "from 0 to 10")
        check("dropout", self.dropout, 0 <= self.dropout < 1, "from 0 up to, but not, 1")
        check("batch", self.batch, self.batch >= 1, "at least 1")
        some = self.batch_per_domain is None or self.batch_per_domain >= 1
        check("batch_per_domain", self.batch_per_domain, some, "at least 1")
        check("accumulate", self.accumulate, 1 <= self.accumulate <= 10_000, "from 1 to 10000")
        check("clip", self.clip, self.clip >= 0, "0 or more")
        for name in ("warmup_steps", "frozen_stages", "eval_every"):
            check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        check("views", self.views, 0 <= self.views <= 64, "from 0 to 64")
        for name, words in WORDS.items():
            value = getattr(self, name)
            check(name, repr(value), value in words, f"one of {', '.join(map(repr, words))}")
        check("reprobe_steps", self.reprobe_steps, 0 <= self.reprobe_steps < self.steps, "0 or more, below steps")
        body = self.trains == "featurizer" and self.reprobe_steps
        check("reprobe_steps", self.reprobe_steps, not body, 'none with trains = "featurizer": the head stays as it is')
        check_averaging(self)
        check_batch_norm(self)
        check_lora(self)


WORDS: dict[str, tuple[str, ...]] = {
    "schedule": get_args(Schedule),
    "optimiser": get_args(Optimiser),
    "precision": get_args(Precision),
    "trains": get_args(Trains),
    "new_head": get_args(NewHead),
    "keep": get_args(Keep),
    "batch_norm": get_args(BatchNorm),
}


def check_batch_norm(config: FineTune) -> None:
    """Raises RecipeError where statistics would change that a run must not, or cannot, change."""
    if config.batch_norm == "frozen":
        return
    moving = config.trains != "head"
    check(
        "batch_norm", repr(config.batch_norm), moving, "'frozen' with trains = \"head\": the featurizer stays as it is"
    )
    if config.batch_norm == "train":
        for name in ("compile", "checkpoint"):
            off = not getattr(config, name)
            check("batch_norm", "'train'", off, f"{name} = false: each pass is noted once, in the layers themselves")


def check_lora(config: FineTune) -> None:
    """Raises RecipeError where something would be trained, or split, that an adapter does not hold."""
    if config.lora is not None:
        whole = config.trains == "all"
        check("trains", repr(config.trains), whole, "'all' with lora: factors and head are what is trained")
        frozen = config.batch_norm == "frozen"
        check("batch_norm", repr(config.batch_norm), frozen, "'frozen' with lora: an adapter holds no statistics")
        check("shard_weights", "true", not config.shard_weights, "false with lora: factors are not split")


def check_averaging(config: FineTune) -> None:
    """Raises RecipeError unless the average along the run has something to average."""
    choice = config.averaging
    if isinstance(choice, Sma | Swa):
        check(f"{choice.name}.start", choice.start, choice.start < config.steps, f"below steps = {config.steps}")
    if isinstance(choice, Swad):
        enough = 0 < config.eval_every * choice.converge <= config.steps
        wanted = f"above 0, and {choice.converge} evaluations in {config.steps} steps: swad watches them"
        check("eval_every", config.eval_every, enough, wanted)


def seed_hash(*arguments: object) -> int:
    """Returns a seed below 2**31 that depends on all arguments."""
    return int(hashlib.md5(str(arguments).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


@dataclass(frozen=True, slots=True)
class PowerRange:
    """Numbers whose logarithm is uniform: `power_of` to the power of something from `low` to `high`."""

    low: float
    high: float
    power_of: float = 10.0

    def __post_init__(self) -> None:
        check("high", self.high, -100 <= self.low < self.high <= 100, "above low, both from -100 to 100")
        check("power_of", self.power_of, 1 < self.power_of <= 1000, "above 1, at most 1000")


def draw(name: str, choices: Sequence[T] | PowerRange, run: int, trial: int) -> T | float:
    """Returns the choice that run `run` of trial `trial` makes for the setting `name`, uniformly.

    Each setting has a stream of its own, seeded as in DomainBed's hparams_registry.

    Raises:
        RecipeError: there is nothing to choose from.
    """
    import numpy as np

    stream = np.random.RandomState(seed_hash(seed_hash(run, trial), name))
    if isinstance(choices, PowerRange):
        return float(choices.power_of ** stream.uniform(choices.low, choices.high))
    check(name, list(choices), len(choices) > 0, "at least one choice")
    return choices[int(stream.choice(len(choices)))]
