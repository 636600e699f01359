"""PyTorch checkpoints (.pt, .pth, .bin) as tensors, read without ever unpickling.

Both containers that torch.save has written are read: the zip archive (since 1.6) and the older run of pickles
followed by raw storages. The file is mapped, not loaded; every length is checked against the file before copying.
"""

import io
import itertools
import math
import mmap
import struct
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeGuard

from modelgit.errors import FormatError
from modelgit.formats.dtypes import size_bytes
from modelgit.formats.source import FRAME_BYTES
from modelgit.formats.torch_pickle import HINT, Storage, StridedTensor, read_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 64 * 1024 * 1024
MAX_SHARING = 16  # times a file's size that its tensors may take together, since they may share storages
NESTED = ("state_dict", "model_state_dict", "model")
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
ITEM_FORMATS: Mapping[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
Spans = Mapping[str, memoryview]  # raw bytes of each storage, by key


class TorchFile:
    """The tensors of one checkpoint file, by name; holds the mapped file until `close`.

    `entries` gives (dtype, shape) by name. A checkpoint of several parts gives those of `part`, or of the first of
    NESTED that it has; `left_out` names its other parts, and tells which are state dicts too.

    Raises FormatError for anything that is not a plain state dict.
    """

    def __init__(self, path: Path, part: str | None = None) -> None:
        self.path = path
        self._map = _mapped(path)
        try:
            root, storages = _container(self._map, path)
            self._tensors, self.left_out = _state_dict(root, part, str(path))
            self._storages = {t.storage.key: _storage(storages, t.storage, str(path)) for t in self._tensors.values()}
            for name, tensor in self._tensors.items():
                _check(tensor, self._storages[tensor.storage.key], f"{path}: tensor {name[:200]!r}")
            _check_sharing(self._tensors.values(), len(self._map), str(path))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "TorchFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def entries(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape by tensor name, sorted by name."""
        return {name: (tensor.dtype, tensor.shape) for name, tensor in sorted(self._tensors.items())}

    def names(self) -> tuple[str, ...]:
        """Return the names, sorted."""
        return tuple(sorted(self._tensors))

    def read(self, name: str) -> memoryview:
        """Return the tensor's raw little-endian elements in row-major order; no copy where the file has them so."""
        if name not in self._tensors:
            raise FormatError(f"{self.path}: no tensor {name!r}; it has {', '.join(self.names()[:5])} …")
        tensor = self._tensors[name]
        return _row_major(tensor, self._storages[tensor.storage.key])

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of `read` in pieces of FRAME_BYTES, the last one shorter."""
        data = self.read(name)
        for start in range(0, data.nbytes, FRAME_BYTES):
            yield data[start : start + FRAME_BYTES]

    def items(self) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
        """Yield (name, dtype, shape, raw bytes) sorted by name; one tensor is in memory at a time."""
        for name, (dtype, shape) in self.entries.items():
            yield name, dtype, shape, self.read(name)

    def close(self) -> None:
        """Forget the tensors; the mapping goes when the last view of it does."""
        self._tensors, self._storages = {}, {}


def is_torch_file(path: Path) -> bool:
    """Return whether the file begins as one of the two checkpoint containers does."""
    with path.open("rb") as stream:
        start = stream.read(14)
    return start.startswith(b"PK\x03\x04") or (start[:4] == b"\x80\x02\x8a\x0a" and start[4:14] == _magic_bytes())


def _magic_bytes() -> bytes:
    return LEGACY_MAGIC.to_bytes(10, "little")


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read as a checkpoint: {error}.") from error


def _container(data: mmap.mmap, path: Path) -> tuple[object, Spans]:
    if data[:4] == b"PK\x03\x04":
        return _zip(data, path)
    if data[:2] == b"\x80\x02" and data[4:14] == _magic_bytes():
        return _legacy(data, str(path))
    raise FormatError(f"{path}: expected a PyTorch checkpoint (zip or legacy), got bytes {data[:4]!r}.", hint=HINT)


# --------------------------------------------------------------------------------------------- zip container


def _zip(data: mmap.mmap, path: Path) -> tuple[object, Spans]:
    """Return the pickle's value and the storages of an archive `<root>/data.pkl`, `<root>/data/<key>`."""
    view, source = memoryview(data), str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise FormatError(f"{source}: damaged zip archive: {error}.") from error
    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise FormatError(f"{source}: expected one data.pkl in the archive, got {len(roots)}.", hint=HINT)
    inside = {name.removeprefix(roots[0]): info for name, info in members.items() if name.startswith(roots[0])}
    spans = {name: _member(view, info, source) for name, info in inside.items()}
    if bytes(spans.get("byteorder", b"little")) != b"little" or sys.byteorder != "little":
        raise FormatError(f"{source}: byte order is {bytes(spans['byteorder'])!r}, expected b'little'.")
    if spans["data.pkl"].nbytes > MAX_PICKLE_BYTES:
        raise FormatError(f"{source}: data.pkl has {spans['data.pkl'].nbytes} bytes, more than {MAX_PICKLE_BYTES}.")
    root = read_pickle(io.BytesIO(spans["data.pkl"]), source)
    return root, {name.removeprefix("data/"): span for name, span in spans.items() if name.startswith("data/")}


def _member(view: memoryview, info: zipfile.ZipInfo, source: str) -> memoryview:
    """Return the bytes of one stored member, its bounds checked against the file."""
    where = f"{source}: member {info.filename!r}"
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise FormatError(f"{where} is compressed or encrypted; expected stored, as torch.save writes.", hint=HINT)
    fixed = view[info.header_offset : info.header_offset + 30]
    if fixed.nbytes != 30 or bytes(fixed[:4]) != b"PK\x03\x04":
        raise FormatError(f"{where}: no local header at byte {info.header_offset}.")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", fixed[26:30]))
    if start + info.file_size > view.nbytes:
        raise FormatError(f"{where}: expected {info.file_size} bytes at {start}, but the file ends at {view.nbytes}.")
    return view[start : start + info.file_size]


# ------------------------------------------------------------------------------------------ legacy container


def _legacy(data: mmap.mmap, source: str) -> tuple[object, Spans]:
    """Return the value and the storages of a pre-1.6 file: magic, protocol, system, value, keys, raw storages."""
    data.seek(0)
    magic, protocol, system = (read_pickle(data, source) for _ in range(3))
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL) or not isinstance(system, dict):
        raise FormatError(f"{source}: expected legacy protocol {LEGACY_PROTOCOL}, got another.", hint=HINT)
    if system.get("little_endian") is not True or sys.byteorder != "little":
        raise FormatError(f"{source}: written big-endian, expected little-endian.", hint=HINT)
    root, keys = read_pickle(data, source), read_pickle(data, source)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FormatError(f"{source}: expected a list of storage keys, each a text.", hint=HINT)
    wanted = {t.storage.key: t.storage for t in _tensors_in(root)}
    return root, _raw_storages(memoryview(data), data.tell(), keys, wanted)


