"""Merges frame by frame: the same bytes from any source, in any number of threads, in bounded memory."""

import os
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from modelgit.errors import FormatError, MergeConflict, UsageError
from modelgit.formats.manifest import Manifest, TensorEntry, write
from modelgit.formats.safetensors import build_header
from modelgit.formats.source import TensorSource
from modelgit.merge.engine import windows
from modelgit.merge.engine.execution import execute, write_merged
from modelgit.merge.engine.plan import Head, Plan, Policy, plan
from modelgit.merge.methods import METHODS, Elementwise, Fitted, Inputs, Linear, Method, make
from modelgit.merge.methods.registry import Value
from modelgit.store.files.intake import store_file
from modelgit.store.files.materialise import materialise
from modelgit.store.files.tensors import FileTensors, StoredTensors
from modelgit.store.identity import FRAME_BYTES
from modelgit.store.objects import ObjectStore

DATA = Path(__file__).parents[2] / "data" / "merge"
WIDE = (800, 1501)  # rows of 6,004 bytes: a frame of 4 MiB ends inside one
Floats = npt.NDArray[np.float32]
ALONE = {
    name: make(name, {}) for name in METHODS if not hasattr(METHODS[name], "statistics")
}  # the rest: test_informed
STREAMED = sorted(name for name, method in ALONE.items() if isinstance(method, Linear | Fitted | Elementwise))
VARIANTS: list[tuple[str, dict[str, Value]]] = [
    *((name, {}) for name in STREAMED),
    ("ties", {"scope": "model"}),
    ("ties", {"rescale": True}),
    ("sce", {"top": 0.3}),
    ("breadcrumbs", {"signs": True, "density": 0.5, "gamma": 0.1}),
]
EVERY = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=[f"{n}-{s}" if s else n for n, s in VARIANTS])


def save(path: Path, arrays: Mapping[str, Floats]) -> Path:
    header = build_header([(name, "F32", array.shape) for name, array in arrays.items()], {})
    path.write_bytes(header.raw + b"".join(arrays[span.name].tobytes() for span in header.tensors))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three fine-tunes with many equal differences, one tensor of two frames."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("models")
    shapes = {"wide": WIDE, "norm": (1501,), "scalar": (), "empty": (0, 3)}
    base = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    models = [base]
    for _ in range(3):
        steps = {name: random.standard_normal(shape).round(1) * 0.1 for name, shape in shapes.items()}
        models.append({name: np.asarray(base[name] + steps[name], np.float32) for name in shapes})
    return [save(folder / f"{i}.safetensors", model) for i, model in enumerate(models)]


def stored(store: ObjectStore, files: Sequence[Path]) -> list[StoredTensors]:
    """Return the files as versions in a store, all but the first as differences."""
    found: list[Manifest] = []
    for some in (files[:1], files[1:]):
        with store.begin() as pack:
            found += [store_file(pack, file, found[0] if found else None) for file in some]
            pack.commit()
    return [StoredTensors(store, manifest) for manifest in found]


def heads_for(method: Method, sources: Sequence[TensorSource]) -> list[Head]:
    count = 2 if method.heads[1] == 2 else len(sources)
    weights = (0.5, 0.3, 0.4) if method.weighted else (1.0, 1.0, 1.0)
    return [Head(str(i), source, weights[i]) for i, source in enumerate(sources[:count])]


def merged(store: ObjectStore, method: Method, sources: Sequence[TensorSource]) -> str:
    """Return the manifest of a merge of all but the first, which is the base."""
    planned = plan(heads_for(method, sources[1:]), sources[0] if method.needs_base else None, method, Policy())
    with store.begin() as pack:
        result = execute(planned, pack, store)
        pack.commit()
    return write(result.manifest)


