"""What a merge decides before it touches anything: policies, ordinary files, records, trailers. No git here."""

import json

import pytest

from modelgit.errors import FormatError, UsageError
from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.merge.engine.ways import conflict_error
from modelgit.porcelain.checking import differing, read_trailers
from modelgit.porcelain.importing import config_classes
from modelgit.porcelain.merging.preparing import files_of, ordinary_files, policy_of
from modelgit.porcelain.merging.values import Choices, MergedHead
from modelgit.porcelain.records import Record
from modelgit.porcelain.scorebook import Score, parse_scores
from modelgit.porcelain.versions import contents_id, together
from modelgit.porcelain.work import tensor_changes
from modelgit.repo.values import Blob, LogEntry, Version, with_trailers

MEMBERS = tuple(MergedHead(name, name * 40, 1.0) for name in "ab")
TRAILERS = (
    ("Merge-Method", "linear"),
    ("Merge-Settings", '{"normalize":true}'),
    ("Merge-Weights", "[1.0,2.0]"),
    ("Merge-Policy", json.dumps(Choices(heads="drop", head_names=("head",)).policy())),
    ("Merge-Base", "c" * 40),
    ("Merge-Input", f"{'a' * 40} {'1' * 64}"),
    ("Merge-Input", f"{'b' * 40} {'2' * 64}"),
)


def version(
    files: dict[str, str] | None = None, manifests: dict[str, Manifest] | None = None, message: str = "m"
) -> Version:
    """Returns a version whose files hold one-word blobs."""
    entry = LogEntry("e" * 40, (), "Ada", 0, message, message)
    return Version(entry, manifests or {}, {}, {path: Blob(word) for path, word in (files or {}).items()})


def manifest(**oids: str) -> Manifest:
    """Returns a manifest of one-element tensors."""
    return Manifest("h", 8, 8, tuple(TensorEntry(name, "F32", (1,), oid) for name, oid in sorted(oids.items())))


def merged(a: dict[str, str], b: dict[str, str], base: dict[str, str] | None) -> tuple[dict[str, str], list[str]]:
    """Returns what becomes of the files of two versions, and the paths in conflict."""
    origin = files_of((version(base),) if base is not None else ())
    files, conflicts = ordinary_files(MEMBERS, (version(a), version(b)), origin, Choices())
    return {path: blob.sha for path, blob in files.items() if isinstance(blob, Blob)}, [
        conflict.where for conflict in conflicts
    ]


@pytest.mark.parametrize(
    ("a", "b", "base", "files", "conflicts"),
    [
        ({"x": "1"}, {"x": "1"}, {"x": "0"}, {"x": "1"}, []),  # both made the same change
        ({"x": "1"}, {"x": "0"}, {"x": "0"}, {"x": "1"}, []),  # one changed it
        ({"x": "1"}, {"x": "2"}, {"x": "0"}, {}, ["x"]),  # both did
        ({}, {"x": "0"}, {"x": "0"}, {}, []),  # one deleted it
        ({}, {"x": "2"}, {"x": "0"}, {}, ["x"]),  # one deleted what the other changed
        ({"x": "1"}, {}, {}, {"x": "1"}, []),  # one added it
        ({"x": "1"}, {"x": "1"}, None, {"x": "1"}, []),  # no base
        ({"x": "1"}, {"x": "2"}, None, {}, ["x"]),
        ({".modelgit/record.json": "1"}, {".modelgit/record.json": "2"}, {}, {}, []),  # a merge has a record of its own
    ],
)
def test_files_merge_as_git_would(
    a: dict[str, str], b: dict[str, str], base: dict[str, str] | None, files: dict[str, str], conflicts: list[str]
) -> None:
    assert merged(a, b, base) == (files, conflicts)


def test_ours_is_the_first() -> None:
    pair = (version({"x": "1"}), version({"x": "2"}))
    files, conflicts = ordinary_files(MEMBERS, pair, {"x": Blob("0")}, Choices(files="ours"))
    assert (files, conflicts) == ({"x": Blob("1")}, [])


def test_files_on_which_several_bases_differ_are_in_none() -> None:
    assert files_of((version({"x": "0", "y": "1"}), version({"x": "0", "y": "2"}))) == {"x": Blob("0")}
    assert files_of(()) is None


def test_conflicts_of_files_have_their_own_words() -> None:
    _, conflicts = ordinary_files(MEMBERS, (version({"x": "1"}), version({"x": "2"})), None, Choices())
    error = conflict_error(conflicts)
    assert error.message == "versions disagree on x: another content in b"
    assert str(error.hint).startswith("Take those of the version you are on (--files ours); ")


OUTCOMES: dict[tuple[str, str, str], Blob | int] = {
    ("0", "1", "2"): Blob("12"),  # words that stand for texts: 1 and 2 change other lines of 0
    ("0", "12", "4"): Blob("124"),
    ("0", "1", "3"): 2,  # the two meet in two places
}


def merge_words(_path: str, base: Blob, ours: Blob, theirs: Blob) -> Blob | int:
    return OUTCOMES[base.sha, ours.sha, theirs.sha]


