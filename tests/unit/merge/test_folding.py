"""An adapter folded into its base, against the formula, against PEFT, and against what does not fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modelgit.errors import DataError, UsageError
from modelgit.merge.adapters.configuration import Configuration, read_configuration
from modelgit.merge.adapters.folding import changes_of, folded

P = "base_model.model."
TABLE: dict[str, Any] = {"r": 2, "lora_alpha": 6}


def told(**more: Any) -> Configuration:
    return read_configuration(json.dumps({**TABLE, **more}).encode(), "adapter_config.json")


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sixteenths(tensor: Tensor) -> Tensor:
    """Returns numbers whose sums and products of a few are exact in single precision: one rounding is left."""
    return (16 * tensor).round() / 16


def fold(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], configuration: Configuration) -> dict[str, Tensor]:
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (adapter, base)]
    changes = changes_of(shapes[0], shapes[1], configuration)
    return {**base, **{name: folded(base.get(name), change, adapter) for name, change in changes.items()}}


def factors(module: str = "layer", outputs: int = 4, inputs: int = 5, rank: int = 2) -> dict[str, Tensor]:
    return {
        f"{P}{module}.lora_A.weight": drawn(rank, inputs, seed=1),
        f"{P}{module}.lora_B.weight": drawn(outputs, rank, seed=2),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_product_is_added_in_single_precision_and_rounded_once(dtype: torch.dtype) -> None:
    base = {"layer.weight": sixteenths(drawn(4, 5)).to(dtype), "layer.bias": drawn(4)}
    adapter = {name: sixteenths(tensor) for name, tensor in factors().items()}
    a, b = adapter.values()
    found = fold(base, adapter, told())
    by_hand = torch.empty(4, 5, dtype=torch.float64)
    for row in range(4):
        for column in range(5):
            product = sum(float(b[row, k]) * float(a[k, column]) for k in range(2))
            by_hand[row, column] = float(base["layer.weight"][row, column]) + 6 / 2 * product
    assert found["layer.weight"].dtype == dtype and found["layer.bias"] is base["layer.bias"]
    assert torch.equal(found["layer.weight"], by_hand.to(dtype))
    assert not torch.equal(found["layer.weight"], base["layer.weight"])


def test_scalings_are_each_modules_own() -> None:
    base = {"one.query.weight": drawn(4, 5), "two.query.weight": drawn(4, 5), "key.weight": drawn(4, 5)}
    adapter = {**factors("one.query", rank=4), **factors("two.query"), **factors("key")}
    configuration = told(use_rslora=True, rank_pattern={"^one.query": 4}, alpha_pattern={"query": 8})
    found = fold(base, adapter, configuration)
    for module, scaling in (("one.query", 8 / 4**0.5), ("two.query", 8 / 2**0.5), ("key", 6 / 2**0.5)):
        a, b = (adapter[f"{P}{module}.lora_{x}.weight"] for x in "AB")
        assert torch.allclose(found[f"{module}.weight"] - base[f"{module}.weight"], scaling * b @ a, atol=1e-5)


def test_saved_modules_take_their_places_in_the_bases_type_and_may_be_new() -> None:
    base = {"layer.weight": drawn(4, 5), "layer.bias": drawn(4, dtype=torch.bfloat16), "head.weight": drawn(2, 4)}
    adapter = {**factors(), f"{P}layer.bias": drawn(4, seed=5), f"{P}head.weight": drawn(3, 4, seed=6)}
    adapter[f"{P}head.bias"] = drawn(3, seed=7)
    found = fold(base, adapter, told(modules_to_save=["head"]))
    assert torch.equal(found["layer.bias"], drawn(4, seed=5).bfloat16())
    assert torch.equal(found["head.weight"], drawn(3, 4, seed=6)) and torch.equal(found["head.bias"], drawn(3, seed=7))
    with pytest.raises(
        DataError, match=r"'base_model.model.head.bias' \[3\]: the base has none of that name; .*head.w"
    ):
        fold(base, adapter, told())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer.lora_A.weight": (2, 6)}, r"'layer.weight': the product of its factors is \[4, 6\], the base has \[4"),
        ({"layer.lora_A.weight": (3, 5)}, r"'layer': expected factors of one rank, got A \[3, 5\] and B \[4, 2\]"),
        ({"layer.lora_A.weight": (3, 5), "layer.lora_B.weight": (4, 3)}, "r is 2, but its factors are of rank 3"),
        ({"layer.lora_B.weight": (4,)}, "expected factors of one rank"),
        ({"layer.lora_B.weight": None}, "'layer': expected factors A and B, got one of them"),
        ({"nowhere.lora_A.weight": (2, 5), "nowhere.lora_B.weight": (4, 2)}, "'nowhere.weight': .* none of that name"),
        ({"layer.lora_magnitude_vector": (4,)}, "expected a factor, or a whole tensor"),
        ({"layer.lora_embedding_A": (2, 4), "layer.lora_embedding_B": (4, 2)}, r"product of its factors is \[4, 4\]"),
        ({"layer.bias": (5,)}, r"layer.bias' \[5\]: the base has \[4\]"),
    ],
)
def test_what_finds_no_place_in_the_base_is_named(change: dict[str, tuple[int, ...] | None], message: str) -> None:
    base = {"layer.weight": drawn(4, 5), "layer.bias": drawn(4)}
    given = {**factors(), **{P + name: torch.zeros(shape) for name, shape in change.items() if shape is not None}}
    adapter = {name: tensor for name, tensor in given.items() if change.get(name.removeprefix(P), ()) is not None}
    with pytest.raises(DataError, match=message):
        fold(base, adapter, told())


def test_hints_say_what_to_look_at() -> None:
    with pytest.raises(DataError) as caught:
        fold({"bert.layer.weight": drawn(4, 5)}, factors(), told())
    assert str(caught.value.hint).startswith("the base calls 'layer.weight' 'bert.layer.weight'")
    with pytest.raises(DataError) as caught:
        fold({"other": drawn(4, 5)}, factors(), told())
    assert caught.value.hint == "name the version that it was trained from: --base REV"
    with pytest.raises(DataError, match="expected floating point numbers in the base, got int8"):
        fold({"layer.weight": drawn(4, 5, dtype=torch.int8)}, factors(), told())
    with pytest.raises(UsageError, match="'layer_replication' is set"):
        fold({"layer.weight": drawn(4, 5)}, factors(), told(layer_replication=[[0, 2]]))


class Mixed(nn.Module):
    """One layer of every kind that PEFT gives factors to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 6)
        self.conv = nn.Conv2d(3, 4, (3, 2))
        self.linear = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)


