"""Means of the weights over the steps or epochs of a run, which are validated and kept in their place."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convoy.training.networks.classifier import ImageClassifier
from convoy.training.recipes.recipe import Recipe


class Average:
    """A second classifier that holds a mean of the first one's weights.

    ``ema``: after each step ``mean += (1 - d) (weights - mean)``; d is ``averaging_decay``, in the first steps less,
    (1 + step) / (10 + step), so that the random weights of the start are soon forgotten. Running statistics of batch norms
    go along.

    ``swa``: from the epoch on at which ``averaging_fraction`` of all epochs are left, the plain mean of the weights that the
    epochs end with (Izmailov and others 2018, Averaging Weights Leads to Wider Optima, section 3). Statistics of batch norms
    belong to none of these weights' mean and are measured anew.
    """

    def __init__(self, classifier: ImageClassifier, recipe: Recipe) -> None:
        self._source = classifier
        self._recipe = recipe
        self._first_epoch = recipe.epochs - math.ceil(recipe.epochs * recipe.averaging_fraction) + 1
        self._n_averaged = 0
        self._mean = None if recipe.averaging == "none" else copy.deepcopy(classifier).requires_grad_(False)

    @torch.no_grad()
    def end_step(self, step: int) -> None:
        """A step is done.

        Args:
            step: From 0.
        """
        if self._mean is not None and self._recipe.averaging == "ema":
            self._move(min(self._recipe.averaging_decay, (1 + step) / (10 + step)), running_statistics=True)

    @torch.no_grad()
    def end_epoch(self, epoch: int, batches: Iterable[Tensor]) -> ImageClassifier:
        """An epoch is done.

        Args:
            epoch: From 1.
            batches: Training images, uint8 (N, H, W, C) each: where ``swa`` measures the statistics of batch norms.

        Returns:
            What is to be validated now: the classifier with the averaged weights, or the one in training where there are none.
        """
        if self._mean is None or (self._recipe.averaging == "swa" and epoch < self._first_epoch):
            return self._source
        if self._recipe.averaging == "swa":
            self._move(self._n_averaged / (self._n_averaged + 1), running_statistics=False)
            self._n_averaged += 1
            frozen = {name for name, module in self._source.named_modules() if not module.training}
            measure_batch_norms(self._mean, batches, frozen=frozen)
        return self._mean

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from."""
        return {"n_averaged": self._n_averaged, "mean": None if self._mean is None else self._mean.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another was."""
        self._n_averaged = state["n_averaged"]
        if self._mean is not None:
            self._mean.load_state_dict(state["mean"])

    def _move(self, decay: float, *, running_statistics: bool) -> None:
        assert self._mean is not None
        means: list[Tensor] = list(self._mean.parameters())
        weights: list[Tensor] = list(self._source.parameters())
        if running_statistics:
            for mean, buffer in zip(self._mean.buffers(), self._source.buffers(), strict=True):
                if buffer.is_floating_point():
                    means.append(mean)
                    weights.append(buffer)
        torch._foreach_lerp_(means, weights, 1 - decay)


@torch.no_grad()
def measure_batch_norms(classifier: nn.Module, batches: Iterable[Tensor], *, frozen: AbstractSet[str] = frozenset()) -> None:
    """Give each batch norm the mean of its statistics over ``batches``, in place of what it has; nothing else changes.

    Args:
        classifier: Its mode is as before afterwards.
        batches: Images, uint8 (N, H, W, C) each.
        frozen: Names of modules that keep theirs.
    """
    norms = [
        module
        for name, module in classifier.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and name not in frozen
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    modes = {module: module.training for module in classifier.modules()}
    classifier.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
        norm.train()
    for images in batches:
        classifier(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
