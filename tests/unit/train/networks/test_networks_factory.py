"""Networks made by a function of somebody's own: none is imported without consent, and what it makes is looked at."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modelgit.errors import DataError, DependencyMissing, ModelgitError, RecipeError, UsageError
from modelgit.train import trust
from modelgit.train.networks.network import Design, Network, head_tensors
from modelgit.train.networks.registry import build_network, check_architecture, untrained, weights_bytes

NETS = """
from pathlib import Path
from torch import nn

Path(__file__).with_suffix(".ran").touch()

class Net(nn.Module):
    def __init__(self, classes, features=6, whole=False):
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(12, 6), nn.ReLU()]
        self.featurizer = nn.Sequential(*layers) if not whole else nn.ModuleDict({"a": nn.Linear(12, 6)})
        self.head = nn.Linear(features, classes)

def small(classes): return Net(classes)
def fixed(classes): return Net(10)
def wide(classes): return Net(classes, features=7)
def headless(classes): return nn.Linear(12, classes)
def nothing(classes): return None
def fails(classes): raise ValueError("no such luck")

def besides(classes):
    net = Net(classes)
    net.scale = nn.Parameter(net.head.bias.detach().clone())
    return net

def unbiased(classes):
    net = Net(classes)
    net.head = nn.Linear(6, classes, bias=False)
    return net
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `my_nets` that can be imported, and leaves a file when it is."""
    (tmp_path / "my_nets.py").write_text(NETS)
    (tmp_path / "broken.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(trust, "TRUSTED", set())
    monkeypatch.setattr("modelgit.train.networks.factory.TRUSTED", trust.TRUSTED)
    yield tmp_path
    for name in ("my_nets", "broken"):
        sys.modules.pop(name, None)


def made(function: str, classes: int = 3) -> Network:
    trust.trust_factory(f"my_nets:{function}")
    return build_network(f"factory:my_nets:{function}", classes)


def test_nothing_is_imported_that_the_user_has_not_named(nets: Path) -> None:
    trust.trust_factory("my_nets:wide")  # another function of the same module
    asked = (check_architecture, lambda name: build_network(name, 3), lambda name: untrained(name, 0))
    for ask in asked:
        with pytest.raises(UsageError, match="made by my_nets:small, code outside modelgit") as caught:
            ask("factory:my_nets:small")
        assert caught.value.hint == "if you trust it: --trust-factory my_nets:small"
    assert "my_nets" not in sys.modules and not (nets / "my_nets.ran").exists()


@pytest.mark.parametrize(
    "name", ["my_nets", "my_nets.small", "../my_nets:small", "my_nets:small\x1b[2J", ":small", "a:b:c"]
)
def test_a_name_of_another_form_is_refused(nets: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"expected package\.module:function"):
        trust.trust_factory(name)
    with pytest.raises(RecipeError, match=r"expected factory:package\.module:function"):
        build_network(f"factory:{name}", 3)


def test_the_parts_are_stages_and_head(nets: Path) -> None:
    network = made("small")
    assert head_tensors(network) == ("head.weight", "head.bias") and network.feature_size == 6
    assert list(network.state_dict()) == ["featurizer.1.weight", "featurizer.1.bias", "head.weight", "head.bias"]
    pixels = torch.randint(0, 256, (5, 3, 2, 2), dtype=torch.uint8)
    x = network.prepare(pixels)
    assert torch.equal(x, pixels.float() / 255)
    for stage, _ in network.stages():
        x = stage(x)
    weight, bias = network.state_dict()["featurizer.1.weight"], network.state_dict()["featurizer.1.bias"]
    assert torch.equal(x, torch.relu((pixels.float() / 255).flatten(1) @ weight.T + bias))
    assert len(network.stages()) == 3
    floats = torch.randn(2, 12)
    assert torch.equal(network.prepare(floats, "arrays"), floats)


def test_untrained_weights_follow_the_seed_alone_and_have_no_head(nets: Path) -> None:
    trust.trust_factory("my_nets:small")
    one, again, other = (untrained("factory:my_nets:small", seed) for seed in (1, 1, 2))
    assert list(one) == ["featurizer.1.weight", "featurizer.1.bias"]
    assert torch.equal(one["featurizer.1.weight"], again["featurizer.1.weight"])
    assert not torch.equal(one["featurizer.1.weight"], other["featurizer.1.weight"])
    assert weights_bytes("factory:my_nets:small") == 4 * (12 * 6 + 6 + 6 * 2 + 2)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("absent", RecipeError, "my_nets has no function 'absent'"),
        ("headless", RecipeError, "of a `featurizer` and a `head`, and nothing besides, got Linear"),
        ("nothing", RecipeError, "and nothing besides, got none"),
        ("fails", RecipeError, r"my_nets:fails\(3\) raised ValueError: no such luck"),
        ("fixed", RecipeError, "expected a head of 3 outputs, one a class, got 10"),
        ("besides", RecipeError, "and nothing besides, got 'scale'"),
        ("unbiased", RecipeError, "expected a `head` that is a torch.nn.Linear with a bias, got Linear"),
    ],
)
def test_what_a_factory_must_not_make(nets: Path, function: str, error: type[ModelgitError], message: str) -> None:
    with pytest.raises(error, match=message):
        made(function)


def test_modules_that_are_not_there_or_cannot_be_imported(nets: Path) -> None:
    for name in ("my_netz:small", "my_netz.deep:small", "broken:small"):
        trust.trust_factory(name)
    for name in ("my_netz", "my_netz.deep"):
        with pytest.raises(DependencyMissing, match=f"no module '{name}' can be imported"):
            build_network(Design(f"factory:{name}:small"), 3)
    with pytest.raises(RecipeError, match="importing broken raised ModuleNotFoundError: No module named 'nowhere_at"):
        build_network("factory:broken:small", 3)


def test_an_example_is_tried_before_all_others(nets: Path) -> None:
    with pytest.raises(DataError, match=r"expected \(1, 7\) of an example of 3x2x2, got \(1, 6\)"):
        made("wide").prepare(torch.zeros(2, 3, 2, 2))
    with pytest.raises(DataError, match="cannot take an example of 3x4x4: RuntimeError: mat1 and mat2"):
        made("small").prepare(torch.zeros(2, 3, 4, 4))
    with pytest.raises(DataError, match="takes images or arrays"):
        made("small").prepare(["a text"])
