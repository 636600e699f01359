"""How long a training step and the features of an image take, by the number of frozen stages.

    python benchmarks/train_step.py [STAGES,STAGES,...] [STEPS]

Random pictures and weights: speed does not depend on them. One thread; times are CPU time of this process, the median
of all steps, so that other work on the machine disturbs them little (a neighbour on the same core still does).
"""

import statistics
import sys
import time

import numpy as np
import torch

from modelgit.train.config import FineTune
from modelgit.train.feature_cache import embedded
from modelgit.train.features import Features, Place
from modelgit.train.fitting.loop import Task, start, take_step
from modelgit.train.networks.network import Network
from modelgit.train.networks.registry import build_network

IMAGES = 64
SIZE = 64
CPU = torch.device("cpu")


def cpu_ms(start: float) -> float:
    """Return CPU milliseconds since `start`."""
    return 1000 * (time.process_time() - start)


def feature_ms(network: Network, stages: int) -> tuple[Features, float]:
    """Return features of random images, and the best time of an image in three rounds."""
    pixels = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(3):
        start = time.process_time()
        clean = embedded(network, pixels, Place(stages, CPU, None, lambda event: None))
        times.append(cpu_ms(start) / IMAGES)
    rows = {i: i for i in range(IMAGES)}
    return Features(clean, clean.half().unsqueeze(0), rows, rows), min(times)


def step_times(network: Network, features: Features, stages: int, steps: int) -> list[float]:
    """Return the time of each step, batches of 33 from three domains, after three steps of warm-up."""
    train = {name: np.arange(IMAGES) for name in ("a", "b", "c")}
    config = FineTune(steps=steps + 3, lr=1e-5, frozen_stages=stages)
    run = start(network, Task("benchmark", features, torch.arange(IMAGES) % 10, train), config)
    times = []
    for _ in range(config.steps):
        began = time.process_time()
        take_step(run)
        times.append(cpu_ms(began))
    return times[3:]


def main() -> None:
    """Print a row for each number of frozen stages."""
    stages = [int(n) for n in sys.argv[1].split(",")] if len(sys.argv) > 1 else [0, 3, 6, 9, 12]
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    torch.set_num_threads(1)
    print("frozen stages  trained parameters  step ms (least)  feature ms/image  kB/view")
    for count in stages:
        torch.manual_seed(0)
        network = build_network("efficientnet-lite0", 10).eval()
        features, image_ms = feature_ms(network, count)
        times = step_times(network, features, count, steps)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        size = features.views[0, 0].numel() * 2 / 1000
        step = f"{statistics.median(times):7.1f} ({min(times):5.1f})"
        print(f"{count:13d}  {trained:18,d}  {step:>15}  {image_ms:16.2f}  {size:7.1f}")


if __name__ == "__main__":
    main()