def _raw_storages(view: memoryview, start: int, keys: list[str], wanted: Mapping[str, Storage]) -> Spans:
    """Return the spans of storages that lie one behind the other, each an int64 count and its elements."""
    spans: dict[str, memoryview] = {}
    for key in keys:
        storage = wanted.get(key)
        count = int.from_bytes(view[start : start + 8], "little")
        if storage is None or count != storage.elements:
            raise FormatError(f"storage {key!r}: its pickle and its data disagree, or no tensor uses it.", hint=HINT)
        end = start + 8 + _bytes_of(storage)
        if end > view.nbytes:
            raise FormatError(f"storage {key!r} ends at byte {end}, but the file ends at {view.nbytes}.")
        spans[key] = view[start + 8 : end]
        start = end
    return spans


# ------------------------------------------------------------------------------------------------- tensors


def _tensors_in(value: object) -> Iterator[StridedTensor]:
    """Yield every tensor of nested dicts, lists and tuples, each container once."""
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if isinstance(item, StridedTensor):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _state_dict(root: object, part: str | None, source: str) -> tuple[dict[str, StridedTensor], dict[str, bool]]:
    """Return the tensors by name; and the names of the parts beside them, with whether those are state dicts.

    The tensors are those of `part`, else of `root` itself, else of the first of NESTED that is a state dict.
    """
    parts = root if isinstance(root, dict) else {}
    if part is None and _is_state(root):
        return _only_tensors(parts, source), {}
    states = {str(name)[:200]: _is_state(_unwrapped(value)) for name, value in parts.items()}
    for name in (part,) if part is not None else NESTED:
        if _is_state(state := _unwrapped(parts.get(name))):
            return _only_tensors(state, source), {other: found for other, found in states.items() if other != name}
    plain = f"a dict of tensors, or one under {', '.join(NESTED)}"
    wanted = plain if part is None else f"a state dict in part {part!r}"
    known = [name for name, found in states.items() if found]
    hint = f"choose one of its parts: --part {' or '.join(known[:5])}" if known else HINT
    raise FormatError(f"{source}: expected {wanted}; got {_outline(root)}.", hint=hint)


