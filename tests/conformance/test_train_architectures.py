"""Every architecture keeps the same promises: stages, a linear head, frozen statistics, loadable state."""

from typing import cast

import pytest
import torch
from tiny_encoder import encoder_files, picture_files
from torch import Tensor, nn

from modelgit.errors import DataError
from modelgit.train.features import frozen_modules, run_stages
from modelgit.train.fitting.passes import apply_head, freeze
from modelgit.train.networks.network import Design, Network, head_tensors
from modelgit.train.networks.registry import ARCHITECTURES, build_network, needs_nothing

TEXTS = ["this is a very good film", "not good", "a bad day, the film is not very good", "day"]
KINDS = ["bert", "distilbert", "roberta", "albert", "gpt2"]  # the last but one has one layer, run thrice: one stage
PICTURED = ["resnet", "swin"]  # of transformers
NAMES = [*sorted(filter(needs_nothing, ARCHITECTURES)), "cnn:1", "mlp:20", "mnist-cnn:2"]


@pytest.fixture(params=[*NAMES, *KINDS, *(f"transformers, {kind}" for kind in PICTURED)])
def network(request: pytest.FixtureRequest) -> Network:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if request.param in KINDS:
        return drawn(build_network(Design("transformers", encoder_files(request.param)), 5))
    if request.param.startswith("transformers"):
        return drawn(build_network(Design("transformers", picture_files(request.param.rpartition(" ")[2])), 5))
    return build_network(request.param, 5)


def drawn(network: Network) -> Network:
    """The library leaves an encoder's weights to what is loaded."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
    return network


def inputs(network: Network) -> Tensor:
    """Four examples, as the first stage wants them."""
    if network.takes == "text":
        return network.prepare(TEXTS, "text")
    shape = tuple(min(size, 32) for size in network.example)
    draws = torch.Generator().manual_seed(0)
    return network.prepare(torch.randint(0, 256, (4, *shape), generator=draws, dtype=torch.uint8))


def test_stages_end_in_feature_vectors_and_the_head_in_classes(network: Network) -> None:
    with torch.no_grad():
        z = run_stages(network, inputs(network), 0, None)
        assert z.shape == (4, network.feature_size)
        assert apply_head(network, z).shape == (4, 5)


def test_a_prefix_and_the_rest_give_the_whole(network: Network) -> None:
    with torch.no_grad():
        whole = run_stages(network, inputs(network), 0, None)
        for cut in range(len(network.stages()) + 1):
            prefix = run_stages(network, inputs(network), 0, cut)
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
    apply_head(network, run_stages(network, inputs(network), 0, None)).sum().backward()  # type: ignore[no-untyped-call]
    assert all((p.grad is not None) == (id(p) not in first) for p in network.parameters())


def test_running_statistics_do_not_move(network: Network) -> None:
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    freeze(network, 0)
    run_stages(network, inputs(network), 0, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())


def test_batch_statistics_move_the_running_ones(network: Network) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [cast(Tensor, norm.running_mean).clone() for norm in norms]
    for norm in norms:
        norm.train()
    with torch.no_grad():
        run_stages(network, inputs(network), 0, None)
    assert not any(torch.equal(cast(Tensor, n.running_mean), old) for n, old in zip(norms, before, strict=True))


def test_examples_do_not_influence_each_other(network: Network) -> None:
    with torch.no_grad():
        together = run_stages(network, inputs(network), 0, None)
        alone = run_stages(network, inputs(network)[2:3], 0, None)
    assert torch.allclose(together[2:3], alone, atol=1e-5)


def test_what_it_cannot_take_is_refused(network: Network) -> None:
    if network.takes == "text":
        with pytest.raises(DataError, match="cannot take images or arrays"):
            network.prepare(torch.zeros(1, 3, 64, 64))
        return
    with pytest.raises(DataError, match=r"texts, and a .* takes images or arrays"):
        network.prepare(TEXTS, "text")
    with pytest.raises(DataError, match=r"expected shape|inputs, got arrays of 35 numbers"):
        network.prepare(torch.zeros(4, 5, 7), "arrays")
