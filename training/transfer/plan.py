"""Which layers learn in which epoch, and how fast."""

from __future__ import annotations

from convoy.training.networks.classifier import ImageClassifier
from convoy.training.recipes.recipe import Recipe


class Plan:
    """What a recipe's ``transfer`` asks for, on one classifier; without it every layer learns alike from the first epoch on."""

    def __init__(self, classifier: ImageClassifier, recipe: Recipe) -> None:
        self._classifier = classifier
        self._recipe = recipe

    def factor(self, name: str) -> float:
        """What the learning rate of a parameter is multiplied by; 0 for one that never learns.

        Args:
            name: As ``classifier.named_parameters()`` has it.
        """
        del name
        return 1.0

    def begin_epoch(self, epoch: int) -> None:
        """Put the classifier into training mode for an epoch: frozen layers take no gradients and keep their statistics.

        Args:
            epoch: From 1.
        """
        del epoch
        self._classifier.train()
