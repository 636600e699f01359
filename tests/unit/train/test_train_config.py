"""Settings are checked when they are made; seeds and draws are DomainBed's."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from modelgit.errors import RecipeError
from modelgit.train.choices import Coral, Ema, GroupDro, Irm, Lawa, Mixup, Sma, Swa, Swad, Vrex
from modelgit.train.config import Augment, DataConfig, FineTune, draw, seed_hash

# (lr in 1e-5, dropout, weight decay) of the first 20 runs: science notes, section 6
MILD = [
    (5, 0, 0), (3, 0.5, 1e-4), (1, 0.5, 1e-6), (3, 0, 1e-6), (1, 0, 1e-6), (3, 0.5, 1e-4), (3, 0.1, 1e-4),
    (1, 0.1, 1e-4), (5, 0.1, 1e-4), (5, 0.5, 1e-6), (5, 0.5, 1e-6), (5, 0, 1e-6), (3, 0.5, 1e-4), (5, 0.5, 1e-6),
    (5, 0, 1e-6), (3, 0, 1e-4), (1, 0.5, 1e-4), (5, 0.1, 1e-4), (5, 0, 1e-6), (3, 0, 1e-6),
]  # fmt: skip


def test_seeds_are_domainbeds() -> None:
    assert seed_hash(0, 0) == 894182419
    assert seed_hash(0, 1) == 1514274641
    assert seed_hash(1, 0) == 785910682
    assert seed_hash("OfficeHome", "ERM", [0], 3, 1) == 756439731


def test_draws_are_domainbeds_mild_ranges() -> None:
    choices: dict[str, list[float]] = {
        "lr": [1, 3, 5],
        "resnet_dropout": [0, 0.1, 0.5],
        "weight_decay": [1e-4, 1e-6],
    }
    drawn = [tuple(draw(name, values, run, 0) for name, values in choices.items()) for run in range(1, 20)]
    assert drawn == MILD[1:]


def test_a_draw_does_not_depend_on_other_settings() -> None:
    assert [draw("lr", "abc", run, 0) for run in range(8)] == [draw("lr", "abc", run, 0) for run in range(8)]
    assert len({tuple(draw("lr", "abc", run, trial) for run in range(8)) for trial in range(4)}) > 1


def test_a_draw_from_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="lr"):
        draw("lr", [], 1, 0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("weight_decay", -1.0),
        ("weight_decay", math.inf),
        ("dropout", 1.0),
        ("batch", 0),
        ("warmup_steps", -1),
        ("frozen_stages", -1),
        ("views", 65),
        ("eval_every", -1),
        ("accumulate", 0),
        ("clip", -1.0),
        ("schedule", "steep"),
        ("optimiser", "lion"),
        ("precision", "float8"),
        ("trains", "body"),
        ("new_head", "none"),
        ("keep", "worst"),
        ("reprobe_steps", 10),
    ],
)
def test_a_fine_tuning_that_makes_no_sense_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"{setting} = "):
        FineTune(**{"steps": 10, "lr": 1e-3, setting: value})


def test_averaging_must_begin_before_the_end() -> None:
    with pytest.raises(RecipeError, match=r"sma\.start = 10: expected below steps = 10"):
        FineTune(steps=10, lr=1e-3, averaging=Sma(start=10))


def test_swad_needs_validations_to_watch() -> None:
    with pytest.raises(RecipeError, match="eval_every = 0: expected above 0, and 3 evaluations in 10 steps"):
        FineTune(steps=10, lr=1e-3, averaging=Swad())
    with pytest.raises(RecipeError, match="eval_every = 4"):
        FineTune(steps=10, lr=1e-3, averaging=Swad(), eval_every=4)
    assert FineTune(steps=10, lr=1e-3, averaging=Swad(), eval_every=3).eval_every == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Coral(gamma=-1), "coral.gamma = -1"),
        (lambda: Mixup(alpha=0), "mixup.alpha = 0"),
        (lambda: GroupDro(eta=math.nan), "groupdro.eta = nan"),
        (lambda: Irm(anneal=-1), "irm.anneal = -1"),
        (lambda: Vrex(penalty=math.inf), "vrex.penalty = inf"),
        (lambda: Ema(decay=1.0), "ema.decay = 1.0"),
        (lambda: Swa(every=0), "swa.every = 0"),
        (lambda: Lawa(keep=0), "lawa.keep = 0"),
        (lambda: Swad(ratio=0.5), "swad.ratio = 0.5"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("path", ""),
        ("held_out", ""),
        ("group", "colour"),
        ("test_fraction", 1.0),
        ("validation_fraction", 0.0),
        ("fold", -1),
        ("trial", -1),
        ("limit_per_class", 0),
        ("image_size", 4),
    ],
)
def test_data_that_makes_no_sense_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"{setting} = "):
        DataConfig(**{"path": "data.zip", setting: value})


@pytest.mark.parametrize(("setting", "value"), [("rotation", 4.0), ("scale", 1.0), ("mirror", 1.1), ("brightness", -1)])
def test_an_augmentation_that_makes_no_sense_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"{setting} = "):
        Augment(**{setting: value})


def test_settings_load_no_torch() -> None:
    code = "import sys, modelgit.train.config; print('torch' in sys.modules, 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/", "-1/2", "1/99999"])
def test_a_shard_is_one_of_some(shard: str) -> None:
    with pytest.raises(RecipeError, match="shard = "):
        DataConfig("x", shard=shard)
    assert DataConfig("x", shard="2/4").shard == "2/4"


def test_a_domain_is_not_trained_on_and_held_back_at_once() -> None:
    for held_out, validate_on in (("a", None), (None, "a")):
        with pytest.raises(RecipeError, match="as a"):
            DataConfig("x", held_out, domains=("a", "b"), validate_on=validate_on)


def test_a_head_that_stays_cannot_be_probed_again() -> None:
    with pytest.raises(RecipeError, match="reprobe_steps = 3"):
        FineTune(steps=5, lr=0.1, trains="featurizer", reprobe_steps=3)
