"""Two networks from different initialisations: the barrier between them before and after lining units up, and REPAIR.

Real data: scikit-learn's handwritten digits (1,797 pictures of 8 x 8, 500 of them kept for testing). For each pair of
seeds two networks are trained apart; on the straight path between them (11 points) the barrier is the most that test
accuracy falls, or test loss rises, against what the ends promise. Needs scikit-learn (`pip install scikit-learn`).

    python benchmarks/align_barrier.py [--pairs 5] [--epochs 20] [--only NETWORK] [--out FILE.json]
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from modelgit.merge.align.activations import match_activations
from modelgit.merge.align.function import permuted_state, require_same
from modelgit.merge.align.graph import derive
from modelgit.merge.align.matching import Pair, match_weights
from modelgit.merge.align.repair import normalised, reestimate, restore

State = Mapping[str, Tensor]
POINTS = 11


def perceptron(width: int) -> nn.Module:
    """Returns three hidden layers of one width."""
    sizes = (64, width, width, width)
    hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


def convolutions(width: int) -> nn.Module:
    """Returns three convolutions with batch normalisation, the widths 1, 2 and 4 times `width`."""
    sizes = (1, width, 2 * width, 4 * width)
    blocks = [
        part
        for a, b in itertools.pairwise(sizes)
        for part in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    ]
    return nn.Sequential(
        *blocks[:3], nn.MaxPool2d(2), *blocks[3:], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP, 3 x 32": partial(perceptron, 32),
    "MLP, 3 x 512": partial(perceptron, 512),
    "CNN + BatchNorm, 8-16-32": partial(convolutions, 8),
    "CNN + BatchNorm, 32-64-128": partial(convolutions, 32),
}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns training pictures and labels, test pictures and labels, in an order drawn once for all."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x = torch.from_numpy(found.images[order]).float().unsqueeze(1) / 8 - 1
    y = torch.from_numpy(found.target[order]).long()
    return x[500:], y[500:], x[:500], y[:500]


def trained(build: Callable[[], nn.Module], seed: int, data: tuple[Tensor, Tensor], epochs: int) -> State:
    """Returns a network's weights after training with Adam: another beginning and another order for each seed."""
    torch.manual_seed(seed)
    network, (x, y) = build(), data
    optimiser = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-5)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            if len(rows) > 1:
                optimiser.zero_grad()
                functional.cross_entropy(network(x[rows]), y[rows]).backward()
                optimiser.step()
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def between(one: State, other: State, at: float) -> State:
    """Returns the point of the straight path."""
    return {n: torch.lerp(t, other[n], at) if t.is_floating_point() else t for n, t in one.items()}


class Bench:
    """A network to be measured, and the data."""

    def __init__(self, build: Callable[[], nn.Module], data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        self.module, self.data = build().eval(), data

    def __call__(self, state: State, x: Tensor) -> Tensor:
        return functional_call(self.module, dict(state), (x,))

    def score(self, state: State) -> tuple[float, float]:
        """Returns test accuracy in per cent, and test loss."""
        with torch.no_grad():
            out = self(state, self.data[2])
        right = (out.argmax(1) == self.data[3]).float().mean()
        return 100 * float(right), float(functional.cross_entropy(out, self.data[3]))

    def repaired(self, ends: Sequence[State], at: float) -> State:
        """Returns a point of the path with its activations set right on the training pictures."""
        point = dict(between(*ends, at))
        if at in (0.0, 1.0):
            return point
        if normalised(self.module):
            self.module.load_state_dict(point)
            batches = [b for b in self.data[0].split(256) if len(b) == 256]
            return {**point, **reestimate(self.module, self.module, batches)}
        spec = derive(self, ends[0], self.data[0][:2])
        return {**point, **restore(self, point, [(ends[0], 1 - at), (ends[1], at)], self.data[0], spec)}

    def barrier(self, ends: Sequence[State], repair: bool) -> tuple[float, float, float]:
        """Returns how far accuracy falls, how far loss rises, and the accuracy half-way."""
        at = [i / (POINTS - 1) for i in range(POINTS)]
        scores = [self.score(self.repaired(ends, t) if repair else between(*ends, t)) for t in at]
        ends_of = scores[0], scores[-1]
        promised = [[(1 - t) * a + t * b for a, b in zip(*ends_of, strict=True)] for t in at]
        fall = max(p[0] - s[0] for p, s in zip(promised, scores, strict=True))
        rise = max(s[1] - p[1] for p, s in zip(promised, scores, strict=True))
        return fall, rise, scores[POINTS // 2][0]

    def aligned(self, one: State, other: State, by: str) -> State:
        """Returns the other network with its units in the order of the first."""
        spec = derive(self, one, self.data[0][:2])
        if by == "activations":
            found = match_activations(self, (one, other), self.data[0].split(256), spec)
        else:
            found = match_weights(spec, Pair(*(partial(values, state) for state in (one, other))), seed=0)
        require_same(self, spec, other, found, self.data[2][:8])
        return permuted_state(spec, other, found)


def values(state: State, name: str) -> np.ndarray:
    """Returns a tensor in float64."""
    return state[name].double().numpy()


def main() -> None:
    """Train, line up, print a table row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = digits(), list[dict[str, Any]]()
    print(
        "| network | each alone, % | lined up by | repaired | half-way, % | fall of accuracy, points | rise of loss |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in [options.only] if options.only else NETWORKS:
        build = NETWORKS[name]
        bench = Bench(build, data)
        pairs = [[trained(build, 2 * i + j, data[:2], options.epochs) for j in (0, 1)] for i in range(options.pairs)]
        alone = [bench.score(state)[0] for pair in pairs for state in pair]
        for by, repair in itertools.product(("-", "weights", "activations"), (False, True)):
            row = {"network": name, "alone": alone, "by": by, "repaired": repair}
            rows.append(row | measured(bench, pairs, by, repair=repair))
            print(printed(rows[-1]), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps({"pairs": options.pairs, "epochs": options.epochs, "rows": rows}, indent=1))


def measured(bench: Bench, pairs: Sequence[Sequence[State]], by: str, *, repair: bool) -> dict[str, list[float]]:
    """Returns fall, rise and the accuracy half-way for each pair."""
    found = []
    for one, other in pairs:
        end = other if by == "-" else bench.aligned(one, other, by)
        found.append(bench.barrier((one, end), repair))
    return {key: [row[i] for row in found] for i, key in enumerate(("fall", "rise", "middle"))}


def printed(row: Mapping[str, Any]) -> str:
    """Returns a row of the table."""
    alone, fall, rise, middle = (
        told(row[key], 2 if key == "rise" else 1) for key in ("alone", "fall", "rise", "middle")
    )
    repaired = "yes" if row["repaired"] else "no"
    return f"| {row['network']} | {alone} | {row['by']} | {repaired} | {middle} | {fall} | {rise} |"


def told(numbers: Sequence[float], digits: int = 1) -> str:
    """Returns mean and standard error."""
    error = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else 0.0
    return f"{statistics.mean(numbers):.{digits}f} ± {error:.{digits}f}"


if __name__ == "__main__":
    main()
