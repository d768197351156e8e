"""Mirrors that turn one sign into another."""

from __future__ import annotations

from collections.abc import Sequence

from convoy.training.recipes.recipe import Augmentation


def flip_warning(amounts: Augmentation, labels: Sequence[str]) -> str | None:
    """What to say to someone who mirrors characters; None where nothing is to be said.

    Args:
        amounts: The recipe's augmentation.
        labels: Names of the classes; those of one letter or digit each name characters.
    """
    if amounts.flip_probability == 0 or not all(len(label) == 1 and label.isalnum() for label in labels):
        return None
    return (
        f"flip_probability is {amounts.flip_probability:g} and the classes are characters ({', '.join(labels[:10])}): a mirrored "
        "2 or 7 is no digit, and the network learns it as one. Set flip_probability=0 unless this is what you want to see."
    )
