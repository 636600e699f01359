"""Linear probing: the head that is best on features left as they are, a convex problem solved by L-BFGS."""

import torch
from torch import Tensor
from torch.nn import functional

from modelgit.train.fitting.optimisers import LBFGS

PENALTY = 3e-3
ITERATIONS = 60


def linear_probe(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Returns weight (classes, d) and bias (classes,) of the multinomial logistic regression of labels on features.

    Features (n, d) are standardised inside, with an L2 penalty of 0.003 on the standardised weights; the result is
    for features as given. Deterministic: the start is zero and the problem convex.
    """
    mean, scale = features.mean(0), features.std(0) + 1e-3
    z = (features - mean) / scale
    weight = torch.zeros(classes, features.shape[1], requires_grad=True, device=features.device)
    bias = torch.zeros(classes, requires_grad=True, device=features.device)
    solver = LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(functional.linear(z, weight, bias), labels) + PENALTY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        plain = weight / scale
        return plain, bias - plain @ mean
