import numpy as np
import pytest

from modelgit.errors import DataError
from modelgit.porcelain.evidence.answers import pack_answers
from modelgit.porcelain.evidence.gathering import Examples, answered, strategy_cells

EXAMPLES = Examples("noto", "0", ("cat", "dog", "owl"), np.array([0, 1, 2]))
OTHER = Examples("fluent", "0", ("cat", "dog", "owl"), np.array([0, 1, 2]))


def row(answers: list[int], **more: object) -> dict[str, object]:
    return {"answers": {"ood_accuracy": pack_answers(np.array(answers))}, **more}


def test_a_note_says_what_was_right() -> None:
    found = answered("plain/0", "probe", EXAMPLES, row([0, 1, 1], val_accuracy=0.75))
    assert found.cell.right.tolist() == [1, 1, 0]
    assert found.validation == 0.75
    assert (found.cell.domain, found.cell.seed, found.cell.things) == ("noto", "0", ("cat", "dog", "owl"))


def test_models_of_a_strategy_are_averaged_within_cells() -> None:
    models = [
        answered("plain/0", "probe", EXAMPLES, row([0, 1, 1])),
        answered("plain/1", "probe", EXAMPLES, row([0, 0, 1])),
        answered("plain/0", "probe", OTHER, row([2, 2, 2])),
    ]
    first, second = strategy_cells(models)
    assert (first.domain, first.right.tolist()) == ("fluent", [0, 0, 1])
    assert (second.domain, second.right.tolist()) == ("noto", [1, 0.5, 0])


@pytest.mark.parametrize("bad", [{}, {"answers": "text"}, {"answers": {}}])
def test_a_note_without_answers_names_the_step(bad: dict[str, object]) -> None:
    with pytest.raises(DataError, match="step 'plain/0': no answers"):
        answered("plain/0", "probe", EXAMPLES, bad)


def test_answers_to_other_examples_are_refused() -> None:
    with pytest.raises(DataError, match="expected 3, got 2"):
        answered("plain/0", "probe", EXAMPLES, row([0, 1]))
