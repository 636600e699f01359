"""One merge in a process of its own, to be measured from outside: modelgit from files, out of a store, or numpy.

    python -m benchmarks.merging.worker files METHOD SETTINGS OUT BASE MODEL…
    python -m benchmarks.merging.worker store METHOD SETTINGS STORE COUNT
    python -m benchmarks.merging.worker fill STORE BASE MODEL…
    python -m benchmarks.merging.worker mean OUT MODEL…

`files` writes the merged model as a safetensors file; `store` writes it into the store, out of versions that `fill`
put there as differences to the base. `mean` is the plain streaming mean of memory-mapped files in float32: what any
tool has to do at least.
"""

import json
import sys
from pathlib import Path

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")  # their masks follow from object ids


def from_files(method: str, settings: str, out: str, *files: str) -> None:
    """Merge files into a file."""
    from modelgit.merge.engine.execution import write_merged
    from modelgit.merge.engine.plan import Head, Policy, plan
    from modelgit.merge.methods import make
    from modelgit.store.files.tensors import FileTensors

    chosen = make(method, json.loads(settings))
    base, *models = (FileTensors(Path(file), quick=method not in RANDOM) for file in files)
    for source in (*models, *([base] if chosen.needs_base else [])):
        source.entries()
    heads = [Head(f"ft{i}", model) for i, model in enumerate(models)]
    write_merged(plan(heads, base if chosen.needs_base else None, chosen, Policy()), Path(out))


def fill(store: str, *files: str) -> None:
    """Store files, the first as it is and the others as differences to it; note their manifests."""
    from modelgit.formats.manifest import Manifest, write
    from modelgit.store.files.intake import store_file
    from modelgit.store.objects import ObjectStore

    objects, base = ObjectStore(Path(store)), list[Manifest]()
    for number, file in enumerate(files):
        with objects.begin() as pack:
            manifest = store_file(pack, Path(file), base[0] if base else None)
            pack.commit()
        base.append(manifest)
        Path(store, f"{number}.manifest").write_text(write(manifest))


def from_store(method: str, settings: str, store: str, count: str) -> None:
    """Merge versions of a store into it."""
    from modelgit.formats.manifest import parse
    from modelgit.merge.engine.execution import execute
    from modelgit.merge.engine.plan import Head, Policy, plan
    from modelgit.merge.methods import make
    from modelgit.store.files.tensors import StoredTensors
    from modelgit.store.objects import ObjectStore

    objects, chosen = ObjectStore(Path(store)), make(method, json.loads(settings))
    notes = [Path(store, f"{i}.manifest") for i in range(int(count) + 1)]
    manifests = [parse(note.read_text(), note.name) for note in notes]
    base, *models = (StoredTensors(objects, manifest) for manifest in manifests)
    heads = [Head(f"ft{i}", model) for i, model in enumerate(models)]
    with objects.begin() as pack:
        execute(plan(heads, base if chosen.needs_base else None, chosen, Policy()), pack, objects)
        pack.commit()


def mean(out: str, *files: str) -> None:
    """Write the mean of bfloat16 files with one layout, a million elements at a time."""
    import numpy as np

    step, whole = 1 << 20, [np.memmap(file, np.uint8, "r") for file in files]
    starts = [8 + int(values[:8].view("<u8")[0]) for values in whole]
    maps = [np.memmap(file, np.uint16, "r", offset=at) for file, at in zip(files, starts, strict=True)]
    total, bits = np.empty(step, np.float32), np.empty(step, np.uint32)
    with Path(out).open("wb", buffering=0) as target:
        target.write(whole[0][: starts[0]])
        for start in range(0, maps[0].size, step):
            count = min(step, maps[0].size - start)
            part, word = total[:count], bits[:count]
            part[:] = 0
            for values in maps:
                np.left_shift(values[start : start + count], 16, out=word, dtype=np.uint32, casting="unsafe")
                part += word.view(np.float32)
            part *= np.float32(1 / len(files))
            sums = part.view(np.uint32)
            np.right_shift(sums, 16, out=word)
            word &= 1
            word += 0x7FFF
            word += sums
            word >>= 16
            target.write(word.astype(np.uint16))


if __name__ == "__main__":
    {"files": from_files, "store": from_store, "fill": fill, "mean": mean}[sys.argv[1]](*sys.argv[2:])
