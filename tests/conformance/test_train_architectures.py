"""Every architecture keeps the same promises: stages, a linear head, frozen statistics, loadable state."""

import pytest
import torch

from modelgit.train.features import frozen_modules, run_stages
from modelgit.train.fitting.passes import apply_head, freeze
from modelgit.train.models import ARCHITECTURES, Network, build_network, head_tensors

PIXELS = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(params=sorted(ARCHITECTURES))
def network(request: pytest.FixtureRequest) -> Network:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return build_network(request.param, 5).eval()


def test_stages_end_in_feature_vectors_and_the_head_in_classes(network: Network) -> None:
    with torch.no_grad():
        z = run_stages(network, network.prepare(PIXELS), 0, None)
        assert z.shape == (4, network.feature_size)
        assert apply_head(network, z).shape == (4, 5)


def test_a_prefix_and_the_rest_give_the_whole(network: Network) -> None:
    with torch.no_grad():
        whole = run_stages(network, network.prepare(PIXELS), 0, None)
        for cut in range(len(network.stages()) + 1):
            prefix = run_stages(network, network.prepare(PIXELS), 0, cut)
            assert torch.allclose(run_stages(network, prefix, cut, None), whole, atol=1e-5)


def test_stages_hold_every_parameter_but_the_heads(network: Network) -> None:
    staged = {id(p) for module in frozen_modules(network, len(network.stages())) for p in module.parameters()}
    others = {name for name, p in network.named_parameters() if id(p) not in staged}
    assert others == set(head_tensors(network))


def test_freezing_leaves_gradients_to_the_rest(network: Network) -> None:
    freeze(network, 1)
    first = {id(p) for module in frozen_modules(network, 1) for p in module.parameters()}
    assert first and all(p.requires_grad == (id(p) not in first) for p in network.parameters())
    assert not any(module.training for module in network.modules())
    apply_head(network, run_stages(network, network.prepare(PIXELS), 0, None)).sum().backward()  # type: ignore[no-untyped-call]
    assert all((p.grad is not None) == (id(p) not in first) for p in network.parameters())


def test_running_statistics_do_not_move(network: Network) -> None:
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    freeze(network, 0)
    run_stages(network, network.prepare(PIXELS), 0, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())


def test_pictures_do_not_influence_each_other(network: Network) -> None:
    with torch.no_grad():
        together = run_stages(network, network.prepare(PIXELS), 0, None)
        alone = run_stages(network, network.prepare(PIXELS[2:3]), 0, None)
    assert torch.allclose(together[2:3], alone, atol=1e-5)
