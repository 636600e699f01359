"""Permutations of units: identities, specs from graphs, matching, the check of the function."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from modelgit.errors import FormatError
from modelgit.formats.manifest import TensorEntry
from modelgit.merge.align.activations import match_activations
from modelgit.merge.align.axes import Atoms
from modelgit.merge.align.function import difference, permuted_state, require_same, shuffled
from modelgit.merge.align.graph import derive
from modelgit.merge.align.layouts import layout_spec
from modelgit.merge.align.matching import Pair, match_weights
from modelgit.merge.align.sources import PermutedTensors
from modelgit.merge.align.spec import (
    Group,
    Permutations,
    Place,
    Spec,
    digest,
    identity,
    inverse,
)
from modelgit.store.files.tensors import FileTensors
from modelgit.train.networks.registry import build_network

FIXTURES = Path(__file__).parents[2] / "data" / "rebasin"
ANSWERS = json.loads((FIXTURES / "answers.json").read_text())
State = dict[str, Tensor]


class Called:
    """A module that takes its weights with every call."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval()

    def __call__(self, state: Mapping[str, Tensor], x: Tensor) -> Any:
        return functional_call(self.module, dict(state), (x,))

    def state(self, seed: int = 0) -> State:
        """Returns weights drawn at random in float64, no two units alike."""
        draws = torch.Generator().manual_seed(seed)
        found = {}
        for name, tensor in self.module.state_dict().items():
            noise = torch.rand(tensor.shape, generator=draws, dtype=torch.float64)
            found[name] = 0.1 + noise if tensor.is_floating_point() else tensor
            if name.endswith(("weight", "bias", "proj", "token")):
                found[name] = noise - 0.5
        return found


class Heads(nn.Module):
    """A block of a language model: grouped queries, rotary positions if wanted, a gated hidden layer."""

    def __init__(self, rotary: bool) -> None:
        super().__init__()
        self.rotary = rotary
        self.embed, self.norm = nn.Embedding(11, 16), nn.RMSNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, n, bias=False) for n in (16, 8, 8))
        self.o, self.gate, self.up, self.down = (nn.Linear(a, b) for a, b in ((16, 16), (16, 20), (16, 20), (20, 16)))
        self.out = nn.Linear(16, 11, bias=False)

    def turned(self, x: Tensor) -> Tensor:
        if not self.rotary:
            return x
        angle = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1])
        both = torch.cat([angle, angle], -1).to(x.dtype)
        left, right = x.chunk(2, -1)
        return x * both.cos() + torch.cat([-right, left], -1) * both.sin()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        n, t, _ = x.shape
        h = self.norm(x)
        q, k, v = (layer(h).view(n, t, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.turned(q), self.turned(k)
        a = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(a.transpose(1, 2).reshape(n, t, 16))
        return torch.as_tensor(self.out(x + self.down(functional.silu(self.gate(x)) * self.up(x))))


class Vision(nn.Module):
    """A small vision transformer: patches by a convolution, a class token, positions, two encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return torch.as_tensor(self.head(self.encoder(x)[:, 0]))


class Residual(nn.Module):
    """Convolutions on a residual stream: batch norm, group norm, grouped and depthwise convolutions, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.groups, self.back = nn.Conv2d(8, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 8, 1, bias=False)
        self.depthwise, self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 3, groups=4)
        self.head = nn.Sequential(nn.Linear(12 * 4, 10), nn.GELU(), nn.LayerNorm(10), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu_(self.groups(self.inner(x))))
        x = torch.relu(self.grouped(functional.hardswish(self.depthwise(x))))
        return torch.as_tensor(self.head(functional.max_pool2d(x, 2).flatten(1)))


class Turned(nn.Module):
    """A layer whose outputs go through a Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(torch.fft.rfft(self.layer(x)).real)


class Recurrent(nn.Module):
    """Two layers with gates, and a head on the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(4, 5, 2, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.cells(x)[0][:, -1]))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(True), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5))


def images() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    return torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(1))


NETWORKS: dict[str, tuple[nn.Module, Tensor]] = {
    "perceptron": (perceptron(), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))),
    "convolutions": (Residual(), images()),
    "vision": (Vision(), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))),
    "language": (Heads(rotary=False), tokens()),
    "rotary": (Heads(rotary=True), tokens()),
    "gates": (Recurrent(), torch.randn(4, 7, 4, generator=torch.Generator().manual_seed(1))),
}


def plain(state: Mapping[str, Tensor]) -> Any:
    return lambda name: state[name].double().numpy()


