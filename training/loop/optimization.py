"""The optimizer of a recipe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from convoy.training.recipes.recipe import Recipe

FACTOR = "factor"
"""In a parameter group: what the run's learning rate is multiplied by."""


def make_optimizer(module: nn.Module, recipe: Recipe, factor: Callable[[str], float] = lambda _: 1.0) -> Optimizer:
    """The optimizer of ``recipe`` on the parameters of ``module``; weight decay leaves biases and scales alone.

    Args:
        module: Whose parameters shall learn.
        recipe: Which optimizer.
        factor: By a parameter's name, what its learning rate is multiplied by; one with 0 is left out.
    """
    decayed: dict[float, list[nn.Parameter]] = defaultdict(list)
    others: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and factor(name):
            (decayed if parameter.ndim > 1 else others)[factor(name)].append(parameter)
    groups = [{"params": some, "weight_decay": recipe.weight_decay, FACTOR: by} for by, some in decayed.items()]
    groups += [{"params": some, "weight_decay": 0.0, FACTOR: by} for by, some in others.items()]
    if recipe.optimizer == "sgd":
        return SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov and recipe.momentum > 0)
    return AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.99))


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give each group of parameters its share of the run's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[FACTOR]
