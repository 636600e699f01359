"""Makes a golden repository: python tests/data/golden/make.py FOLDER. Refuses to overwrite one: they are kept for ever.

`history.bundle` holds the git side, `packs/` the store, SHA256SUMS what each version's files must be. Every codec,
every form of plane, every width, chains, bundles and recipes of recipes are in it, in as few bytes as that takes.
"""

import hashlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.formats.safetensors import build_header
from modelgit.repo.repository import Repository
from modelgit.repo.values import CommitDraft
from modelgit.store.files.intake import store_file
from modelgit.store.files.materialise import materialise

PATH = "model.safetensors"
ARITHMETIC = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
Tensors = dict[str, tuple[str, list[int], bytes]]  # name -> dtype, shape, bytes
Term = tuple[str, float]  # a version's tag, its coefficient


def normal(dtype: str, count: int, seed: int) -> bytes:
    """Return weights as a network has them."""
    values = np.random.default_rng(seed).normal(0, 0.02, count)
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
    return values.astype(ARITHMETIC[dtype]).tobytes()


def sparse(count: int, every: int) -> bytes:
    """Return bytes that are zero but for one in `every`."""
    array = np.zeros(count, np.uint8)
    array[::every] = np.arange(len(array[::every])) % 7 + 1
    return array.tobytes()


def foundation() -> Tensors:
    """Return the first version's tensors: one for each width and form of plane."""
    return {
        "layer.0.f32": ("F32", [130, 130], normal("F32", 16900, 1)),
        "layer.0.bf16": ("BF16", [200, 170], normal("BF16", 34000, 2)),
        "layer.0.f64": ("F64", [8400], normal("F64", 8400, 3)),
        "layer.0.f16": ("F16", [2, 16500], normal("F16", 33000, 4)),
        "mask.u8": ("U8", [70000], sparse(70000, 50)),
        "large.f32": ("F32", [1100, 1024], sparse(4 * 1100 * 1024, 4096)),
        "zeros.i64": ("I64", [9000], bytes(72000)),
        "norm.weight": ("F32", [64], normal("F32", 64, 5)),
        "norm.bias": ("F32", [64], bytes(256)),
        "head.weight": ("BF16", [3, 50], normal("BF16", 150, 6)),
        "head.eight": ("F8_E4M3", [40], sparse(40, 3)),
        "head.four": ("F4", [10], sparse(5, 2)),
        "steps": ("I64", [], struct.pack("<q", 12)),
        "spectrum": ("C64", [20], normal("F32", 40, 7)),
        "flags": ("BOOL", [5], b"\1\0\1\1\0"),
        "none": ("F16", [0, 4], b""),
    }


def tuned(old: Tensors, seed: int, *, every: int = 200) -> Tensors:
    """Return a fine-tune: of each tensor a few elements are one step away; of the large one, only the second frame."""
    new: Tensors = {}
    for name, (dtype, shape, data) in old.items():
        array = np.frombuffer(data, np.uint8).copy()
        start = 4 * 1024 * 1024 if name == "large.f32" else seed % 7
        array[start::every] ^= np.uint8(1)
        new[name] = (dtype, shape, data if name in ("flags", "zeros.i64") else array.tobytes())
    return new


