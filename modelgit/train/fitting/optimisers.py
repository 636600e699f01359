"""How weights follow gradients: optimisers and learning rates by name."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from modelgit.train.config import FineTune

MOMENTUM = 0.9


def optimiser_for(parameters: Sequence[nn.Parameter], config: FineTune) -> torch.optim.Optimizer:
    """Returns a fresh optimiser: adamw (decoupled weight decay), adam (L2, as DomainBed's), sgd (momentum 0.9)."""
    if config.optimiser == "sgd":
        fused = not any(hasattr(parameter, "full_tensor") for parameter in parameters)  # not written for split ones
        return torch.optim.SGD(parameters, config.lr, momentum=MOMENTUM, weight_decay=config.weight_decay, fused=fused)
    shape = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return shape(parameters, config.lr, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: FineTune, step: int) -> float:
    """Returns the learning rate of a step, counted from 1: a linear warm-up, then the schedule, towards 0."""
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps + 1)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return config.lr * (1 - done)
    return config.lr
