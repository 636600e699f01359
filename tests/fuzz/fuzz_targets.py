"""What a fuzzer throws bytes at: one function for each place where a stranger's bytes are read.

A target returns when the bytes were read, or refused with an error of ours. Anything else that it raises is a bug:
another exception, or an AssertionError where what was read is not what it should be.
"""

import io
import itertools
import os
import struct
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from blake3 import blake3
from safetensors import SafetensorError, deserialize
from xxhash import xxh3_64_intdigest

from modelgit.errors import CorruptObject, ModelgitError
from modelgit.formats.manifest import parse, write
from modelgit.formats.safetensors import build_header, check_name, parse_header
from modelgit.formats.torch_pickle import read_pickle
from modelgit.formats.torch_zip import TorchFile
from modelgit.porcelain.records import parse_record, write_record
from modelgit.repo.gitdir import check_path
from modelgit.repo.values import trailers_of, with_trailers
from modelgit.store.backend import MemoryBackend
from modelgit.store.catalog import Catalog
from modelgit.store.codec import differences
from modelgit.store.codec import frames as codec
from modelgit.store.codec.arrays import Bytes
from modelgit.store.codec.compiled import load_compiled
from modelgit.store.codec.reference import NumpyTransforms
from modelgit.store.codec.transforms import Transforms
from modelgit.store.identity import frame_count, frame_size
from modelgit.store.pack import CODECS, FIXED, FOOTER, FRAME
from modelgit.store.reading import Reader

PACK = "packs/" + "0" * 64 + ".pack"
LINEAR = CODECS.index("linear")
ROW = 64  # bytes an object takes in a pack's index
WIDTHS = (1, 2, 4, 8)
SCRATCH = Path(tempfile.gettempdir()) / f"modelgit-fuzz-{os.getpid()}.pt"


def header(data: bytes) -> None:
    """A safetensors file, after a byte that says whether the header's length is made right (it ends at the first NUL).

    What we accept, the reference reader accepts too, and reads the same.
    """
    flag, (text, _, rest) = data[:1], data[1:].partition(b"\0")
    data = data[1:] if flag == b"\0" else struct.pack("<Q", len(text)) + text + rest
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    with suppress(ModelgitError):
        found = parse_header(data[: 8 + min(length, len(data))], len(data), "x")
        body = data[found.data_start :]
        ours = sorted((t.name, t.dtype, list(t.shape), body[t.start : t.end]) for t in found.tensors)
        try:
            tensors = deserialize(data)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise AssertionError(f"the reference refuses it: {error}") from error
        assert ours == sorted((name, t["dtype"], list(t["shape"]), bytes(t["data"])) for name, t in tensors)
        again = build_header([(t.name, t.dtype, t.shape) for t in found.tensors], found.metadata)
        assert again.size_bytes - again.data_start == len(data) - found.data_start


def manifest(data: bytes) -> None:
    """A manifest: only its canonical text is read."""
    text = data.decode("utf-8", "replace")
    with suppress(ModelgitError):
        assert write(parse(text, "x")) == text


def pack(data: bytes) -> None:
    """A pack, its checksums made right unless the first byte is 0, so that what lies behind them is reached."""
    backend = MemoryBackend()
    backend.put_if_absent(PACK, [repaired(data[1:]) if data[:1] != b"\0" else data[1:]])
    catalog = Catalog(backend)
    reader = Reader(catalog.find_together, backend.read_into)
    for oid in itertools.islice(catalog.oids(), 64):
        with suppress(ModelgitError):
            link = reader.link(oid)
            for number in range(min(2, frame_count(link.size))):
                reader.raw(link, number, np.empty(frame_size(link.size, number), np.uint8))
        with suppress(ModelgitError):
            link = reader.open(oid)
            for number in range(min(2, frame_count(link.size))):
                into = np.empty(frame_size(link.size, number), np.uint8)
                reader.frame(link, number, into)
                assert link.record.directory.bundle or blake3(into.data).digest() == link.leaf(number)


