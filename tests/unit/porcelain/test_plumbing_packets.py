"""Git's packets, and a filter that git talks to through them."""

import io
from collections.abc import Iterator
from typing import cast

import pytest

from modelgit.errors import FormatError, ModelgitError
from modelgit.porcelain.plumbing.filtering import Filter
from modelgit.porcelain.plumbing.packets import LARGEST, PacketReader, write_content, write_lines
from modelgit.repo.repository import Repository, blob_id

MANIFEST = b"modelgit manifest 1\nsize 8\nheader " + b"0" * 64 + b" 8\n"


def nobody() -> Repository:
    raise AssertionError("nothing here needs the repository")


def packed(*parts: str | bytes | None) -> bytes:
    """Returns lines as packets; None ends a list, bytes are content."""
    out = io.BytesIO()
    for part in parts:
        if part is None:
            out.write(b"0000")
        elif isinstance(part, bytes):
            write_content(out, iter([part]))
        else:
            out.write(b"%04x" % (len(part) + 5) + part.encode() + b"\n")
    return out.getvalue()


HELLO = packed("git-filter-client", "version=2", None, "capability=clean", "capability=smudge", None)
WELCOME = packed("git-filter-server", "version=2", None, "capability=clean", "capability=smudge", None)


def served(*requests: bytes) -> tuple[bytes, Filter, list[ModelgitError]]:
    """Returns what the filter answers."""
    said: list[ModelgitError] = []
    run, target = Filter(nobody, said.append), io.BytesIO()
    run.serve(io.BufferedReader(io.BytesIO(HELLO + b"".join(requests))), target)
    assert target.getvalue().startswith(WELCOME)
    return target.getvalue()[len(WELCOME) :], run, said


def request(command: str, path: str, content: bytes) -> bytes:
    return packed(f"command={command}", f"pathname={path}", None, content)


@pytest.mark.parametrize("size", [0, 1, LARGEST, LARGEST + 1, 3 * LARGEST])
def test_content_comes_back_whole(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    out = io.BytesIO()
    write_content(out, iter([data]))
    write_lines(out, "key=value", "ü=1")
    reader = PacketReader(io.BufferedReader(io.BytesIO(out.getvalue())))
    assert b"".join(reader.content().rest()) == data
    assert reader.lines() == ["key=value", "ü=1"]
    assert reader.lines() is None


@pytest.mark.parametrize("data", [b"00", b"zzzz", b"0002", b"fff5" + b"x" * 70000, b"0009ab", b"0006a\n"])
def test_what_is_no_packet_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        PacketReader(io.BufferedReader(io.BytesIO(data))).lines()


def test_smudge_hands_manifests_through_and_notes_them() -> None:
    answer, run, said = served(request("smudge", "m.safetensors", MANIFEST), request("smudge", "n.safetensors", b"raw"))
    expected = [packed("status=success", None, content, None) for content in (MANIFEST, b"raw")]
    assert answer == b"".join(expected)
    assert run.manifests == {"m.safetensors": {blob_id(MANIFEST)}} and said == []


def test_clean_hands_manifests_and_files_of_other_names_through() -> None:
    given = {"m.safetensors": MANIFEST, "weights.bin": b"anything", "none.bin": b""}
    answer, _, said = served(*(request("clean", path, content) for path, content in given.items()))
    assert answer == b"".join(packed("status=success", None, content, None) for content in given.values())
    assert said == []


def test_a_request_that_fails_is_told_and_the_next_one_served() -> None:
    answer, _, said = served(request("burn", "m", b"x" * 200_000), request("smudge", "m.safetensors", b""))
    assert answer == packed("status=error", None, "status=success", None, b"", None)
    assert "expected clean or smudge" in said[0].message


def test_a_stream_is_read_once_and_in_pieces() -> None:
    class Slow(io.RawIOBase):
        """Gives a byte at a time."""

        def __init__(self, data: bytes) -> None:
            self.left: Iterator[int] = iter(data)

        def readable(self) -> bool:
            return True

        def readinto(self, into: object) -> int:
            value = next(self.left, None)
            if value is not None:
                cast(memoryview, into)[0] = value
            return int(value is not None)

    reader = PacketReader(io.BufferedReader(Slow(packed(b"hello world"))))
    assert b"".join(reader.content().rest()) == b"hello world"
