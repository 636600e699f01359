"""Statistics measured anew after a merge."""

from typing import cast

import torch
from test_align import Called, perceptron
from torch import Tensor, nn
from torch.nn import functional

from modelgit.merge.align.graph import derive
from modelgit.merge.align.repair import reestimate, restore, watch
from modelgit.train.networks.registry import build_network


def test_statistics_are_those_of_the_data() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    batches = [torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    found = reestimate(module, module, batches)
    with torch.no_grad():
        outputs = [module[0](batch).transpose(0, 1).flatten(1).double() for batch in batches]
    mean = torch.stack([o.mean(1) for o in outputs]).mean(0)
    variance = torch.stack([o.var(1) for o in outputs]).mean(0)
    assert torch.allclose(found["1.running_mean"].double(), mean, atol=1e-6)
    assert torch.allclose(found["1.running_var"].double(), variance, atol=1e-6)
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d) and (norm.momentum, norm.training) == (0.1, False)


def test_fused_norms_get_the_statistics_of_unfused_ones() -> None:
    built = build_network("cnn", 3)
    x = built.prepare(torch.randint(0, 256, (16, 3, 16, 16), generator=torch.Generator().manual_seed(0)))

    def run(x: Tensor) -> Tensor:
        for stage, _ in built.stages():
            x = stage(x)
        return x

    found = reestimate(cast(nn.Module, built), run, [x])
    with torch.no_grad():
        first = built.get_submodule("convolutions.0")
        assert isinstance(first, nn.Conv2d)
        outputs = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), first.weight, None, 2)
        assert torch.allclose(found["norms.0.running_mean"], outputs.mean((0, 2, 3)), atol=1e-5)
        features = run(x)
    assert features.std() > 0.1


def test_hidden_layers_get_the_mean_and_spread_of_the_models_merged() -> None:
    network, x = Called(perceptron()), torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    one, two = ({n: t.float() for n, t in network.state(seed).items()} for seed in (0, 1))
    spec = derive(network, one, x)
    mean = {name: (one[name] + two[name]) / 2 for name in one}
    wanted = frozenset({"0.weight", "2.weight"})
    before = [watch(network, state, x, wanted) for state in (one, two, mean)]
    repaired = {**mean, **restore(network, mean, [(one, 1.0), (two, 1.0)], x, spec)}
    after = watch(network, repaired, x, wanted)
    for layer in wanted:
        for part in (0, 1):
            target = (before[0][layer][part] + before[1][layer][part]) / 2
            assert torch.allclose(after[layer][part], target, atol=1e-5)
        assert not torch.allclose(before[2][layer][1], target, atol=1e-3)
    assert torch.equal(repaired["4.weight"], mean["4.weight"])
