"""Statistics of networks: Fisher information against gradients taken one by one, inputs of layers by hand."""

import pytest
import torch
from torch import Tensor, nn

from modelgit.events import Advanced, Event
from modelgit.train import statistics
from modelgit.train.fitting.passes import apply_head
from modelgit.train.networks.network import Network
from modelgit.train.networks.registry import build_network
from modelgit.train.statistics import AT_ONCE, EXACT, ROOM, diagonal_fisher, input_products, room


class Scorer(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        for stage, _ in self.network.stages():
            x = stage(x)
        return apply_head(self.network, x)


def scorer(architecture: str, classes: int, images: int) -> tuple[Scorer, Tensor]:
    torch.manual_seed(0)
    model = Scorer(build_network(architecture, classes)).eval()
    return model, model.network.prepare(torch.randint(0, 256, (images, 3, 64, 64)))


def one_by_one(model: nn.Module, x: Tensor, shares: Tensor) -> dict[str, Tensor]:
    """Returns sum_c share_c (d log p_c)^2 in the mean over images."""
    found = {name: torch.zeros(p.shape).double() for name, p in model.named_parameters()}
    for i in range(len(x)):
        told = model(x[i : i + 1]).log_softmax(1)[0]
        for label in torch.nonzero(shares[i]).flatten().tolist():
            gradients = torch.autograd.grad(told[label], list(model.parameters()), retain_graph=True)
            for name, gradient in zip(found, gradients, strict=True):
                found[name] += float(shares[i, label]) * gradient.double() ** 2 / len(x)
    return found


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Returns the largest difference, relative to the largest value of its tensor."""
    assert found.keys() == wanted.keys()
    return max(float((found[n].double() - w).abs().max() / w.abs().max()) for n, w in wanted.items())


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "efficientnet-lite0"])
def test_the_expectation_over_labels_is_exact(architecture: str) -> None:
    model, x = scorer(architecture, 3, 5)
    with torch.no_grad():
        shares = model(x).softmax(1)
    events: list[Event] = []
    found = diagonal_fisher(model, [x[:3], x[3:]], listener=events.append)
    assert apart(found, one_by_one(model, x, shares)) < 2e-5
    assert sum(event.n for event in events if isinstance(event, Advanced)) == 5
    assert all(values.dtype == torch.float32 and float(values.min()) >= 0 for values in found.values())


def test_a_large_network_is_looked_at_label_by_label(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = scorer("mlp", 3, 5)
    whole = diagonal_fisher(model, [x])
    weights = dict(model.named_parameters())
    monkeypatch.setattr(statistics, "ROOM", 2 * statistics.count_of(weights))
    assert not statistics.fits(weights, 3) and room(weights, 1) == 2
    assert apart(diagonal_fisher(model, [x]), {name: values.double() for name, values in whole.items()}) < 1e-6


def test_images_count_one_by_one_and_labels_can_be_the_datas() -> None:
    model, x = scorer("mlp", 3, AT_ONCE + 3)
    labels = torch.arange(len(x)) % 3
    found = diagonal_fisher(model, [x], [labels])
    assert apart(found, one_by_one(model, x, nn.functional.one_hot(labels, 3).float())) < 2e-5


def test_of_many_classes_one_label_is_drawn_always_the_same() -> None:
    model, x = scorer("mlp", EXACT + 1, 6)
    with torch.no_grad():
        shares = model(x).softmax(1)
    drawn = torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(0)).squeeze(1)
    found = diagonal_fisher(model, [x])
    assert apart(found, one_by_one(model, x, nn.functional.one_hot(drawn, EXACT + 1).float())) < 2e-5
    again = diagonal_fisher(model, [x])
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_the_gradients_looked_at_together_have_room() -> None:
    assert room({"w": torch.empty(10)}, 2) == AT_ONCE
    assert room({"w": torch.empty(ROOM // 8, device="meta")}, 2) == 4
    assert room({"w": torch.empty(ROOM, device="meta")}, 3) == 1


def test_inputs_of_every_linear_layer() -> None:
    model, x = scorer("mlp", 3, 7)
    found = input_products(model, [x[:4], x[4:]])
    assert sorted(found) == ["network.first.weight", "network.head.weight", "network.second.weight"]
    with torch.no_grad():
        inputs = x
        for layer in ("first", "second", "head"):
            wanted = (inputs.double().T @ inputs.double() / 7).float()
            assert torch.allclose(found[f"network.{layer}.weight"], wanted, rtol=1e-5, atol=1e-7)
            inputs = torch.relu(model.network.get_submodule(layer)(inputs))
    assert not any(module._forward_pre_hooks for module in model.modules())


class Spare(nn.Module):
    """A network with a layer that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.used(x)
        return found


def test_a_layer_that_sees_nothing_has_no_statistics() -> None:
    assert sorted(input_products(Spare(), [torch.ones(4, 3)])) == ["used.weight"]
