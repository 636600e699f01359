"""What becomes of one tensor when a change is applied, by names, shapes, types and ids alone."""

import numpy as np
import pytest

from modelgit.errors import Conflict, FormatError, UsageError
from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.merge.blocks.tensors import Inputs
from modelgit.porcelain.records import Record
from modelgit.porcelain.replaying.blaming import Commit, Traced, matches, place_in, step
from modelgit.porcelain.replaying.changes import check_scale
from modelgit.porcelain.replaying.making import TaskVector, split_message, steps_of
from modelgit.porcelain.replaying.origins import Origins, sources_of
from modelgit.porcelain.replaying.planning import Names, decide, merged_record, one_file
from modelgit.porcelain.replaying.values import Change, Choices, Decision
from modelgit.porcelain.replaying.verifying import read_trailers
from modelgit.repo.values import LogEntry, Version

NAMES = Names("base", "HEAD", "theirs")
KEEP, ADD, HALF = Choices(), Choices(alike="add"), Choices(0.5, "add")
OURS = Choices(tensors="ours")


def entry(oid: str | None, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> TensorEntry | None:
    return None if oid is None else TensorEntry("w", dtype, shape, oid * 64)


def outcome(base: str | None, ours: str | None, theirs: str | None, choices: Choices, dtype: str = "F32") -> str:
    """Returns the side that was chosen, `absent`, or the kind of the conflict."""
    found = decide((entry(base, dtype), entry(ours, dtype), entry(theirs, dtype)), choices, NAMES)
    if found is None:
        return "absent"
    return found.kind if isinstance(found, Conflict) else found.side


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "keep", "add", "half"),
    [
        ("a", "a", "a", "ours", "ours", "ours"),
        ("a", "b", "a", "ours", "ours", "ours"),
        ("a", "a", "c", "theirs", "theirs", "sum"),
        ("a", "c", "c", "ours", "sum", "sum"),
        ("a", "b", "c", "sum", "sum", "sum"),
        (None, None, "c", "theirs", "theirs", "missing"),
        (None, "c", "c", "ours", "ours", "ours"),
        (None, "b", "c", "missing", "missing", "missing"),
        ("a", "a", None, "absent", "absent", "missing"),
        ("a", None, None, "absent", "absent", "absent"),
        ("a", "b", None, "missing", "missing", "missing"),
        ("a", None, "c", "missing", "missing", "missing"),
        ("a", None, "a", "absent", "absent", "absent"),
    ],
)
def test_decisions(base: str | None, ours: str | None, theirs: str | None, keep: str, add: str, half: str) -> None:
    assert [outcome(base, ours, theirs, choices) for choices in (KEEP, ADD, HALF)] == [keep, add, half]
    refused = keep == "missing"
    assert outcome(base, ours, theirs, OURS) == (("absent" if ours is None else "ours") if refused else keep)


def test_integers_and_types_without_arithmetic() -> None:
    assert outcome("a", "b", "c", KEEP, "I64") == "ours"
    assert outcome("a", "a", "c", HALF, "I64") == "ours"
    assert outcome("a", "a", "c", KEEP, "I64") == "theirs"
    assert outcome("a", "b", "c", KEEP, "F8_E4M3") == "dtype"
    assert outcome("a", "a", "c", KEEP, "F8_E4M3") == "theirs"


def test_shapes_and_types_that_differ() -> None:
    other = decide((entry("a"), entry("b", shape=(3,)), entry("c")), KEEP, NAMES)
    assert other == Conflict("shape", "w", "one shape in all three versions", "[2] in base, [3] in HEAD, [2] in theirs")
    other = decide((entry("a"), entry("b", "F16"), entry("c")), KEEP, NAMES)
    assert other == Conflict("dtype", "w", "one dtype in all three versions", "F32 in base, F16 in HEAD, F32 in theirs")


def test_a_weight_file_that_stays_takes_a_new_header_of_theirs() -> None:
    def file(header: str, oid: str) -> Manifest:
        found = entry(oid, "I64")
        assert found is not None
        return Manifest(header * 64, 10, 26, (found,))

    stays = one_file((file("1", "a"), file("1", "b"), file("2", "c")), KEEP, NAMES, ([], []))
    assert stays == Manifest("2" * 64, 10, 26, file("1", "b").tensors)
    stays = one_file((file("1", "a"), file("3", "b"), file("2", "c")), KEEP, NAMES, ([], []))
    assert stays == file("3", "b")


def test_tied_tensors_stay_tied() -> None:
    inputs = tuple(entry(oid) for oid in "bca")
    assert all(inputs)
    both = [Decision(name, "sum", inputs) for name in ("embed", "head")]  # type: ignore[arg-type]
    assert [one.same_as for one in steps_of(both)] == [None, "embed"]


def test_the_sum_is_exact_in_its_coefficients() -> None:
    form = TaskVector().linear_terms((1.0, 0.1))
    assert (form.heads, form.base, form.divisor) == ((1.0, 0.1), -0.1, 1.0)
    ours, theirs, base = (np.array([float(value)]) for value in (8, 3, 1))
    assert TaskVector()(Inputs([ours, theirs], (1.0, 0.5), base)).tolist() == [9.0]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_scales_that_make_no_sense(scale: float) -> None:
    with pytest.raises(UsageError) as caught:
        check_scale("cherry-pick", scale)
    assert caught.value.hint