def _is_state(value: object) -> TypeGuard[dict[object, object]]:
    return isinstance(value, dict) and any(isinstance(item, StridedTensor) for item in value.values())


def _unwrapped(value: object) -> object:
    """Return the first of NESTED in a part that has one, else the part."""
    if isinstance(value, dict) and not _is_state(value):
        return next((value[name] for name in NESTED if _is_state(value.get(name))), value)
    return value


def _only_tensors(state: Mapping[object, object], source: str) -> dict[str, StridedTensor]:
    tensors = {name: t for name, t in state.items() if isinstance(name, str) and isinstance(t, StridedTensor)}
    others = [str(name)[:200] for name in state if name not in tensors]
    if others:
        raise FormatError(f"{source}: entries that are not tensors: {', '.join(others[:5])}.", hint=HINT)
    return tensors


def _outline(root: object) -> str:
    if isinstance(root, dict):
        return f"a dict with keys {', '.join(repr(key)[:200] for key in list(root)[:5])}"
    return f"a {type(root).__name__}"


def _bytes_of(storage: Storage) -> int:
    return size_bytes(storage.dtype or "U8", (storage.elements,))


def _storage(storages: Spans, storage: Storage, source: str) -> memoryview:
    span = storages.get(storage.key)
    if span is None or span.nbytes != _bytes_of(storage):
        got = "nothing" if span is None else f"{span.nbytes} bytes"
        raise FormatError(f"{source}: storage {storage.key!r}: expected {_bytes_of(storage)} bytes, got {got}.")
    return span


def _check(tensor: StridedTensor, storage: memoryview, where: str) -> None:
    """Raise unless every element lies inside the storage and none is repeated by a stride of 0."""
    total, width = size_bytes(tensor.dtype, tensor.shape), size_bytes(tensor.dtype, (1,))
    if width not in ITEM_FORMATS:
        raise FormatError(f"{where}: elements of {tensor.dtype} are not supported.", hint=HINT)
    if 0 in tensor.shape:
        return
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    repeated = any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if (last + 1) * width > storage.nbytes or total > storage.nbytes or repeated:
        shape = list(tensor.shape)
        raise FormatError(f"{where}: shape {shape} reaches beyond its storage of {storage.nbytes} bytes.", hint=HINT)


def _check_sharing(tensors: Iterable[StridedTensor], file_bytes: int, source: str) -> None:
    """Raise if a small file claims a great many tensors by letting them share their storages."""
    total = sum(size_bytes(tensor.dtype, tensor.shape) for tensor in tensors)
    if total > MAX_SHARING * file_bytes:
        raise FormatError(
            f"{source}: {total} bytes of tensors in a file of {file_bytes}, expected at most {MAX_SHARING} times that.",
            hint=HINT,
        )


def _row_major(tensor: StridedTensor, storage: memoryview) -> memoryview:
    width = size_bytes(tensor.dtype, (1,))
    total = math.prod(tensor.shape)
    if total == 0:
        return memoryview(b"")
    if _is_row_major(tensor):
        return storage[tensor.offset * width : (tensor.offset + total) * width]
    items = storage[: storage.nbytes // width * width].cast(ITEM_FORMATS[width])
    return _gather(tensor, items, bytearray(total * width)).cast("B")


def _row_major_strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _is_row_major(tensor: StridedTensor) -> bool:
    expected = _row_major_strides(tensor.shape)
    return all(n == 1 or a == b for n, a, b in zip(tensor.shape, tensor.strides, expected, strict=True))


def _gather(tensor: StridedTensor, items: memoryview, out: bytearray) -> memoryview:
    """Return the elements in row-major order, copied one line along the longest axis at a time."""
    result = memoryview(out).cast(ITEM_FORMATS[items.itemsize])
    strides = _row_major_strides(tensor.shape)
    axis = max(range(len(tensor.shape)), key=lambda k: tensor.shape[k])
    others = [k for k in range(len(tensor.shape)) if k != axis]
    n, step_in, step_out = tensor.shape[axis], tensor.strides[axis], strides[axis]
    for index in itertools.product(*(range(tensor.shape[k]) for k in others)):
        at_in = tensor.offset + sum(i * tensor.strides[k] for i, k in zip(index, others, strict=True))
        at_out = sum(i * strides[k] for i, k in zip(index, others, strict=True))
        line = items[at_in : at_in + (n - 1) * step_in + 1 : step_in]
        result[at_out : at_out + (n - 1) * step_out + 1 : step_out] = line
    return result
