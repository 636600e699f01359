"""Low-rank adaptation: training begins at the start's outputs, and changes factors and head alone."""

import pytest
import torch

from modelgit.errors import RecipeError
from modelgit.train.choices import Lora
from modelgit.train.config import FineTune
from modelgit.train.fitting.passes import scored_by
from modelgit.train.networks.lora import PREFIX, Adapted, adapt, adapter_of, is_linear, leave_to_factors, modules_of
from modelgit.train.networks.network import Network
from modelgit.train.networks.registry import build_network

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def network() -> Network:
    torch.manual_seed(0)
    return build_network("mlp:12", 3)


def adapted(rank: int = 4, targets: tuple[str, ...] = (), frozen: int = 0, seed: int = 0) -> Network:
    found = network()
    adapt(found, Lora(rank, 8.0, targets), frozen, seed)
    return found


def test_it_begins_at_the_outputs_of_the_start() -> None:
    assert torch.equal(scored_by(network(), 0)(X), scored_by(adapted(), 0)(X))


def test_a_is_kaiming_uniform_by_seed_and_name_and_b_is_zero() -> None:
    one, again, other = (adapter_of(adapted(seed=seed)) for seed in (3, 3, 4))
    name = f"{PREFIX}first.lora_A.weight"
    assert torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name])
    bound = 12**-0.5  # PyTorch's own for linear layers: sqrt(6 / ((1 + 5) * inputs))
    assert bound * 0.8 < float(one[name].abs().max()) <= bound
    assert not one[f"{PREFIX}first.lora_B.weight"].any()
    assert modules_of(one) == ("first", "second")


def test_gradients_go_to_factors_and_head_alone() -> None:
    found = adapted()
    leave_to_factors(found)
    scored_by(found, 0)(X).square().sum().backward()  # type: ignore[no-untyped-call]
    moved = {name for name, parameter in found.named_parameters() if parameter.grad is not None}
    factors = {f"{layer}.lora_{x}.weight" for layer in ("first", "second") for x in "AB"}
    assert moved == factors | {"head.weight", "head.bias"}


def test_targets_are_last_parts_of_names_behind_the_frozen_stages() -> None:
    assert modules_of(adapter_of(adapted(targets=("second",)))) == ("second",)
    assert modules_of(adapter_of(adapted(frozen=1))) == ("second",)
    assert type(network().get_submodule("first")) is torch.nn.Linear
    assert type(adapted().get_submodule("first")) is Adapted
    for targets, frozen in ((("econd",), 0), (("head",), 0), (("first",), 1), (("second", "third"), 0)):
        with pytest.raises(RecipeError, match="no layer to adapt is called") as caught:
            adapted(targets=targets, frozen=frozen)
        assert "second" in str(caught.value.hint)
    with pytest.raises(RecipeError, match="no linear layer to adapt behind the frozen stages"):
        adapt(build_network("cnn", 3), Lora(), 0, 0)


def test_a_rank_that_saves_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"lora.rank = 12: expected less than 12: 'first' is 64x12"):
        adapted(rank=12)


@pytest.mark.parametrize(
    "said",
    [
        {"trains": "head"},
        {"trains": "featurizer"},
        {"batch_norm": "re-estimate"},
        {"shard_weights": True},
    ],
)
def test_what_an_adapter_does_not_hold_is_not_trained(said: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(said))} = .*: expected .* with lora"):
        FineTune(steps=3, lr=0.1, lora=Lora(), **said)  # type: ignore[arg-type]


def test_only_what_is_no_more_than_linear_is_adapted() -> None:
    made = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2))
    assert is_linear(torch.nn.Linear(2, 2)) and not is_linear(made) and not is_linear(torch.nn.Identity())
    assert not is_linear(adapted().get_submodule("first"))


@pytest.mark.parametrize("said", [{"rank": 0}, {"alpha": 0.0}, {"targets": ("",)}, {"targets": (".query",)}])
def test_settings_are_checked(said: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"lora\."):
        Lora(**said)  # type: ignore[arg-type]
