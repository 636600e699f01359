"""Batches: what a seed draws stays what it was, whatever becomes of how it is drawn."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from modelgit.train.features import Features
from modelgit.train.fitting.batches import drawn, is_there, source_of

SIZES = {"a": 50, "b": 7, "c": 120}
ENDS = np.cumsum([0, *SIZES.values()])
TRAIN = {name: 10 * np.arange(first, end) for name, (first, end) in zip(SIZES, pairwise(ENDS), strict=True)}
LABELS = torch.arange(10 * sum(SIZES.values()))  # each example its own


@pytest.fixture
def features() -> Features:
    count, views = sum(SIZES.values()), torch.randn(3, sum(SIZES.values()), 4).half()
    rows = {10 * i: count - 1 - i for i in range(count)}  # examples are not in the order of rows
    return Features(views[0].float(), views, rows, rows)


def test_examples_views_and_labels_are_drawn_domain_by_domain_then_views(features: Features) -> None:
    draws, again, source = torch.Generator(), torch.Generator(), source_of(features, LABELS, TRAIN)
    for step in range(3):
        for generator in (draws, again):
            generator.manual_seed(step)
        found, known = drawn(features, source, 5, draws)
        chosen = [TRAIN[name][torch.randint(size, (5,), generator=again).numpy()] for name, size in SIZES.items()]
        view = torch.randint(3, (15,), generator=again)
        assert known.tolist() == np.concatenate(chosen).tolist()
        rows = torch.tensor([features.viewed[int(i)] for i in np.concatenate(chosen)])
        assert torch.equal(found, features.views[view, rows].float())
        assert torch.equal(draws.get_state(), again.get_state())


def test_a_seed_draws_what_it_drew_in_earlier_versions(features: Features) -> None:
    _, known = drawn(features, source_of(features, LABELS, TRAIN), 4, torch.Generator().manual_seed(7))
    assert known.tolist() == [150, 420, 210, 360, 510, 540, 560, 510, 850, 980, 1750, 880]


@pytest.mark.parametrize(
    ("place", "wanted", "there"),
    [
        ("cpu", "cpu", True),
        ("cuda:0", "cuda", True),  # PyTorch calls these two unequal
        ("cuda:1", "cuda:1", True),
        ("cuda:0", "cuda:1", False),
        ("cpu", "cuda", False),
        ("cuda:0", "cpu", False),
    ],
)
def test_a_device_without_a_number_is_the_one_in_use(place: str, wanted: str, there: bool) -> None:
    assert is_there(torch.device(place), torch.device(wanted)) == there
