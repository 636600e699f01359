"""Which tensors are likely to resemble which: a version's and its parents', and those of one name anywhere before."""

import re
from collections.abc import Mapping, Sequence

from modelgit.repo.repository import Repository
from modelgit.repo.upkeep.database import ObjectReader, Trees, every_commit, manifests

LINE = re.compile(rb"^(\".*\") ([A-Z0-9_]+ \[[0-9,]*\]) ([0-9a-f]{64})$", re.MULTILINE)
Key = tuple[str, bytes]  # path of the weight file, name of the tensor
Tensors = Mapping[Key, tuple[bytes, bytes]]  # type with shape, id


def lineage(repo: Repository) -> dict[bytes, tuple[bytes, ...]]:
    """Returns the relatives of each tensor, the likeliest first, in the order in which tensors came into being.

    First the tensor of the same name of the first parent, then of the others, then the latest anywhere of that name,
    type and shape.
    """
    found: dict[bytes, tuple[bytes, ...]] = {}
    latest: dict[tuple[bytes, bytes], bytes] = {}
    with ObjectReader(repo.git) as reader:
        history = History(reader)
        for commit, parents in oldest_first(repo):
            above = [history.tensors(parent) for parent in parents]
            for key, (kind, oid) in history.tensors(commit).items():
                if oid not in found:
                    near = [tensors[key][1] for tensors in above if tensors.get(key, (b"",))[0] == kind]
                    near.append(latest.get((key[1], kind), oid))
                    found[oid] = tuple(relative for relative in dict.fromkeys(near) if relative != oid)
                latest[key[1], kind] = oid
    return found


def oldest_first(repo: Repository) -> Sequence[tuple[str, Sequence[str]]]:
    """Returns every commit with its parents, parents before children."""
    commits = every_commit(repo)
    if not commits:
        return []
    lines = "".join(f"{commit}\n" for commit in commits).encode()
    rows = repo.git.run("rev-list", "--no-walk=unsorted", "--parents", "--stdin", stdin=lines).splitlines()
    words = [row.split() for row in rows]
    return [(commit, parents) for commit, *parents in reversed(words)]


class History:
    """The tensors of versions, a few of which are kept at hand."""

    KEPT = 64

    def __init__(self, reader: ObjectReader) -> None:
        self._reader, self._trees = reader, Trees(reader)
        self._kept: dict[str, Tensors] = {}

    def tensors(self, commit: str) -> Tensors:
        """Returns the tensors of a commit, by weight file and name."""
        if commit not in self._kept:
            if len(self._kept) >= self.KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[commit] = self._read(commit)
        return self._kept[commit]

    def _read(self, commit: str) -> Tensors:
        files = self._trees.weights(commit)
        texts = manifests(self._reader, list(files.values()))
        return {
            (path, name): (kind, bytes.fromhex(oid.decode()))
            for path, blob in sorted(files.items())
            for name, kind, oid in LINE.findall(texts.get(blob, b""))
        }
