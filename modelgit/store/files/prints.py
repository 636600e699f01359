"""A weight file's print: what tells quickly whether it still is what it was, ten times as fast as its ids.

XXH3 over the header and over every frame, each frame by itself, so that the print comes along when frames are stored.
Behind a dot, one of the header and of the first bytes of some tensors, by which most changed files are told at once.
Prints are compared only with prints computed here: no identity, and worth nothing against somebody who forges files.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xxhash import xxh3_64, xxh3_64_hexdigest, xxh3_64_intdigest, xxh3_128, xxh3_128_hexdigest

from modelgit.formats.safetensors import Header, read_header
from modelgit.formats.source import FRAME_BYTES
from modelgit.store.handles import read_all
from modelgit.store.identity import frame_count, frame_size

if TYPE_CHECKING:
    from modelgit.store.codec.arrays import Bytes
    from modelgit.store.writing import Fill

READ_BYTES = 64 << 10  # at once, into a buffer that stays in the first caches: three times as fast as a whole frame
SAMPLED = 32  # tensors whose first READ_BYTES are looked at before all else


def sampled(sizes: Sequence[int]) -> Sequence[int]:
    """Returns which tensors are looked at first, evenly spread."""
    filled = [tensor for tensor, size in enumerate(sizes) if size]
    return filled[:: max(1, len(filled) // SAMPLED)]


def joined(header: Header, parts: Iterable[int]) -> bytes:
    """Returns what is hashed of a header and hashes."""
    return header.raw + b"".join(part.to_bytes(8, "little") for part in parts)


class Print:
    """The print of one file, gathered frame by frame, in any order and from several threads."""

    def __init__(self, header: Header) -> None:
        self._header, self._sizes = header, [span.end - span.start for span in header.tensors]
        self._found: dict[tuple[int, int], int] = {}
        self._first = dict.fromkeys(sampled(self._sizes), 0)

    def watched(self, tensor: int, fill: "Fill") -> "Fill":
        """Returns a fill that does the same, and takes the frames of the header's tensor of that number in."""

        def fill_and_look(number: int, into: "Bytes") -> "Bytes":
            data = fill(number, into)
            self.take(tensor, number, data.data)
            return data

        return fill_and_look

    def watched_together(self, first: int, fill: "Fill") -> "Callable[[Bytes], Bytes]":
        """Returns what fills a buffer with several small tensors that lie side by side, and takes them in."""

        def fill_and_look(into: "Bytes") -> "Bytes":
            data = fill(0, into)
            view, tensor, start = data.data, first, 0
            while start < len(view):
                size = self._sizes[tensor]
                if size:
                    self.take(tensor, 0, view[start : start + size])
                tensor, start = tensor + 1, start + size
            return data

        return fill_and_look

    def take(self, tensor: int, number: int, frame: memoryview) -> None:
        """Takes a frame in."""
        self.note(tensor, number, xxh3_64_intdigest(frame))
        if not number and tensor in self._first:
            self._first[tensor] = xxh3_64_intdigest(frame[:READ_BYTES])

    def note(self, tensor: int, number: int, found: int) -> None:
        """Takes in what a frame hashes to."""
        self._found[tensor, number] = found

    def digest(self, early: str | None = None) -> str | None:
        """Returns the print, None if a frame was not seen; `early` is the second half, if it is known."""
        order = [(tensor, number) for tensor, size in enumerate(self._sizes) for number in range(frame_count(size))]
        if any(place not in self._found for place in order):
            return None
        whole = xxh3_128_hexdigest(joined(self._header, (self._found[place] for place in order)))
        return f"{whole}.{early or xxh3_64_hexdigest(joined(self._header, self._first.values()))}"


def print_of(path: Path, like: str | None = None) -> str | None:
    """Returns the print of a weight file as it is now, None if it becomes shorter meanwhile; brings no NumPy.

    None, too, as soon as it is clear that it is not that which `like` is the print of.

    Raises:
        FormatError: the file is malformed, or cannot be read.
    """
    header = read_header(path)
    found, buffer = Print(header), memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        early = early_print(header, file.fileno(), buffer)
        if early is None or (like is not None and like.partition(".")[2] != early):
            return None
        for tensor, span in enumerate(header.tensors):
            size, start = span.end - span.start, header.data_start + span.start
            for number in range(frame_count(size)):
                hasher, place = xxh3_64(), start + number * FRAME_BYTES
                if not take_in(hasher, file.fileno(), place, frame_size(size, number), buffer):
                    return None
                found.note(tensor, number, hasher.intdigest())
    return found.digest(early)


def early_print(header: Header, handle: int, buffer: memoryview) -> str | None:
    """Returns a print of the header and the first bytes of some tensors of an open file, None if it ends before."""
    parts = list[int]()
    for tensor in sampled([span.end - span.start for span in header.tensors]):
        span, hasher = header.tensors[tensor], xxh3_64()
        if not take_in(hasher, handle, header.data_start + span.start, min(READ_BYTES, span.end - span.start), buffer):
            return None
        parts.append(hasher.intdigest())
    return xxh3_64_hexdigest(joined(header, parts))


def tensor_print(handle: int, start: int, size: int) -> str | None:
    """Returns a print of the bytes of an open file from `start` on, None if it ends before."""
    hasher = xxh3_128()
    whole = take_in(hasher, handle, start, size, memoryview(bytearray(READ_BYTES)))
    return f"xxh3:{hasher.hexdigest()}" if whole else None


def take_in(hasher: xxh3_64 | xxh3_128, handle: int, start: int, size: int, buffer: memoryview) -> bool:
    """Hashes the bytes of an open file from `start` on; returns whether they are all there."""
    for at in range(start, start + size, len(buffer)):
        part = buffer[: min(len(buffer), start + size - at)]
        if read_all(handle, at, part) < len(part):
            return False
        hasher.update(part)
    return True
