"""The path of the learning rate."""

from __future__ import annotations

import math

from convoy.training.recipes.recipe import Recipe


def learning_rate_at(step: int, n_steps: int, recipe: Recipe, *, n_falls: int = 0) -> float:
    """The learning rate of a step.

    ``one-cycle`` rises from 1/25 of the peak along half a cosine over ``warmup_fraction`` of the steps and falls to 0 along
    another (Smith and Topin 2017, Super-Convergence); ``cosine`` falls from the peak at once (Loshchilov and Hutter 2016, SGDR,
    one period); ``step`` is multiplied by ``schedule_factor`` every ``schedule_epochs`` epochs, ``plateau`` at each of its falls.

    Args:
        step: From 0.
        n_steps: All steps of the run.
        recipe: Where peak and path come from.
        n_falls: How often ``plateau`` has fallen so far.
    """
    peak, start = recipe.learning_rate, recipe.learning_rate / 25
    done = step / n_steps
    if recipe.schedule == "constant":
        return peak
    if recipe.schedule == "step":
        epochs_done = step * recipe.epochs // n_steps
        return peak * recipe.schedule_factor ** (epochs_done // recipe.schedule_epochs)
    if recipe.schedule == "plateau":
        return peak * recipe.schedule_factor**n_falls
    if recipe.schedule == "cosine":
        return peak * _fall(done)
    if done < recipe.warmup_fraction:
        return peak - (peak - start) * _fall(done / recipe.warmup_fraction)
    return peak * _fall((done - recipe.warmup_fraction) / (1 - recipe.warmup_fraction))


def _fall(x: float) -> float:
    """From 1 at 0 to 0 at 1, along half a cosine."""
    return (1 + math.cos(math.pi * x)) / 2


class Plateau:
    """Counts the falls of the schedule ``plateau``: one whenever the validation loss has not fallen for so many epochs.

    Attributes:
        n_falls: How many so far.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self.n_falls = 0
        self._lowest = math.inf
        self._waited = 0

    def end_epoch(self, validation_loss: float) -> None:
        """Take note of an epoch's validation loss."""
        if validation_loss < self._lowest:
            self._lowest, self._waited = validation_loss, 0
            return
        self._waited += 1
        if self._waited == self._epochs:
            self.n_falls, self._waited = self.n_falls + 1, 0

    def state_dict(self) -> dict[str, float]:
        """What ``load_state_dict`` goes on from."""
        return {"n_falls": self.n_falls, "lowest": self._lowest, "waited": self._waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from where another was."""
        self.n_falls, self._lowest, self._waited = int(state["n_falls"]), state["lowest"], int(state["waited"])
