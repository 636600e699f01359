"""How weights follow gradients: optimisers and learning rates by name."""

import inspect
import math
from collections.abc import Sequence

import torch
from torch import nn

from modelgit.train.config import FineTune

MOMENTUM = 0.9


class Eager(torch.optim.Optimizer):
    """An optimiser that `torch.compile` never sees, so that it need not be guarded against it.

    PyTorch's guards load the compiler when they are first called: 2 CPU seconds at the start of every training, also of
    one that compiles nothing. Here the methods are as they were before they were wrapped.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(Eager, torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Adam(Eager, torch.optim.Adam):
    """Adam (Kingma and Ba 2015), weight decay as an L2 penalty."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class SGD(Eager, torch.optim.SGD):
    """Stochastic gradient descent with momentum."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class LBFGS(Eager, torch.optim.LBFGS):
    """Limited-memory BFGS, for smooth convex problems in full batches."""


def optimiser_for(parameters: Sequence[nn.Parameter], config: FineTune) -> torch.optim.Optimizer:
    """Returns a fresh optimiser: adamw (decoupled weight decay), adam (L2, as DomainBed's), sgd (momentum 0.9)."""
    if config.optimiser == "sgd":
        fused = not any(hasattr(parameter, "full_tensor") for parameter in parameters)  # not written for split ones
        return SGD(parameters, config.lr, momentum=MOMENTUM, weight_decay=config.weight_decay, fused=fused)
    shape = AdamW if config.optimiser == "adamw" else Adam
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
