"""What a greedy soup costs: evaluations, and bytes read of each head, with their scores known and unknown.

    python -m benchmarks.merge_greedy [--heads 20] [--kb 256] [--out build/bench-greedy.json] [--work FOLDER]

Heads are fine-tunes of one base, as differences in a store. The metric asks nothing of a network, so that what is
counted is selection alone: the merge that follows reads the heads that were kept, as any merge does.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.vcs.tables import table
from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.selection.greedy import select
from modelgit.merge.selection.states import Soup, State
from modelgit.store.files.intake import store_tensors
from modelgit.store.files.tensors import StoredTensors
from modelgit.store.objects import ObjectStore


class Counted:
    """A model that counts the bytes that are read of it (a `TensorSource`)."""

    def __init__(self, source: TensorSource) -> None:
        self._source, self.bytes = source, 0

    def names(self) -> Sequence[str]:
        """Return the tensors' names."""
        return self._source.names()

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's dtype, shape and id."""
        return self._source.entry(name)

    def frames(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's bytes."""
        for frame in self._source.frames(name):
            self.bytes += frame.nbytes
            yield frame


def stored(store: ObjectStore, heads: int, size: int) -> list[StoredTensors]:
    """Return fine-tunes of one base, the first of them nearest to what is wanted: zero."""
    draws, found = np.random.default_rng(0), list[Manifest]()
    base = draws.standard_normal(size // 4)
    for number in range(heads + 1):
        values = (base + 0.1 * number * draws.standard_normal(size // 4)).astype(np.float32)
        with store.begin() as pack:
            tensors = [("w", "F32", values.shape, memoryview(values.tobytes()))]
            manifest = store_tensors(pack, tensors, {}, found[0] if found else None)
            pack.commit()
        found.append(manifest)
    return [StoredTensors(store, manifest) for manifest in found[1:]]


def measured(
    sources: Sequence[StoredTensors], alone: list[float] | None, size: int
) -> tuple[dict[str, object], list[float]]:
    """Return what a selection costs, and the scores of single heads."""
    counted, evaluations = [Counted(source) for source in sources], 0

    def score(state: State) -> float:
        nonlocal evaluations
        evaluations += 1
        return -float(np.square(np.frombuffer(state["w"][1], "<f4")).mean())

    began, soup = time.process_time(), Soup(counted, [str(i) for i in range(len(counted))], score)
    scores = alone or [soup.alone(head) for head in range(len(counted))]
    singles = evaluations
    kept = sum(row.kept for row in select("greedy", scores, soup))
    passes = max(source.bytes for source in counted) / size
    row = {"scores": "known" if alone else "unknown", "heads": len(counted), "kept": kept, "singles": singles}
    return {**row, "means": evaluations - singles, "passes": passes, "cpu_s": time.process_time() - began}, scores


def main(arguments: list[str] | None = None) -> None:
    """Run, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--kb", type=int, default=256, help="size of each model")
    parser.add_argument("--out", type=Path, default=Path("build/bench-greedy.json"))
    parser.add_argument("--work", type=Path, help="where the store is made")
    options = parser.parse_args(arguments)
    size = 1024 * options.kb
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        sources = stored(ObjectStore(Path(folder) / "store"), options.heads, size)
        first, scores = measured(sources, None, size)
        rows = [first, measured(sources, scores, size)[0]]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"model_bytes": size, "rows": rows}, indent=2))
    head = ["scores of single heads", "heads", "kept", "evaluations: single", "of means", "passes over a head", "CPU s"]
    print(table(head, [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]))


if __name__ == "__main__":
    main()