def test_records() -> None:
    old, new, other = Record("train", "a"), Record("train", "b"), Record("train", "c")
    assert merged_record(old, Record("merge", "a"), new) == new
    assert merged_record(old, other, new) == other
    assert merged_record(old, None, new) == new
    assert merged_record(None, None, None) is None
    assert merged_record(old, other, None) == other


def test_trailers_of_the_original_are_kept_but_for_those_on_how_it_was_made() -> None:
    message = "Tune\n\nWhy.\n\nSigned-off-by: Ada\nMerge-Method: linear\nReplay-Scale: 1.0\n"
    assert split_message(message) == ("Tune\n\nWhy.", (("Signed-off-by", "Ada"),))
    assert split_message("Tune: all\n") == ("Tune: all", ())


@pytest.mark.parametrize(
    ("key", "value"),
    [("Verb", "merge"), ("Scale", "NaN x"), ("Policy", "[]"), ("Policy", '{"alike":"x"}'), ("From", "one")],
)
def test_malformed_trailers(key: str, value: str) -> None:
    rows = {"Verb": "revert", "Of": "a", "From": "a b", "To": "c d", "Onto": "e f", "Scale": "1.0", "Policy": "{}"}
    good = version("".join(f"Replay-{name}: {text}\n" for name, text in rows.items()))
    assert read_trailers(good)[0].choices == Choices()
    rows[key] = value
    with pytest.raises(FormatError, match="malformed replay trailers"):
        read_trailers(version("".join(f"Replay-{name}: {text}\n" for name, text in rows.items())))


def version(trailers: str) -> Version:
    return Version(LogEntry("f" * 40, (), "Ada", 0, "x", f"x\n\n{trailers}"), {}, {}, {})


def test_which_names_a_pattern_matches() -> None:
    assert [matches("enc.0.w", pattern) for pattern in ("enc", "enc.0.w", "enc.*", "*.w", "en", "0")] == [
        *(True, True, True, True, False, False)
    ]


def test_a_tensor_goes_to_the_first_parent_that_has_it() -> None:
    found = entry("a")
    assert found is not None
    traced = Traced("m", found, "m", b"line")
    texts = {"1": frozenset([b"line"]), "2": frozenset([b"other"])}
    assert place_in(traced, {}, texts) == "m"
    assert place_in(traced, {"m": ("1", "3")}, texts) == "m"
    assert place_in(traced, {"m": ("2", "3")}, texts) is None
    assert place_in(traced, {"m": ("0" * 40, "3"), "old": ("1", "0" * 40)}, texts) == "old"
    pending = {"c": [traced]}
    merge = Commit("c", ("p", "q"), "Ada", 0, "x")
    assert step(merge, pending, {("c", "p"): {"m": ("2", "3")}, ("c", "q"): {"m": ("1", "3")}}, texts) == []
    assert pending == {"q": [traced]}


def test_whose_change_a_commit_says_it_is() -> None:
    a, b, c = "a" * 40, "b" * 40, "c" * 40
    picked = f"tune\n\n(cherry picked from commit {a})\n(cherry picked from commit {b})"
    assert sources_of(picked) == {("cherry-pick", a), ("cherry-pick", b)}
    assert sources_of(f"Revert x\n\nThis reverts commit {c}, reversing\nchanges made to {a}.") == {("revert", c)}
    assert sources_of(f"forget\n\nReplay-Verb: revert\nReplay-Of: {a}") == {("revert", a)}
    assert sources_of(f"tune\n\nReplay-Verb: rebase\nReplay-Of: {a}") == {("cherry-pick", a)}
    assert sources_of(f"see commit {a}") == set()


@pytest.mark.parametrize(
    ("added", "gone", "inside", "scaled", "picked", "reverted"),
    [
        (1, 0, False, False, True, False),
        (0, 1, False, False, False, True),
        (0, 1, True, False, False, True),  # its own commit, taken back
        (1, 1, False, False, False, True),
        (1, 1, True, False, True, False),
        (0, 0, True, False, True, False),
        (0, 0, True, True, False, False),  # its own commit is there; a scale makes it stronger
        (1, 0, True, True, True, False),  # but once only
    ],
)
def test_a_change_is_there_until_it_is_taken_back(
    added: int, gone: int, inside: bool, scaled: bool, picked: bool, reverted: bool
) -> None:
    pick, undo = Change("cherry-pick", "x", "", "", KEEP), Change("revert", "x", "", "", KEEP)
    origins = Origins({"x": ("p",) * added}, {"x": ("r",) * gone})
    assert origins.there(pick, inside=inside, scaled=scaled) == picked
    assert origins.there(undo, inside=inside, scaled=scaled) == reverted
    assert (origins.by(pick), origins.by(undo)) == ("p" if added else None, "r" if gone else None)