def same(one: Permutations, other: Permutations) -> bool:
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------- whole networks


@pytest.mark.parametrize("name", NETWORKS)
def test_a_spec_from_the_graph_leaves_the_function_as_it_is(name: str) -> None:
    module, x = NETWORKS[name]
    network = Called(module)
    spec = derive(network, network.state(), x)
    assert spec.source == "graph"
    assert require_same(network, spec, network.state(), shuffled(spec, 3), x) < 1e-12


@pytest.mark.parametrize("name", NETWORKS)
def test_permuting_and_back_is_the_identity(name: str) -> None:
    module, x = NETWORKS[name]
    network = Called(module)
    state = network.state()
    spec = derive(network, state, x)
    found = shuffled(spec, 5)
    there = permuted_state(spec, state, found)
    assert not all(torch.equal(there[name], state[name]) for name in state)
    back = permuted_state(spec, there, inverse(spec, found))
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_matching_a_permuted_copy_recovers_the_permutation(name: str, seed: int) -> None:
    module, x = NETWORKS[name]
    network = Called(module)
    state = network.state()
    spec = derive(network, state, x)
    found = shuffled(spec, 7)
    copy = permuted_state(spec, state, found)
    assert same(match_weights(spec, Pair(plain(state), plain(copy)), seed), inverse(spec, found))


@pytest.mark.parametrize("name", ["perceptron", "convolutions"])
def test_activations_of_a_permuted_copy_recover_the_permutation(name: str) -> None:
    module, x = NETWORKS[name]
    network = Called(module)
    state = network.state()
    spec = derive(network, state, x)
    found = shuffled(spec, 7)
    draws = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, *x.shape[1:], generator=draws, dtype=torch.float64) for _ in range(2)]
    got = match_activations(network, (state, permuted_state(spec, state, found)), batches, spec)
    assert same(got, inverse(spec, found))


def groups_of(spec: Spec) -> dict[str, tuple[int, str | None]]:
    return {group.name: (group.size, group.inside) for group in spec.groups}


def test_what_moves_in_a_language_model() -> None:
    free, turned = (derive(Called(Heads(rotary)), Called(Heads(rotary)).state(), tokens()) for rotary in (False, True))
    assert groups_of(turned) == {
        "norm": (16, None),  # the residual stream
        "q": (2, None),  # keys' heads, with their queries
        "q#2": (2, "q"),  # queries that share a key
        "gate": (20, None),
        "v": (4, None),  # units of a head's values
    }
    assert len(free.groups) == len(turned.groups) + 1  # units of queries and keys, where no position turns them
    heads = turned.by_name()["q"]
    assert {(place.tensor, place.axis, place.block) for place in heads.places} == {
        ("q.weight", 0, 8),
        ("k.weight", 0, 4),
        ("v.weight", 0, 4),
        ("o.weight", 1, 8),
    }


def test_groups_of_a_normalisation_stay_together() -> None:
    network = Called(Residual())
    spec = derive(network, network.state(), images())
    inner = spec.by_name()["inner#2"]
    assert (spec.by_name()["inner"].size, inner.size, inner.inside) == (3, 4, "inner")
    stream = next(group for group in spec.groups if Place("norm.running_var", 0) in group.places)
    places = {(place.tensor, place.axis) for place in stream.places}
    assert {("stem.bias", 0), ("back.weight", 0), ("depthwise.weight", 0)} <= places


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_built_in_networks_are_followed(architecture: str) -> None:
    built = build_network(architecture, 4)
    x = built.prepare(torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)))
    stages = nn.Module()
    stages.add_module("built", cast(nn.Module, built))

    def forward(x: Tensor) -> Tensor:
        for stage, _ in built.stages():
            x = stage(x)
        return torch.as_tensor(built.get_submodule(built.head_name)(x))

    stages.forward = forward
    network = Called(stages)
    spec = derive(network, network.state(), x)
    assert spec.units() == {"mlp": 64 + 32, "cnn": 16 + 32 + 64}[architecture]
    assert require_same(network, spec, network.state(), shuffled(spec, 0), x) < 1e-12


def test_an_operation_that_cannot_be_followed_is_named() -> None:
    network = Called(Turned())
    with pytest.raises(FormatError, match=r"operation '_fft_r2c' on tensors \[4, 16\]") as caught:
        derive(network, network.state(), torch.randn(4, 6))
    assert caught.value.hint is not None and "--align-spec" in caught.value.hint
    single = Called(nn.Linear(3, 2))
    with pytest.raises(FormatError, match="no units that could change places"):
        derive(single, single.state(), torch.randn(2, 3))


