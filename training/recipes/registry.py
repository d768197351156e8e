"""The recipes that come with Convoy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from convoy.contract.errors import UsageError
from convoy.training.recipes.overrides import merge, override
from convoy.training.recipes.recipe import Augmentation, Normalisation, Recipe


@dataclass(frozen=True)
class _Entry:
    """A recipe, and what differs with the data set: by the data set's name, fields of the recipe."""

    recipe: Recipe
    by_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_LENET5 = _Entry(
    Recipe(
        name="lenet5",
        title="LeNet5 with ReLU and max pooling: 6 and 16 maps of 5x5, FC 120, 84",
        source="LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition, section II.B",
        network="lenet5",
        data="digits",
        normalisation=Normalisation(polarity="auto"),
        # More than MNIST's own test set asks for: digits from elsewhere are larger, smaller and fainter. Without the fading,
        # a quarter of MNIST's digits in faint ink on grey paper are misread; with it, as many as of the originals.
        augmentation=Augmentation(shift_px=2.0, rotation_deg=12.0, scale_fraction=0.25, shear_deg=8.0, contrast_fraction=0.3),
        validation_fraction=0.1,
        epochs=30,
        patience_epochs=20,
        batch_size=32,
        optimizer="adamw",
        learning_rate=3e-3,
        momentum=0.9,
        weight_decay=1e-2,
        schedule="one-cycle",
        warmup_fraction=0.2,
    ),
    # 54,000 images instead of 1,294: fewer epochs do, and larger batches are faster. SGD's weights
    # misread fewer digits cut from bank checks than AdamW's (one seed each); on a few hundred steps SGD hardly starts.
    by_data={
        "mnist": {
            "epochs": 12,
            "patience_epochs": 12,
            "batch_size": 128,
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "weight_decay": 5e-4,
        }
    },
)

_ENTRIES: Final[Mapping[str, _Entry]] = MappingProxyType({entry.recipe.name: entry for entry in (_LENET5,)})


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes."""
    return tuple(_ENTRIES)


def get_recipe(name: str, *, data: str | None = None, assignments: Iterable[str] = ()) -> Recipe:
    """The recipe ``name``, resolved for a data set, with fields changed.

    Args:
        name: One of ``recipe_names()``.
        data: The data set's name; None takes the recipe's own.
        assignments: ``key=value`` each, as ``--set`` takes them; they win over what the data set changes.

    Raises:
        UsageError: There is no such recipe or field, or a value does not fit.
    """
    if name not in _ENTRIES:
        close = difflib.get_close_matches(name, _ENTRIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_ENTRIES)}."
        raise UsageError(f"there is no recipe {name!r}: {hint} `convoy recipes` lists them.")
    entry = _ENTRIES[name]
    chosen = data or entry.recipe.data
    recipe = merge(entry.recipe, {"data": chosen, **entry.by_data.get(chosen, {})})
    return override(recipe, assignments)
