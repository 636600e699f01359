"""Manifests: text and value are one; nothing but canonical text is read."""

from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.errors import FormatError
from modelgit.formats.dtypes import DTYPES, size_bytes
from modelgit.formats.manifest import Manifest, TensorEntry, compare, parse, write
from modelgit.formats.safetensors import check_name

QUICK = settings(max_examples=200, deadline=None, derandomize=True)
OIDS = st.integers(0, 2**256 - 1).map(lambda n: f"{n:064x}")
WHOLE = sorted(name for name, row in DTYPES.items() if row.bits % 8 == 0)


def may_be(name: str) -> bool:
    try:
        check_name(name)
    except FormatError:
        return False
    return True


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20).filter(may_be)
ENTRIES = st.builds(
    TensorEntry, NAMES, st.sampled_from(WHOLE), st.lists(st.integers(0, 10**6), max_size=3).map(tuple), OIDS
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    tensors = draw(st.lists(ENTRIES, max_size=6, unique_by=lambda entry: entry.name))
    ordered = tuple(sorted(tensors, key=lambda entry: entry.name.encode()))
    header_bytes = draw(st.integers(10, 10**6))
    size = header_bytes + sum(size_bytes(entry.dtype, entry.shape) for entry in ordered)
    return Manifest(draw(OIDS), header_bytes, size, ordered)


@QUICK
@given(manifests())
def test_text_and_value_are_one(manifest: Manifest) -> None:
    text = write(manifest)
    assert parse(text, "m") == manifest
    assert write(parse(text, "m")) == text
    assert len(text.splitlines()) >= 3 + len(manifest.tensors)
    assert text.count("\n") == 3 + len(manifest.tensors)


@QUICK
@given(manifests(), st.integers(0, 10**6), st.sampled_from('\0\n\r\t 0123abcF[],"\\é.-/'))
def test_whatever_is_read_is_canonical(manifest: Manifest, place: int, character: str) -> None:
    text = write(manifest)
    place %= len(text)
    for damaged in (
        text[:place] + character + text[place + 1 :],
        text[:place] + character + text[place:],
        text[:place],
    ):
        try:
            found = parse(damaged, "m")
        except FormatError as error:
            assert error.message.startswith("m: ")
        else:
            assert write(found) == damaged


@QUICK
@given(st.text(max_size=300))
def test_arbitrary_text_is_refused_with_our_own_error(text: str) -> None:
    try:
        parse(text, "m")
    except FormatError as error:
        assert error.message.startswith("m: ")
    else:
        raise AssertionError("random text is no manifest")


@QUICK
@given(manifests(), manifests())
def test_a_comparison_accounts_for_every_tensor_once(old: Manifest, new: Manifest) -> None:
    there = compare(old, new)
    back = compare(new, old)
    assert len(there.added) + len(there.changed) + there.same == len(new.tensors)
    assert len(there.removed) + len(there.changed) + there.same == len(old.tensors)
    assert (there.added, there.removed, there.same) == (back.removed, back.added, back.same)
    assert compare(old, old).same == len(old.tensors)
