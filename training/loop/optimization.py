"""The optimizer of a recipe and the path of its learning rate."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from convoy.training.recipes.recipe import Recipe


def make_optimizer(module: nn.Module, recipe: Recipe) -> Optimizer:
    """The optimizer of ``recipe`` on the parameters of ``module``; weight decay leaves biases and scales alone."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.99))


def learning_rate_at(step: int, n_steps: int, recipe: Recipe) -> float:
    """The learning rate of a step.

    ``one-cycle`` rises from 1/25 of the peak along half a cosine over ``warmup_fraction`` of the steps and falls to 0 along
    another (Smith and Topin 2017, Super-Convergence); ``cosine`` falls from the peak at once (Loshchilov and Hutter 2016, SGDR,
    one period).

    Args:
        step: From 0.
        n_steps: All steps of the run.
        recipe: Where peak and path come from.
    """
    peak, start = recipe.learning_rate, recipe.learning_rate / 25
    done = step / n_steps
    if recipe.schedule == "constant":
        return peak
    if recipe.schedule == "cosine":
        return peak * _fall(done)
    if done < recipe.warmup_fraction:
        return peak - (peak - start) * _fall(done / recipe.warmup_fraction)
    return peak * _fall((done - recipe.warmup_fraction) / (1 - recipe.warmup_fraction))


def _fall(x: float) -> float:
    """From 1 at 0 to 0 at 1, along half a cosine."""
    return (1 + math.cos(math.pi * x)) / 2