@pytest.mark.parametrize("more", [{}, {"use_rslora": True, "alpha_pattern": {"conv": 3}, "rank_pattern": {"table": 1}}])
def test_it_is_what_peft_makes(tmp_path: Path, more: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    wanted = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["table", "conv", "linear"], modules_to_save=["head"], **more
    )
    adapted = peft.get_peft_model(Mixed(), wanted)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(adapted.named_parameters())):
            if parameter.requires_grad:
                parameter.copy_(drawn(*parameter.shape, seed=number))
    adapted.save_pretrained(tmp_path)
    configuration = read_configuration((tmp_path / "adapter_config.json").read_bytes(), "adapter_config.json")
    ours = fold(Mixed().state_dict(), load_file(tmp_path / "adapter_model.safetensors"), configuration)
    theirs = adapted.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6) for name in ours)


def test_matrices_that_are_kept_turned_are_changed_turned(tmp_path: Path) -> None:
    peft, layers = pytest.importorskip("peft"), pytest.importorskip("transformers.pytorch_utils")

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"c": layers.Conv1D(5, 4)})

    adapted = peft.get_peft_model(network(), peft.LoraConfig(r=2, target_modules=["c"], fan_in_fan_out=True))
    nn.init.normal_(adapted.base_model.model["c"].lora_B["default"].weight)
    adapted.save_pretrained(tmp_path)
    configuration = read_configuration((tmp_path / "adapter_config.json").read_bytes(), "adapter_config.json")
    ours = fold(network().state_dict(), load_file(tmp_path / "adapter_model.safetensors"), configuration)
    assert torch.allclose(ours["c.weight"], adapted.merge_and_unload().state_dict()["c.weight"], rtol=1e-5, atol=1e-6)
