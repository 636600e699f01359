import base64
import zlib

import numpy as np
import pytest

from modelgit.errors import DataError
from modelgit.porcelain.evidence.answers import pack_answers, unpack_answers


@pytest.mark.parametrize("answers", [[], [0], [65535, 0, 3], list(range(1000))])
def test_answers_come_back(answers: list[int]) -> None:
    array = np.array(answers, np.int64)
    assert unpack_answers(pack_answers(array), len(answers)).tolist() == answers


def test_a_few_hundred_answers_fit_into_a_line() -> None:
    assert len(pack_answers(np.random.default_rng(0).integers(0, 10, 309))) < 400


@pytest.mark.parametrize("answers", [[-1], [65536]])
def test_numbers_that_no_class_has_are_refused(answers: list[int]) -> None:
    with pytest.raises(DataError, match="expected 0 to 65535"):
        pack_answers(np.array(answers))


def test_another_number_of_answers_is_refused() -> None:
    text = pack_answers(np.arange(5))
    with pytest.raises(DataError, match="expected 6, got 5"):
        unpack_answers(text, 6)
    with pytest.raises(DataError, match="expected 4, got more"):
        unpack_answers(text, 4)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(1 << 26), 9)).decode()
    with pytest.raises(DataError, match="expected 3, got more"):
        unpack_answers(bomb, 3)


@pytest.mark.parametrize("text", [None, 7, "no base 64!", base64.b64encode(b"not deflated").decode(), ""])
def test_other_text_is_refused(text: object) -> None:
    with pytest.raises(DataError, match="answers in a note"):
        unpack_answers(text, 3)