def test_the_check_finds_a_wrong_spec() -> None:
    network, x = Called(perceptron()), NETWORKS["perceptron"][1]
    wrong = Spec((Group("hidden", 16, (Place("0.weight", 0), Place("2.weight", 1))),))  # forgets the bias
    with pytest.raises(FormatError, match="computes something else"):
        require_same(network, wrong, network.state(), shuffled(wrong, 1), x)
    assert difference(network, network.state(), permuted_state(wrong, network.state(), identity(wrong)), x) == 0


# ------------------------------------------------------------------------------------------------- fixtures


def layers(sizes: list[int]) -> Spec:
    """Returns the spec of a perceptron whose layers are numbered."""
    return Spec(
        tuple(
            Group(
                f"P_{i}",
                size,
                (Place(f"layers.{i}.weight", 0), Place(f"layers.{i}.bias", 0), Place(f"layers.{i + 1}.weight", 1)),
            )
            for i, size in enumerate(sizes[1:-1])
        )
    )


def pair(tag: str) -> tuple[Pair, dict[str, npt.NDArray[Any]]]:
    a, b = (load_file(FIXTURES / f"{tag}.{side}.safetensors") for side in "ab")
    return Pair(lambda name: a[name].astype(np.float64), lambda name: b[name].astype(np.float64)), a


@pytest.mark.parametrize("tag", [tag for tag in ANSWERS if tag.startswith("mlp")])
def test_known_permutations_of_perceptrons_are_found_from_every_order(tag: str) -> None:
    spec = layers(ANSWERS[tag]["sizes"])
    wanted = {name: np.array(rows) for name, rows in ANSWERS[tag]["answer_take_B_to_A"].items()}
    assert all(same(match_weights(spec, pair(tag)[0], seed), wanted) for seed in range(16))


def test_known_permutations_of_a_language_model_are_found_by_its_layout() -> None:
    models, tensors = pair("llama_block")
    spec = layout_spec({name: t.shape for name, t in tensors.items()}, {"num_attention_heads": 2})
    names = {"residual": "residual", **{f"mlp_{i}": f"hidden.{i}" for i in (0, 1)}}
    names |= {f"heads_{i}": f"heads.{i}" for i in (0, 1)}
    answers = ANSWERS["llama_block"]["answer_take_B_to_A"]
    wanted = {names[name]: np.array(rows) for name, rows in answers.items()}
    assert all(same(match_weights(spec, models, seed), wanted) for seed in range(16))


# --------------------------------------------------------------------------------------------------- pieces


def test_axes_fall_apart_and_run_together() -> None:
    atoms = Atoms()
    twelve, other = atoms.new(12), atoms.new(12)
    outer, inner = atoms.split(twelve, 4)
    assert [atoms.size(part) for part in (outer, inner)] == [3, 4]
    atoms.join(twelve, other)
    assert atoms.leaves(other) == atoms.leaves(twelve) == (*outer, *inner)
    halves = atoms.split(other, 2)[1]
    assert [atoms.sizes[leaf] for leaf in atoms.leaves(twelve)] == [3, 2, 2]
    assert halves == atoms.leaves(twelve)[-1:]
    five = atoms.new(10)
    assert atoms.split(five, 5)[0] and not atoms.pinned
    atoms.split(atoms.new(6), 6)
    odd = atoms.new(12)
    atoms.split(odd, 4)
    atoms.split(odd, 6)  # 4 units to a block cannot be 6
    assert set(atoms.leaves(odd)) <= atoms.pinned


def test_permuted_tensors_are_read_as_if_they_were_stored(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network, x = Called(perceptron()), NETWORKS["perceptron"][1]
    state = {name: t.to(torch.bfloat16) for name, t in network.state().items()}
    spec = derive(network, network.state(), x)
    found = shuffled(spec, 2)
    save_file(state, tmp_path / "plain.safetensors")
    save_file(
        {name: t.contiguous() for name, t in permuted_state(spec, state, found).items()},
        tmp_path / "permuted.safetensors",
    )
    view = PermutedTensors(FileTensors(tmp_path / "plain.safetensors"), spec, found)
    stored = FileTensors(tmp_path / "permuted.safetensors")

    def told(source: Any) -> list[tuple[TensorEntry, bytes]]:
        return [(source.entry(name), b"".join(map(bytes, source.frames(name)))) for name in source.names()]

    assert told(view) == told(stored)
    assert digest(found) != digest(inverse(spec, found))