@EVERY
def test_threads_order_and_sources_reach_no_byte(
    files: list[Path], tmp_path: Path, name: str, settings: dict[str, Value]
) -> None:
    method = make(name, settings)
    one, three = (ObjectStore(tmp_path / str(threads), threads=threads) for threads in (1, 3))
    first = merged(one, method, stored(one, files))
    sources = stored(three, files)
    again = plan(heads_for(method, sources[1:])[::-1], sources[0] if method.needs_base else None, method, Policy())
    with three.begin() as pack:
        result = execute(again, pack, three)
        pack.commit()
    assert write(result.manifest) == first
    loose = [FileTensors(file) for file in files]
    direct = plan(heads_for(method, loose[1:]), loose[0] if method.needs_base else None, method, Policy())
    outcomes = write_merged(direct, tmp_path / "direct", threads=2)
    materialise(three, result.manifest, tmp_path / "stored")
    assert (tmp_path / "direct").read_bytes() == (tmp_path / "stored").read_bytes()
    assert sorted(outcome.name for outcome in outcomes) == ["empty", "norm", "scalar", "wide"]


@pytest.mark.parametrize("name", [name for name in STREAMED if isinstance(make(name, {}), Elementwise)])
def test_blocks_across_frames_are_what_the_method_gives_for_all_at_once(
    files: list[Path], tmp_path: Path, name: str
) -> None:
    method = make(name, {})
    sources = [FileTensors(file) for file in files]
    planned = plan(heads_for(method, sources[1:]), sources[0] if method.needs_base else None, method, Policy())
    write_merged(planned, tmp_path / "merged")
    tensor = [np.frombuffer(s.read("wide"), np.float32).reshape(WIDE).astype(np.float64) for s in sources]
    keys = [head.source.entry("wide").oid for head in planned.heads]
    order = [int(head.name) for head in planned.heads]
    weights = [head.weight for head in planned.heads]
    whole = Inputs([tensor[1 + i] for i in order], weights, tensor[0] if method.needs_base else None, "wide", keys)
    found = np.frombuffer(FileTensors(tmp_path / "merged").read("wide"), np.float32).reshape(WIDE)
    assert WIDE[0] * WIDE[1] * 4 > FRAME_BYTES
    assert np.array_equal(found, method(whole).astype(np.float32))