def repaired(data: bytes) -> bytes:
    """Return the pack with every checksum in it made right, as far as the bytes look like a pack."""
    found = bytearray(data)
    if len(found) < FOOTER.size + 8:
        return data
    _, count, _, magic = FOOTER.unpack_from(found, len(found) - FOOTER.size)
    count = min(count, (len(found) - FOOTER.size - 8) // ROW)
    start = len(found) - FOOTER.size - count * ROW
    for row in range(count):
        offset, length, _, _, directory = struct.unpack_from("<QQQII", found, start + 32 * (count + row))
        if offset >= 8 and offset + length <= start and FIXED.size + 8 <= directory <= length:
            repair_record(found, offset, offset + length - directory, offset + length)
    index = bytes(found[start : -FOOTER.size])
    found[-FOOTER.size :] = FOOTER.pack(start, count, blake3(index).digest(), magic)
    return bytes(found)


def repair_record(found: bytearray, frame: int, directory: int, end: int) -> None:
    """Make right the checksums of the record whose frames start at `frame`, and of its directory."""
    fixed = FIXED.unpack_from(found, directory)
    frames = fixed[6] if fixed[0] != LINEAR else 0
    at = directory + FIXED.size
    for _ in range(min(frames, (end - 8 - at) // FRAME.size)):
        length = FRAME.unpack_from(found, at)[0]
        FRAME.pack_into(found, at, length, xxh3_64_intdigest(found[frame : min(frame + length, directory)]))
        frame, at = frame + length, at + FRAME.size
    found[end - 8 : end] = xxh3_64_intdigest(bytes(found[directory : end - 8])).to_bytes(8, "little")


def frames(data: bytes) -> None:
    """A stored frame behind its width, form and number of elements. The kernel agrees with the reference."""
    if len(data) < 4:
        return
    width, delta, stored = WIDTHS[data[0] & 3], bool(data[0] & 4), memoryview(data)[4:]
    size = width * (1 + int.from_bytes(data[1:3], "little") % 5000)
    results = [decoded(stored, width, delta, size, tools) for tools in (NumpyTransforms(), load_compiled()) if tools]
    assert all(result == results[0] for result in results)


def decoded(stored: memoryview, width: int, delta: bool, size: int, tools: Transforms) -> bytes | None:
    """Return what a frame decodes to, None if it is refused; nothing may be written beyond the frame."""
    room: Bytes = np.full(size + 128, 0xA5, np.uint8)
    into = room[64 : 64 + size]
    into[:] = np.arange(size) * 7 // 16 % 256
    try:
        (differences.decode_delta if delta else codec.decode_full)(stored, width, into, tools)
    except CorruptObject:
        return None
    finally:
        assert (room[:64] == 0xA5).all() and (room[-64:] == 0xA5).all()
    return into.tobytes()


def paths(data: bytes) -> None:
    """A path in a tree, and a tensor's name: what may be is inside, and of no special meaning to git."""
    path = data.decode("utf-8", "surrogateescape")
    with suppress(ModelgitError):
        check_path(path, "x")
        assert os.path.normpath(path) == path and path != ".." and not path.startswith(("/", "../"))
        for part in path.split("/"):
            flat = "".join(c for c in unicodedata.normalize("NFKC", part).casefold() if c.isprintable())
            assert flat.rstrip(" .").partition(":")[0] not in (".git", "git~1")
    with suppress(ModelgitError):
        check_name(path)
        assert ".." not in path.split("/") and path.isprintable() >= path.isascii()


def records(data: bytes) -> None:
    """A record in the tree, and the message of a commit."""
    with suppress(ModelgitError):
        found = parse_record(data, "x")
        assert parse_record(write_record(found), "x") == found
    message = data.decode("utf-8", "replace")
    found_trailers = tuple((k, v) for k, values in trailers_of(message).items() for v in values)
    assert isinstance(with_trailers("subject", found_trailers), str)


def scan(data: bytes) -> None:
    """A pickle, alone and as the program of a checkpoint with one storage."""
    with suppress(ModelgitError):
        read_pickle(io.BytesIO(data), "x")
    with zipfile.ZipFile(SCRATCH, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", bytes(64))
    read_checkpoint()


def checkpoint(data: bytes) -> None:
    """A whole checkpoint file."""
    SCRATCH.write_bytes(data)
    read_checkpoint()


def read_checkpoint() -> None:
    """Read the checkpoint in SCRATCH; its tensors take no more than a few times the file."""
    with suppress(ModelgitError), TorchFile(SCRATCH) as found:
        total = sum(len(raw) for _, _, _, raw in found.items())
        assert total <= 16 * SCRATCH.stat().st_size


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (header, manifest, pack, frames, paths, records, scan, checkpoint)
}