def write_file(path: Path, tensors: Tensors, order: Sequence[str], pad: bytes = b"", *, last: bool = False) -> None:
    """Write a weight file with the tensors' data in `order`, the header's table sorted backwards."""
    spans, data = dict[str, object](), b""
    for name in order:
        dtype, shape, raw = tensors[name]
        spans[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    note = {"__metadata__": {"format": "pt", "by": "gölden"}}
    table = {name: spans[name] for name in sorted(spans, reverse=True)}
    text = json.dumps({**table, **note} if last else {**note, **table}, ensure_ascii=False).encode() + pad
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class Maker:
    """A repository in the making, whose commits all have one author and one time."""

    def __init__(self, folder: Path) -> None:
        self.repo = Repository.init(folder / "repo")
        self.folder = folder
        self.sums: list[str] = []

    def commit(self, tag: str, files: dict[str, Manifest | bytes], parents: Sequence[str]) -> None:
        """Make a version, name it, and note what its files must be."""
        shas = tuple(self.repo.resolve(parent) for parent in parents)
        draft = CommitDraft(shas, files, f"Version {tag}", author="Golden <golden@localhost>", date=1_790_000_000)
        commit = self.repo.commit(draft)
        self.repo.set_ref(f"refs/tags/{tag}", commit, expected=None)
        self.repo.set_ref("refs/heads/main", commit, expected=self.repo.branches().get("main"))
        for path, content in files.items():
            place = self.folder / "out"
            if isinstance(content, Manifest):
                materialise(self.repo.store, content, place)
            else:
                place.write_bytes(content)
            self.sums.append(f"{hashlib.sha256(place.read_bytes()).hexdigest()}  {tag}/{path}\n")

    def take(self, tag: str, path: Path, parents: Sequence[str], extra: dict[str, Path] | None = None) -> None:
        """Make a version of weight files, as differences to the first parent."""
        before = self.repo.version(parents[0]).manifests if parents else {}
        files: dict[str, Manifest | bytes] = {"config.json": b'{"golden": true}\n'}
        with self.repo.store.begin() as pack:
            for name, place in {PATH: path, **(extra or {})}.items():
                files[name] = store_file(pack, place, before.get(name))
            pack.commit()
        self.commit(tag, files, parents)

    def combine(self, tag: str, terms: Sequence[Term], divisor: float) -> None:
        """Make a version that is a linear combination of others, tensor by tensor; the rest is the first's."""
        inputs = [self.repo.version(rev).manifests[PATH] for rev, _ in terms]
        first, entries = inputs[0], list[TensorEntry]()
        with self.repo.store.begin() as pack:
            for entry in first.tensors:
                oid = entry.oid
                if entry.dtype in ARITHMETIC:
                    several = [(m.entry(entry.name).oid, c) for m, (_, c) in zip(inputs, terms, strict=True)]
                    size = int(np.prod(entry.shape, dtype=int)) * np.dtype(ARITHMETIC[entry.dtype]).itemsize
                    oid = pack.add_linear(several, divisor, entry.dtype, size)
                entries.append(TensorEntry(entry.name, entry.dtype, entry.shape, oid))
            header = build_header([(e.name, e.dtype, e.shape) for e in entries], {"format": "pt"})
            blob = pack.add_blob(header.raw)
            pack.commit()
        manifest = Manifest(blob, len(header.raw), header.size_bytes, tuple(entries))
        self.commit(tag, {PATH: manifest, "config.json": b'{"golden": "merge"}\n'}, [rev for rev, _ in terms])


def history(make: Maker, scratch: Path) -> None:
    """Make every version."""
    file, odd, tiny = scratch / "a", scratch / "odd", scratch / "tiny"
    base = foundation()
    write_file(file, base, list(base))
    tiny.write_bytes(struct.pack("<Q", 2) + b"{}")
    make.take("base", file, [], {"empty.safetensors": tiny})
    tensors, parent = base, "base"
    for number in range(1, 7):  # deeper than chains may be, so the last begins anew
        tensors = tuned(tensors, number)
        write_file(file, tensors, list(base))
        make.take(f"tune-{number}", file, [parent])
        parent = f"tune-{number}"
    other = tuned(tuned(base, 50), 51, every=150)
    write_file(odd, other, sorted(other), b" \n  ", last=True)  # misaligned, an odd header, metadata last
    make.take("other", odd, ["base"])
    make.combine("soup", [("tune-1", 1.0), ("other", 1.0)], 2.0)
    make.combine("arithmetic", [("base", -0.25), ("tune-4", 0.5), ("other", 0.75)], 1.0)
    make.combine("souped", [("soup", 0.1), ("arithmetic", 0.2), ("tune-6", 0.7)], 1.0)
    soup = scratch / "soup"
    materialise(make.repo.store, make.repo.version("soup").manifests[PATH], soup)
    data = bytearray(soup.read_bytes())
    data[-1000:-40:40] = bytes(value ^ 1 for value in data[-1000:-40:40])
    data[-400_000::4001] = bytes(value ^ 1 for value in data[-400_000::4001])
    soup.write_bytes(data)
    make.take("tuned-soup", soup, ["soup"])


def main(folder: Path) -> None:
    """Makes the golden repository in `folder`."""
    if folder.exists():
        raise SystemExit(f"{folder} exists: a golden repository is never made again")
    os.environ |= {"GIT_AUTHOR_DATE": "@1790000000 +0000", "GIT_COMMITTER_DATE": "@1790000000 +0000"}
    os.environ |= {"GIT_COMMITTER_NAME": "Golden", "GIT_COMMITTER_EMAIL": "golden@localhost"}
    with tempfile.TemporaryDirectory() as scratch:
        make = Maker(Path(scratch))
        history(make, Path(scratch))
        (folder / "packs").mkdir(parents=True)
        for pack in sorted((make.repo.git_dir / "modelgit" / "packs").iterdir()):
            (folder / "packs" / pack.name).write_bytes(pack.read_bytes())
        make.repo.git.run("bundle", "create", str((folder / "history.bundle").resolve()), "--branches", "--tags")
        (folder / "SHA256SUMS").write_text("".join(sorted(make.sums)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