class Sequential:
    """A source that can only be read from the beginning, as a checkpoint in a zip."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def names(self) -> Sequence[str]:
        return self._source.names()

    def entry(self, name: str) -> TensorEntry:
        return self._source.entry(name)

    def frames(self, name: str) -> Iterator[memoryview]:
        return self._source.frames(name)


def test_sources_of_all_kinds_mix(files: list[Path], tmp_path: Path) -> None:
    store, other = ObjectStore(tmp_path / "a"), ObjectStore(tmp_path / "b")
    method = make("ties", {})
    wanted = merged(store, method, stored(store, files))
    kinds: list[TensorSource] = [stored(store, files)[0], stored(other, files)[1], FileTensors(files[2])]
    assert merged(store, method, [*kinds, Sequential(stored(store, files)[3])]) == wanted


# ------------------------------------------------------------------------------------------------- whole model


def test_tensors_that_nobody_changed_count_for_the_threshold(tmp_path: Path) -> None:
    same, zeros = np.ones(90, np.float32), np.zeros(10, np.float32)
    base = save(tmp_path / "base", {"same": same, "w": zeros})
    tune = save(tmp_path / "tune", {"same": same, "w": np.arange(1, 11, dtype=np.float32)})
    for density, kept in ((0.04, [6, 7, 8, 9, 10]), (0.5, list(range(1, 11)))):
        method = make("ties", {"scope": "model", "density": density})
        planned = plan([Head("a", FileTensors(tune))], FileTensors(base), method, Policy())
        write_merged(planned, tmp_path / "out")
        found = np.frombuffer(FileTensors(tmp_path / "out").read("w"), np.float32)
        assert found[found != 0].tolist() == kept


def test_the_whole_model_needs_every_tensor_in_every_model(tmp_path: Path) -> None:
    one, two = {"v": np.ones(4, np.float32), "w": np.ones(4, np.float32)}, {"w": np.full(4, 2, np.float32)}
    names = [save(tmp_path / str(i), model) for i, model in enumerate((one, {**one, "v": two["w"]}, two))]
    base = save(tmp_path / "base", {"v": np.zeros(4, np.float32), "w": np.zeros(4, np.float32)})
    three = [Head(str(i), FileTensors(path)) for i, path in enumerate(names)]
    planned = plan(three, FileTensors(base), make("ties", {"scope": "model"}), Policy(on_missing="keep"))
    with pytest.raises(UsageError, match="every tensor in every model"):
        write_merged(planned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("name", ["linear", "ties", "della"])
def test_memory_does_not_grow_with_the_tensor(tmp_path: Path, name: str) -> None:
    """Five tensors of 16 MB: as float64 they would take 160 MB, of which there are windows of two frames at once."""
    random, method = np.random.default_rng(0), make(name, {})
    step = 0.01 * random.standard_normal(4_000_000, np.float32)
    models = [step.reshape(4000, 1000) * np.float32(1 + i * i) for i in range(5)]
    files = [save(tmp_path / str(i), {"w": model}) for i, model in enumerate(models)]
    store, loose = ObjectStore(tmp_path / "store", threads=2), [FileTensors(file) for file in files]
    inside = stored(store, files)
    del models, step

    def planned(sources: Sequence[TensorSource]) -> Plan:
        heads = [Head(str(i), source) for i, source in enumerate(sources[1:])]
        return plan(heads, sources[0] if method.needs_base else None, method, Policy())

    def from_files() -> None:
        write_merged(planned(loose), tmp_path / "out", threads=2)

    def in_store() -> None:
        with store.begin() as pack:
            execute(planned(inside), pack, store)

    assert peak_of(from_files) < 35e6
    assert peak_of(in_store) < 110e6


def peak_of(work: Callable[[], None]) -> int:
    tracemalloc.start()
    work()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_what_is_kept_of_all_tensors_together_is_bounded(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(tmp_path / "store", threads=2)
    sources = stored(store, files)
    inputs = [(source, source.entry("wide")) for source in sources]
    monkeypatch.setattr(windows, "SLABS", 2)
    shop = windows.Workshop(store.pool, 2)
    readings = [shop.open(inputs) for _ in range(4)]
    for reading in readings:
        shop.hold(reading)
    assert [len(reading.held) for reading in readings] == [len(inputs)] * 2 + [0] * 2
    last = readings.pop()
    kept = readings[0].held[1]
    before = kept.tobytes()
    readings.clear()  # the second tensor is done with, of the first somebody has a view
    shop.hold(last)
    assert len(last.held) == len(inputs)
    assert kept.tobytes() == before == last.held[1].tobytes()
    assert not np.shares_memory(kept, last.held[1])


@pytest.mark.parametrize("name", ["linear", "ties", "dare_ties", "model_stock"])
def test_hundreds_of_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(windows, "WINDOW_BYTES", 1 << 16)  # so that frames lie in a temporary file
    monkeypatch.setattr(windows, "HELD_BYTES", 0)
    random, method = np.random.default_rng(0), make(name, {})
    base = random.standard_normal(20_000).astype(np.float32)
    tunes = [base + np.float32(0.1) * random.standard_normal(20_000).astype(np.float32) for _ in range(150)]
    files = [save(tmp_path / f"{i:03}", {"w": model}) for i, model in enumerate((base, *tunes))]
    store = ObjectStore(tmp_path / "store", threads=2)
    sources = stored(store, files)
    planned = plan(
        [Head(f"{i:03}", source) for i, source in enumerate(sources[1:])],
        sources[0] if method.needs_base else None,
        method,
        Policy(),
    )
    write_merged(planned, tmp_path / "out", threads=2)
    order = [int(head.name) for head in planned.heads]
    keys = [head.source.entry("w").oid for head in planned.heads]
    wide = [tunes[i].astype(np.float64) for i in order]
    wanted = method(Inputs(wide, [1.0] * 150, base.astype(np.float64) if method.needs_base else None, "w", keys))
    found = np.frombuffer(FileTensors(tmp_path / "out").read("w"), np.float32)
    assert np.allclose(found, wanted, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["linear", "ties", "model_stock"])
def test_a_value_that_is_not_finite_far_inside_is_found_in_its_model(
    files: list[Path], tmp_path: Path, name: str
) -> None:
    bad = np.frombuffer(FileTensors(files[2]).read("wide"), np.float32).copy()
    bad[-7] = np.inf
    path = save(tmp_path / "bad", {"wide": bad.reshape(WIDE)})
    method = make(name, {})
    heads = [Head("A", FileTensors(files[1])), Head("B", FileTensors(path))]
    planned = plan(heads, FileTensors(files[0]) if method.needs_base else None, method, Policy(on_missing="drop"))
    with pytest.raises(MergeConflict) as caught:
        write_merged(planned, tmp_path / "out")
    assert [(c.kind, c.where, c.got) for c in caught.value.conflicts] == [
        ("non-finite", "wide", "infinity or not-a-number in B")
    ]
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("name", ["linear", "ties", "model_stock"])
def test_a_file_that_is_cut_short_is_named_and_nothing_is_written(files: list[Path], tmp_path: Path, name: str) -> None:
    copies = [tmp_path / file.name for file in files]
    for file, copy in zip(files, copies, strict=True):
        copy.write_bytes(file.read_bytes())
    sources, method = [FileTensors(copy) for copy in copies], make(name, {})
    planned = plan(heads_for(method, sources[1:]), sources[0] if method.needs_base else None, method, Policy())
    os.truncate(copies[2], copies[2].stat().st_size // 2)
    with pytest.raises(FormatError, match=r"2\.safetensors: became shorter"):
        write_merged(planned, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [copy.name for copy in copies]


def test_tensors_at_odd_places_give_the_same_merge(files: list[Path], tmp_path: Path) -> None:
    """A header of a length that no multiple of 8 is: then values are copied before they are looked at."""
    odd = [tmp_path / file.name for file in files]
    for file, copy in zip(files, odd, strict=True):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        copy.write_bytes((length + 3).to_bytes(8, "little") + data[8 : 8 + length] + b"   " + data[8 + length :])
    for name in ("linear", "model_stock"):
        made = []
        for paths in (files, odd):
            sources, method = [FileTensors(path) for path in paths], make(name, {})
            base = sources[0] if method.needs_base else None
            write_merged(plan(heads_for(method, sources[1:]), base, method, Policy()), tmp_path / "out")
            merged_file = FileTensors(tmp_path / "out")
            made.append([bytes(merged_file.read(tensor)) for tensor in merged_file.names()])
        assert made[0] == made[1], name


def test_a_result_beyond_the_type_is_an_overflow(tmp_path: Path) -> None:
    most = np.full(50_000, 3e38, np.float32)
    base = save(tmp_path / "base", {"w": np.full(50_000, -3e38, np.float32)})
    files = [save(tmp_path / str(i), {"w": most * np.float32(factor)}) for i, factor in enumerate((1, 0.9))]
    heads = [Head(file.name, FileTensors(file)) for file in files]
    planned = plan(heads, FileTensors(base), make("ties", {"scale": 2.0}), Policy())
    with pytest.raises(MergeConflict) as caught:
        write_merged(planned, tmp_path / "out")
    assert [(c.kind, c.where) for c in caught.value.conflicts] == [("overflow", "w")]


def test_quick_ids_of_files_give_the_same_merge(tmp_path: Path) -> None:
    """The order of two summands is all that ids decide here, and that reaches no byte of their mean."""
    paths = []
    for number in range(2):
        draws = np.random.default_rng(number)
        values = {"big": draws.normal(size=(300, 5000)).astype(np.float32), "same": np.ones(9, np.float32)}
        save_file(values, tmp_path / f"{number}.safetensors")
        paths.append(tmp_path / f"{number}.safetensors")
    made = []
    for quick in (False, True):
        heads = [Head(path.name, FileTensors(path, quick=quick)) for path in paths]
        for head in heads:
            assert [e.name for e in head.source.entries()] == ["big", "same"]  # type: ignore[attr-defined]
            assert head.source.entry("big").oid.startswith("xxh3:") is quick
        found = plan(heads, None, make("linear", {}), Policy())
        assert [step.copied for step in found.steps] == [False, True]
        write_merged(found, tmp_path / f"merged-{quick}")
        made.append((tmp_path / f"merged-{quick}").read_bytes())
    assert made[0] == made[1]
    with paths[0].open("r+b") as file:
        source = FileTensors(paths[0], quick=True)
        file.truncate(1000)
    with pytest.raises(FormatError, match="became shorter"):
        source.entry("big")
