"""Which models a soup takes, what its running mean is, and how often a model is read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelgit.errors import MergeConflict, UsageError
from modelgit.formats.manifest import TensorEntry
from modelgit.formats.source import TensorSource
from modelgit.merge.engine.execution import write_merged
from modelgit.merge.engine.layers import layered
from modelgit.merge.engine.plan import Head, Policy, content_key, plan
from modelgit.merge.engine.windows import Workshop
from modelgit.merge.methods import Inputs, make, of_heads
from modelgit.merge.selection.greedy import Mode, evaluations, ranking, select
from modelgit.merge.selection.states import Held, Soup, State, merged_state, read_state
from modelgit.store.files.tensors import FileTensors

Shape = tuple[int, ...]


@dataclass
class Table:
    """A tasting whose means were scored by hand, by the models in them."""

    means: Mapping[frozenset[int], float]
    kept: list[int] = field(default_factory=list)
    asked: list[frozenset[int]] = field(default_factory=list)

    def tasted(self, head: int) -> float:
        self.asked.append(frozenset((*self.kept, head)))
        return self.means[self.asked[-1]]

    def keep(self, head: int) -> None:
        self.kept.append(head)


def means(table: Mapping[str, float]) -> dict[frozenset[int], float]:
    return {frozenset(map(int, key)): value for key, value in table.items()}


ALONE = (0.6, 0.9, 0.8, 0.8)


def test_best_first_and_equals_in_the_order_of_their_content() -> None:
    assert ranking(ALONE) == [1, 2, 3, 0]


def test_greedy_keeps_what_does_not_lower_the_mean_equal_scores_too() -> None:
    table = Table(means({"12": 0.89, "13": 0.9, "013": 0.95}))
    tries = select("greedy", ALONE, table)
    assert [(t.head, t.alone, t.together, t.kept, t.round) for t in tries] == [
        (1, 0.9, 0.9, True, 0),
        (2, 0.8, 0.89, False, 1),
        (3, 0.8, 0.9, True, 2),  # equal: >=, as the paper has it
        (0, 0.6, 0.95, True, 3),
    ]
    assert table.kept == [1, 3, 0]
    assert len(table.asked) == evaluations("greedy", 4) == 3


def test_uniform_keeps_all_and_shows_the_same_curve() -> None:
    table = Table(means({"12": 0.5, "123": 0.4, "0123": math.nan}))
    assert [t.kept for t in select("uniform", ALONE, table)] == [True] * 4
    assert table.kept == [1, 2, 3, 0]


def test_greedier_takes_the_best_of_all_that_are_left_and_stops_at_a_loss() -> None:
    table = Table(means({"12": 0.91, "13": 0.9, "01": 0.92, "012": 0.92, "013": 0.9, "0123": 0.91}))
    tries = select("greedier", ALONE, table)
    assert table.kept == [1, 0, 2]
    assert [(t.head, t.together, t.kept, t.round) for t in tries] == [
        (1, 0.9, True, 0),
        (2, 0.91, False, 1),
        (3, 0.9, False, 1),
        (0, 0.92, True, 1),
        (2, 0.92, True, 2),  # no loss
        (3, 0.9, False, 2),
        (3, 0.91, False, 3),
    ]
    assert len(table.asked) == evaluations("greedier", 4) == 6


def test_a_mean_without_a_score_is_never_kept() -> None:
    table = Table(means({"01": math.nan, "02": math.nan, "12": math.nan}))
    assert [t.kept for t in select("greedy", (1.0, 0.5, 0.4), table)] == [True, False, False]
    assert [t.kept for t in select("greedier", (1.0, 0.5, 0.4), Table(table.means))] == [True, False, False]


# ------------------------------------------------------------------------------------------------ running means


class Counted:
    """A model that counts how often each of its tensors is read."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self.reads = dict.fromkeys(source.names(), 0)

    def names(self) -> Sequence[str]:
        return self._source.names()

    def entry(self, name: str) -> TensorEntry:
        return self._source.entry(name)

    def frames(self, name: str) -> Iterator[memoryview]:
        self.reads[name] += 1
        return self._source.frames(name)