@pytest.mark.parametrize(
    ("words", "result", "got"),
    [
        (("1", "2", "4"), "124", []),
        (("1", "0", "1"), "1", []),
        (("1", "3", "0"), None, ["other lines in 2 places in b, c"]),
        (("1", None, "0"), None, ["another content in b, c"]),
    ],
)
def test_texts_are_merged_line_by_line(words: tuple[str | None, ...], result: str | None, got: list[str]) -> None:
    three = [MergedHead(name, name * 40, 1.0) for name in "abc"]
    versions = tuple(version({"x": word} if word else {}) for word in words)
    files, conflicts = ordinary_files(three, versions, {"x": Blob("0")}, Choices(), merge_text=merge_words)
    assert files == ({"x": Blob(result)} if result else {})
    assert [conflict.got for conflict in conflicts] == got


def test_which_tensors_are_the_head() -> None:
    records = (Record("train", head=("fc.weight", "fc.bias")), None)
    assert policy_of(Choices(), records).head_names == ("fc.bias", "fc.weight")
    assert policy_of(Choices(head_names=("top",)), records).head_names == ("top",)
    with pytest.raises(UsageError, match="no record says which tensors are the head"):
        policy_of(Choices(heads="drop"), (None, None))


def test_trailers_say_all_that_is_needed_to_do_it_again() -> None:
    recorded = read_trailers(version(message=with_trailers("Merge a, b", TRAILERS)))
    assert recorded.choices == Choices("linear", {"normalize": True}, (1.0, 2.0), heads="drop", head_names=("head",))
    assert recorded.bases == ("c" * 40,)
    assert recorded.inputs == (("a" * 40, "1" * 64), ("b" * 40, "2" * 64))


def test_no_merge() -> None:
    with pytest.raises(UsageError, match="no merge of models"):
        read_trailers(version(message="First version"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Merge-Weights", "[1.0"),
        ("Merge-Weights", '["x"]'),
        ("Merge-Settings", "[1]"),
        ("Merge-Policy", '{"on_missing": "error"}'),
        ("Merge-Policy", '{"head_names": [], "colour": "red"}'),
        ("Merge-Policy", "[" * 100_000),
        ("Merge-Input", "only-one-word"),
    ],
)
def test_malformed_trailers_are_a_format_error(key: str, value: str) -> None:
    changed = tuple((k, value if k == key else v) for k, v in TRAILERS)
    with pytest.raises(FormatError, match="malformed merge trailers"):
        read_trailers(version(message=with_trailers("Merge", changed)))


def test_what_differs_is_named() -> None:
    old, new = manifest(a="1", b="2", c="3"), manifest(a="1", b="9", d="4")
    assert differing({"m": old}, {"m": old}) == []
    assert differing({"m": old}, {"m": new}) == ["d", "c", "b"]
    assert differing({"m": old, "n": old}, {"m": old}) == ["n"]
    assert differing({"m": old}, {"m": Manifest("other", 8, 8, old.tensors)}) == ["header of m"]


def test_tensors_are_counted_by_name_wherever_they_are_kept() -> None:
    """A file that has another name, or tensors in other shards, changed nothing."""
    old, new = manifest(a="1", b="2", c="3"), manifest(a="1", b="9", d="4")
    assert tensor_changes({"m": old}, {"m": new}) == (1, 1, 1, 1)
    assert tensor_changes({}, {"m": new}) == (3, 0, 0, 0)
    assert tensor_changes({"m": old}, {"n": old}) == (0, 0, 0, 3)
    assert tensor_changes({"m": old}, {"n": manifest(a="1", b="9"), "o": manifest(c="3")}) == (0, 1, 0, 2)
    assert tensor_changes({"m": old}, {"m": old, "n": old}) == (3, 0, 0, 3), "a copy is new"
    assert tensor_changes({"m": old, "n": old}, {"n": old}) == (0, 0, 3, 3), "and gone when it is removed"


def test_shards_together() -> None:
    whole = together(version(manifests={"1.safetensors": manifest(z="1"), "2.safetensors": manifest(a="2")}))
    assert [entry.name for entry in whole.tensors] == ["a", "z"]
    assert whole.size_bytes == 16
    with pytest.raises(FormatError, match="tensor 'a' is in several weight files"):
        together(version(manifests={"1.safetensors": manifest(a="1"), "2.safetensors": manifest(a="1")}))


def test_the_id_of_contents_depends_on_paths_and_weights_alone() -> None:
    one = version({"x": "1"}, {"m": manifest(a="1")})
    assert contents_id(one) == contents_id(version({"x": "2"}, {"m": manifest(a="1")}, "other message"))
    assert contents_id(one) != contents_id(version({"x": "1"}, {"n": manifest(a="1")}))
    assert contents_id(one) != contents_id(version({"x": "1"}, {"m": manifest(a="2")}))


def test_scores_are_read_from_notes_that_anybody_may_write() -> None:
    rows = [{"data": "emoji", "split": "s", "val_accuracy": 0.5, "images": {"val_accuracy": 9}}, [1], {"data": "x"}]
    text = "\n".join([*map(json.dumps, rows), "not json", "[" * 100_000, ""])
    assert parse_scores(text) == (Score("emoji", "s", {"val_accuracy": 0.5}, {"val_accuracy": 9}),)
    assert parse_scores("") == ()


@pytest.mark.parametrize(
    ("config", "classes"),
    [
        (b'{"id2label": {"1": "good", "0": "bad"}}', ("bad", "good")),
        (b'{"id2label": {"1": "good"}}', ()),
        (b'{"id2label": ["bad"]}', ()),
        (b'{"model_type": "bert"}', ()),
        (b"[]", ()),
        (b"not json", ()),
        (None, ()),
    ],
)
def test_classes_from_a_hugging_face_config(config: bytes | None, classes: tuple[str, ...]) -> None:
    assert config_classes(config) == classes
