"""What a merge commit says of statistics, which anybody may have written, and how they are had again."""

import json
from dataclasses import replace

import pytest

from modelgit.errors import DataError, DifferencesFound, FormatError, UsageError
from modelgit.merge.methods import make
from modelgit.porcelain.merging.matching.informing import informing_of, places, recorded, refuse_others
from modelgit.porcelain.merging.values import Align, Choices, Informed, InformedHead, Informing, Prepared
from modelgit.porcelain.scores import DataName
from modelgit.repo.values import LogEntry, Version, with_trailers
from modelgit.train.config import DataConfig

ONE = {"name": "one", "commit": "a" * 40, "digest": "d1", "data": "set", "data_digest": "e", "images": 3}
TWO = {**ONE, "name": "two", "commit": "b" * 40, "digest": "d2"}


def version(text: str | None) -> Version:
    trailers = (("Merge-Statistics", text),) if text is not None else ()
    message = with_trailers("Merge", (("Merge-Method", "fisher"), *trailers))
    return Version(LogEntry("e" * 40, (), "Ada", 0, message, message), {}, {}, {})


def told(*rows: object, labels: str = "model", images: object = 1024) -> str:
    return json.dumps({"kind": "fisher", "heads": list(rows), "labels": labels, "images": images})


def found(*heads: InformedHead) -> Prepared:
    nothing = Informed("fisher", heads, "model", 1024)
    return Prepared((), (), (), make("fisher", {}), Choices("fisher"), {}, {}, (), informed=nothing)


@pytest.mark.parametrize(
    "text",
    [
        "[1",
        "[]",
        "{}",
        "[" * 100_000,
        told(),
        told(1),
        told({"commit": "a"}),
        told(ONE, {**TWO, "data_digest": ""}),
        told(ONE, labels="others"),
        told(ONE, images="many"),
        told(ONE, images=None),
        told({**ONE, "split": 3}),
    ],
)
def test_malformed_words_are_a_format_error(text: str) -> None:
    with pytest.raises(FormatError, match="malformed merge trailers"):
        recorded(version(text))


def test_statistics_are_had_again_from_data_or_from_files() -> None:
    merge = version(told(ONE, TWO, labels="data", images=7))
    wanted = Informing(data=("here",), labels="data", images=7, fresh=True)
    assert informing_of(merge, None, "here") == wanted
    assert informing_of(merge, Informing(data=("here",)), None) == wanted
    with pytest.raises(UsageError, match="statistics of data 'set': say where it is"):
        informing_of(merge, None, None)
    files = version(told(*({**row, "data": "", "data_digest": ""} for row in (ONE, TWO)), labels=""))
    assert informing_of(files, Informing(files=("x", "y")), None) == Informing(files=("x", "y"))
    with pytest.raises(UsageError, match="from files: say where they are"):
        informing_of(files, None, "here")
    assert informing_of(version(None), None, "here") is None
    with pytest.raises(UsageError, match="merged without statistics"):
        informing_of(version(None), Informing(files=("x",)), None)


def test_data_is_split_again_as_it_was() -> None:
    split = {"held_out": "night", "trial": 2, "image_size": 16}
    merge = version(told({**ONE, "split": split}, {**TWO, "split": split}))
    again = informing_of(merge, None, "set.zip")
    wanted = DataName("set", DataConfig("set.zip", held_out="night", trial=2, image_size=16), 0, has_splits=True)
    assert again == Informing(data=(wanted, wanted), fresh=True)
    assert informing_of(merge, Informing(data=("a.zip", "b.zip")), None) == Informing(
        data=(
            replace(wanted, config=replace(wanted.config, path="a.zip")),
            replace(wanted, config=replace(wanted.config, path="b.zip")),
        ),
        fresh=True,
    )
    for wrong in ({"trial": "two"}, {"path": "elsewhere", "other": 1}):
        with pytest.raises(FormatError, match="malformed merge trailers"):
            informing_of(version(told({**ONE, "split": wrong})), None, "set.zip")


def test_other_statistics_are_told_apart() -> None:
    one, two = (InformedHead(**row) for row in (ONE, TWO))  # type: ignore[arg-type]
    merge = version(told(ONE, TWO))
    refuse_others(merge, found(one, two))
    refuse_others(version(None), found(one, two))
    cases: list[tuple[tuple[InformedHead, ...], type[Exception], str]] = [
        ((one,), FormatError, "statistics of 2 models, 1 inputs"),
        ((two, one), DifferencesFound, "which is no input"),
        ((one, InformedHead("two", "b" * 40, "d2", "set", "f")), DataError, "other data than 'set'"),
        ((one, InformedHead("two", "b" * 40, "d3", "set", "e")), DifferencesFound, "not those recorded"),
    ]
    for heads, error, words in cases:
        with pytest.raises(error, match=words):
            refuse_others(merge, found(*heads))


def test_one_place_for_each_model() -> None:
    fisher, names = Choices("fisher"), ["one", "two"]
    assert places(Informing(files=("x", "y")), names, fisher) == ["x", "y"]
    assert places(Informing(data=("x",)), names, fisher) == ["x", "x"]
    assert places(Informing(data=("x", "y")), names, fisher) == ["x", "y"]
    for choices in (Choices("fisher", align=Align()), Choices("fisher", vocabulary="ours"), Choices(heads="mean")):
        with pytest.raises(UsageError, match="statistics are of models as they are"):
            places(Informing(data=("x",)), names, choices)
