"""A recipe in the registry, with what differs from data set to data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from convoy.training.recipes.recipe import Recipe

KNOWN_DATA: Final = ("digits", "mnist", "fashion-mnist", "cifar10")
"""The data sets whose images a recipe can reckon with; all others are somebody's own."""

INK: Final[Mapping[str, Any]] = MappingProxyType(
    {"normalisation.polarity": "auto", "augmentation": {"shift_px": 2.0, "rotation_deg": 12.0}}
)
"""What a recipe for photos changes on digits, which have ink and which a mirror turns into other signs."""


@dataclass(frozen=True)
class Entry:
    """A recipe, the family that it is listed in, and what the data set changes about it.

    Attributes:
        recipe: As it is for the data set that it names.
        family: The heading of ``convoy recipes`` that it stands under.
        by_data: By the data set's name, fields of the recipe (dotted where they are part of a group) with other values.
        elsewhere: Likewise for data that is not among ``KNOWN_DATA``: a folder of images, or a package's data set.
    """

    recipe: Recipe
    family: str
    by_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    elsewhere: Mapping[str, Any] = field(default_factory=dict)

    def changes_for(self, data: str) -> Mapping[str, Any]:
        """The fields that differ on ``data``, a data set's name or a folder."""
        return self.by_data.get(data, {}) if data in KNOWN_DATA else self.elsewhere
