"""Objectives against their formulas, worked out by hand or term by term."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modelgit.train.choices import ERM, Coral, GroupDro, Irm, Mixup, Objective, Vrex
from modelgit.train.fitting.objectives import LOSSES, Domain, Step, begins_afresh, loss_of

W = torch.tensor([[0.5, -1.0], [0.25, 2.0], [-1.0, 0.125]])  # (classes, d)


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """Features are the inputs, scores a linear map of them."""
    return x, x @ W.T


def domains(count: int = 3, size: int = 6) -> list[Domain]:
    draws = torch.Generator().manual_seed(4)
    return [
        (torch.randn(size, 2, generator=draws) + i, torch.randint(3, (size,), generator=draws)) for i in range(count)
    ]


def step(number: int = 1, count: int = 3, carried: dict[str, Tensor] | None = None) -> Step:
    return step_on(domains(count), number, carried=carried)


def step_on(parts: list[Domain], number: int = 1, seed: int = 7, carried: dict[str, Tensor] | None = None) -> Step:
    x, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return Step(number, seed, x, labels, len(parts[0][1]), {} if carried is None else carried)


def entropies(count: int = 3) -> list[float]:
    return [float(functional.cross_entropy(x @ W.T, y)) for x, y in domains(count)]


def test_every_choice_has_its_arithmetic() -> None:
    choices: list[Objective] = [ERM, Coral(), Mixup(), GroupDro(), Irm(), Vrex()]
    assert sorted(c.name for c in choices) == sorted(LOSSES)
    for choice in choices:
        assert bool(loss_of(choice, step(), forward).isfinite())
        assert bool(loss_of(choice, step(count=1), forward).isfinite())


def test_the_domains_of_a_batch_are_its_parts_of_one_size() -> None:
    for (x, labels), (own, known) in zip(step().domains, domains(), strict=True):
        assert torch.equal(x, own) and torch.equal(labels, known)


def test_erm_is_the_mean_over_all_examples() -> None:
    assert float(loss_of(ERM, step(), forward)) == pytest.approx(sum(entropies()) / 3, rel=1e-6)


def test_coral_adds_the_distances_of_means_and_covariances() -> None:
    moments = [(x.mean(0), torch.cov(x.T)) for x, _ in domains()]
    pairs = list(itertools.combinations(moments, 2))
    apart = sum(float(((a - b) ** 2).mean() + ((c - d) ** 2).mean()) for (a, c), (b, d) in pairs) / len(pairs)
    assert float(loss_of(Coral(0.5), step(), forward)) == pytest.approx(sum(entropies()) / 3 + 0.5 * apart, rel=1e-5)
    assert float(loss_of(Coral(0.0), step(), forward)) == pytest.approx(float(loss_of(ERM, step(), forward)), rel=1e-6)


def test_groupdro_weighs_domains_by_the_exponential_of_their_losses() -> None:
    carried: dict[str, Tensor] = {}
    losses, eta = entropies(), 0.7
    weights = [1.0, 1.0, 1.0]
    for number in (1, 2):
        found = float(loss_of(GroupDro(eta), step(number, carried=carried), forward))
        grown = [w * math.exp(eta * loss) for w, loss in zip(weights, losses, strict=True)]
        weights = [w / sum(grown) for w in grown]
        assert found == pytest.approx(sum(w * loss for w, loss in zip(weights, losses, strict=True)), rel=1e-5)
    assert carried["groupdro"].tolist() == pytest.approx(weights, rel=1e-5)


def test_vrex_adds_the_variance_of_the_losses_annealed() -> None:
    losses = entropies()
    mean = sum(losses) / 3
    variance = sum((loss - mean) ** 2 for loss in losses) / 3
    choice = Vrex(penalty=10.0, anneal=5)
    assert float(loss_of(choice, step(5), forward)) == pytest.approx(mean + variance, rel=1e-5)
    assert float(loss_of(choice, step(6), forward)) == pytest.approx(mean + 10 * variance, rel=1e-5)
    assert [begins_afresh(choice, n) for n in (1, 5, 6, 7)] == [False, False, True, False]
    assert not begins_afresh(Vrex(anneal=0), 1) and not begins_afresh(ERM, 6)


def test_irm_penalises_the_gradient_of_a_factor_on_the_scores() -> None:
    penalties = []
    for x, y in domains():
        scores = x @ W.T
        gradients = []
        for half in (0, 1):
            s, t = scores[half::2], y[half::2]
            expected = s.softmax(1).mul(s).sum(1) - s.gather(1, t[:, None])[:, 0]  # d CE(f * s) / df at 1
            gradients.append(float(expected.mean()))
        penalties.append(gradients[0] * gradients[1])
    wanted = sum(entropies()) / 3 + 100 * sum(penalties) / 3
    assert loss_of(Irm(anneal=0), step(), forward).item() == pytest.approx(wanted, rel=1e-4)


def test_gradients_of_the_irm_penalty_reach_the_weights() -> None:
    weight = W.clone().requires_grad_()
    given = step_on(domains())
    loss_of(Irm(anneal=0), given, lambda x: (x, x @ weight.T)).backward()  # type: ignore[no-untyped-call]
    plain = W.clone().requires_grad_()
    loss_of(ERM, given, lambda x: (x, x @ plain.T)).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and plain.grad is not None
    assert not torch.allclose(weight.grad, plain.grad)


def test_mixup_of_equal_domains_is_erm_and_its_draws_follow_the_seed() -> None:
    x, y = domains(1)[0]
    same = step_on([(x, y), (x, y), (x, y)], 3)
    assert float(loss_of(Mixup(), same, forward)) == pytest.approx(entropies(1)[0], rel=1e-5)
    first, again, other = (float(loss_of(Mixup(), step_on(domains(), 3, seed), forward)) for seed in (7, 7, 8))
    assert first == again != other


def test_a_mixture_lies_between_its_parts() -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return forward(x)

    zeros, ones = torch.zeros(4, 2), torch.ones(4, 2)
    labels = torch.zeros(4, dtype=torch.long)
    loss_of(Mixup(alpha=0.5), step_on([(zeros, labels), (ones, labels)], seed=3), watch)
    shares = seen[0].view(2, 4, 2)
    assert all(bool((pair == pair[0, 0]).all()) and 0 <= float(pair[0, 0]) <= 1 for pair in shares)
