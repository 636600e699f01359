import numpy as np
import torch

from modelgit.train.answers import drawn
from modelgit.train.data.splits import Split
from modelgit.train.features import Features, by_length

TOKENS = torch.tensor([[5, 6, 7, 0], [5, 0, 0, 0], [5, 6, 7, 8], [5, 6, 0, 0]])


def features(clean: torch.Tensor, *, padded: bool) -> Features:
    return Features(clean, clean[None], {10: 0, 11: 1, 12: 2, 13: 3}, {}, padded=padded)


def test_sequences_come_in_the_order_of_their_length() -> None:
    asked = np.array([13, 12, 11, 10])
    found = by_length(features(TOKENS, padded=True), asked)
    assert found is not None and asked[found].tolist() == [11, 13, 10, 12]
    states = torch.cat(
        [torch.rand(4, 4, 3), TOKENS.ne(0).float().unsqueeze(-1)], 2
    )  # hidden states, and where they are
    again = by_length(features(states, padded=True), asked)
    assert again is not None and again.tolist() == found.tolist()


def test_what_is_no_sequence_keeps_its_order() -> None:
    assert by_length(features(torch.rand(4, 4), padded=False), np.array([10, 11])) is None


def test_examples_are_drawn_once_for_all_and_of_each_part_so_many() -> None:
    parts = Split({"a": np.arange(0, 40)}, {"a": np.arange(40, 60), "b": np.arange(60, 80)}, np.arange(80, 120))
    found = drawn(parts, 10, 15)
    assert found.tolist() == sorted(set(found.tolist())) == drawn(parts, 10, 15).tolist()
    assert ((found >= 80).sum(), ((found >= 40) & (found < 80)).sum(), len(found)) == (10, 15, 25)
    assert drawn(parts, 1000, 1000).tolist() == list(range(40, 120))