def models(folder: Path, count: int, dtype: torch.dtype) -> list[FileTensors]:
    """Writes models of several frames and kinds of tensors, in the order that follows from their content."""
    generator = torch.Generator().manual_seed(7)
    shared = torch.randn(33, generator=generator).to(dtype)
    for i in range(count):
        state = {
            "big.weight": torch.randn(1100, 1000, generator=generator).to(dtype) if i < 3 else torch.ones(1100, 1000),
            "small": torch.randn((), generator=generator).to(dtype) * 10.0**i,
            "zero": torch.full((3,), -0.0) if i else torch.tensor([-0.0, 1.0, -0.0]),
            "shared": shared.clone(),
            "steps": torch.tensor([100 - i]),
        }
        cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
        save_file(cast, folder / f"{i}.safetensors")
    found = [FileTensors(folder / f"{i}.safetensors") for i in range(count)]
    return sorted(found, key=lambda source: content_key(Head("", source)))


def total(state: State) -> float:
    """Returns a score: the sum of everything, which differs for different means."""
    return sum(float(len(raw) + raw[0]) for _, raw in state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_running_mean_is_what_the_engine_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    sources = models(tmp_path, 4, dtype)
    names = [source.path.stem for source in sources]
    soup = Soup(sources, names, total)
    for head in (2, 0, 3):
        soup.keep(head)
    mean = soup.mean_with(1)
    heads = [Head(name, source) for name, source in zip(names, sources, strict=True)]
    write_merged(plan(heads, None, make("linear", {}), Policy()), tmp_path / "merged.safetensors")
    assert same(mean, read_state(FileTensors(tmp_path / "merged.safetensors"), "merged"))
    assert np.frombuffer(mean["steps"][1], "<i8").tolist() == np.frombuffer(sources[0].read("steps"), "<i8").tolist()


def same(a: State, b: State) -> bool:
    return {n: (e.dtype, e.shape, bytes(raw)) for n, (e, raw) in a.items()} == {
        n: (e.dtype, e.shape, bytes(raw)) for n, (e, raw) in b.items()
    }


@pytest.mark.parametrize("mode", ["greedy", "uniform"])
def test_twenty_models_are_read_twice_each_for_twenty_and_nineteen_evaluations(tmp_path: Path, mode: Mode) -> None:
    for i in range(20):
        save_file({"w": torch.full((64, 8), float(i % 7)), "b": torch.tensor([1.0, float(i)])}, tmp_path / f"{i}.st")
    sources = [Counted(FileTensors(tmp_path / f"{i}.st")) for i in range(20)]
    measured: list[float] = []

    def measure(state: State) -> float:
        measured.append(-abs(float(np.frombuffer(state["w"][1], "<f4").mean()) - 2.5))
        return measured[-1]

    soup = Soup(sources, [str(i) for i in range(20)], measure)
    alone = [soup.alone(head) for head in range(20)]
    assert len(measured) == 20
    tries = select(mode, alone, soup)
    assert (len(tries), len(measured)) == (20, 39)
    assert {count for source in sources for count in source.reads.values()} == {2}
    assert soup.reads == [2] * 20
    again = Soup(sources, [str(i) for i in range(20)], measure)
    select(mode, alone, again)  # scores are known: the means alone are measured, every model is read once
    assert (len(measured), again.reads) == (58, [1] * 20)


def test_what_is_not_a_number_is_found_while_reading(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "a.st")
    with pytest.raises(MergeConflict, match="w: expected finite values, got infinity or not-a-number in mine"):
        Soup([FileTensors(tmp_path / "a.st")], ["mine"], total).alone(0)


# ------------------------------------------------------------------------------------------- merges in memory


@pytest.mark.parametrize(
    ("method", "settings"), [("linear", {}), ("task_arithmetic", {"scale": 0.4}), ("ties", {}), ("slerp", {})]
)
def test_a_merge_in_memory_is_what_the_engine_writes(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    *heads, base = models(tmp_path, 3, torch.float32)
    shelf: dict[str, bytes] = {}
    held = [Head(str(i), Held(source, shelf)) for i, source in enumerate(heads)]
    chosen = make(method, settings)
    write_merged(plan(held, base, chosen, Policy()), tmp_path / "merged.safetensors")
    with ThreadPoolExecutor(2) as pool:
        state = merged_state(plan(held, base, chosen, Policy()), Workshop(pool, 2))
    assert same(state, read_state(FileTensors(tmp_path / "merged.safetensors"), "merged"))
    assert sum(len(data) for data in shelf.values()) > 0


def test_models_are_held_up_to_a_limit(tmp_path: Path) -> None:
    counted = Counted(models(tmp_path, 1, torch.float32)[0])
    held, shelf = Held(counted, {}, 1000), dict[str, bytes]()
    for _ in range(3):
        assert bytes(b"".join(held.frames("shared"))) == bytes(b"".join(counted.frames("shared")))
        assert sum(len(frame) for frame in held.frames("big.weight")) == 4_400_000
    assert (counted.reads["shared"], counted.reads["big.weight"]) == (1 + 3, 3)
    assert shelf == {}


def test_weights_by_layer_reach_the_tensors_that_begin_with_its_name(tmp_path: Path) -> None:
    rows = {"a": {"body.0.w": 1.0, "body.0.tied": 1.0, "body.1.w": 1.0, "body.10.w": 1.0, "same": 5.0}, "b": {}}
    rows["b"] = {name: 3.0 if name != "same" else 5.0 for name in rows["a"]}
    for model, values in rows.items():
        tensors = {name: torch.full((40, 4), value) for name, value in values.items()}
        save_file(tensors, tmp_path / f"{model}.safetensors")
    heads = [Head(model, FileTensors(tmp_path / f"{model}.safetensors")) for model in rows]
    layers = {"body.0": (1.0, 0.0), "body.1": (0.25, 0.75), "body": (0.0, 1.0)}
    found = layered(heads, None, make("linear", {}), Policy(), layers)
    write_merged(found, tmp_path / "merged.safetensors")
    state = read_state(FileTensors(tmp_path / "merged.safetensors"), "merged")
    first = {name: float(np.frombuffer(raw, "<f4")[0]) for name, (_, raw) in state.items()}
    assert first == {"body.0.w": 1.0, "body.0.tied": 1.0, "body.1.w": 2.5, "body.10.w": 3.0, "same": 5.0}
    with pytest.raises(UsageError, match="layer 'body': 3 weights for 2 models"):
        layered(heads, None, make("linear", {}), Policy(), {"body": (1.0, 1.0, 1.0)})


def test_settings_by_layer_and_by_model_reach_the_tensors(tmp_path: Path) -> None:
    rng, names = np.random.default_rng(3), ("body.0.w", "body.1.w", "body.2.w", "body.2.tied")
    states = {model: {name: torch.from_numpy(rng.standard_normal((9, 4))) for name in names} for model in "abcd"}
    for model, state in states.items():
        save_file(state, tmp_path / f"{model}.safetensors")
    sources = {model: FileTensors(tmp_path / f"{model}.safetensors") for model in "abcd"}
    usual = make("ties", {"density": (0.2, 0.5, 1.0)})
    own = {"body.1": make("ties", {"density": 0.4, "scale": 0.5}), "body.2": make("ties", {"density": (1.0, 0.1, 0.3)})}
    merged = []
    for order in ((0, 1, 2), (2, 0, 1)):
        heads = [Head("abc"[i], sources["abc"[i]], i + 1.0) for i in order]
        methods = {layer: of_heads(method, order) for layer, method in own.items()}
        found = layered(heads, sources["d"], of_heads(usual, order), Policy(), {}, methods)
        write_merged(found, tmp_path / "merged.safetensors")
        merged.append((tmp_path / "merged.safetensors").read_bytes())
    assert merged[0] == merged[1]
    for name, (_, raw) in read_state(FileTensors(tmp_path / "merged.safetensors"), "merged").items():
        values = [states[model][name].numpy() for model in "abcd"]
        wanted = own.get(name[:6], usual)(Inputs(values[:3], (1.0, 2.0, 3.0), values[3], name))
        assert np.allclose(np.frombuffer(raw).reshape(9, 4), wanted, rtol=1e-12, atol=0), name
    with pytest.raises(UsageError, match="settings cannot differ between layers"):
        layered(heads, sources["d"], make("ties", {"scope": "model"}), Policy(), {}, own)
