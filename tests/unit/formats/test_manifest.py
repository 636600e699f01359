"""Manifests: canonical text and nothing else."""

import pytest

from modelgit.errors import FormatError
from modelgit.formats.manifest import Manifest, TensorEntry, compare, is_manifest, parse, parse_bytes, write

A, B, C = "a" * 64, "b" * 64, "c" * 64
SMALL = Manifest(C, 40, 68, (TensorEntry("bias", "F32", (), A), TensorEntry('we"ight', "BF16", (3, 4), B)))
TEXT = f'modelgit manifest 1\nsize 68\nheader {C} 40\n"bias" F32 [] {A}\n"we\\"ight" BF16 [3,4] {B}\n'


def test_canonical_text() -> None:
    assert write(SMALL) == TEXT
    assert parse(TEXT, "x") == SMALL
    assert is_manifest(TEXT[:30].encode())
    assert not is_manifest(b"\x10\x00\x00\x00{")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cut short"),
        (TEXT[:-1], "cut short"),
        (TEXT.replace("manifest 1", "manifest 2"), "version '2', expected 1"),
        (TEXT.replace("modelgit", "gitmodel"), "not a manifest"),
        (TEXT.replace("size 68", "size 068"), "line 2: expected 'size BYTES'"),
        (TEXT.replace("size 68", "size 10"), "header of 40 bytes in a file of 10"),
        (TEXT.replace(C, "c" * 63), "line 3"),
        (TEXT.replace(A, A.upper()), "line 4"),
        (TEXT.replace("F32", "F33"), "unknown dtype 'F33'"),
        (TEXT.replace("[3,4]", "[3, 4]"), "line 5"),
        (TEXT.replace("[3,4]", "[-3]"), "line 5"),
        (TEXT.replace("[3,4]", f"[{'9' * 30}]"), "line 5"),
        (TEXT.replace("[3,4]", "[3,5]"), "expected 28 bytes of tensors after the header, got 34"),
        (TEXT.replace("[3,4]", f"[{2**62},4]"), "more than"),
        (TEXT.replace("BF16 [3,4]", "F4 [3]"), "12 bits fill no whole number of bytes"),
        (TEXT.replace("[3,4]", "[3,4" + ",1" * 63 + "]"), "65 dimensions, expected at most 64"),
        (TEXT.replace('"bias"', '"zeta"'), "not in order"),
        (TEXT.replace('"bias"', '"we\\"ight"'), "not in order, or the same"),
        (TEXT.replace('"bias"', '"../bias"'), "looks like a path"),
        (TEXT.replace('"bias"', '"\\u0062ias"'), "not in canonical form"),
        (TEXT + "\n", "line 6"),
        (TEXT.replace("\n", "\r\n"), "carriage returns"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message.replace("[", r"\[")):
        parse(text, "HEAD:model.safetensors")


def test_bytes_that_are_no_text_are_refused() -> None:
    assert parse_bytes(TEXT.encode(), "x") == SMALL
    with pytest.raises(FormatError, match="expected UTF-8, got something else at byte 1"):
        parse_bytes(TEXT.encode().replace(b"bias", b"bi\xffs"), "x")


def test_compare_tells_added_removed_changed() -> None:
    new = Manifest(C, 40, 100, (TensorEntry("bias", "F32", (1,), A), TensorEntry("extra", "U8", (1,), B)))
    diff = compare(SMALL, new)
    assert [t.name for t in diff.added] == ["extra"]
    assert [t.name for t in diff.removed] == ['we"ight']
    assert [(o.shape, n.shape) for o, n in diff.changed] == [((), (1,))]
    assert diff.same == 0
    assert compare(SMALL, SMALL).same == 2


def test_an_unknown_tensor_lists_near_names() -> None:
    with pytest.raises(FormatError, match="no tensor is called 'bia'") as caught:
        SMALL.entry("bia")
    assert caught.value.hint == "did you mean 'bias'?"


def test_oids_are_listed_once() -> None:
    twice = Manifest(C, 40, 100, (TensorEntry("a", "F32", (), A), TensorEntry("b", "F32", (), A)))
    assert twice.oids() == (C, A)
