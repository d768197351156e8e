"""Recipes by name: those that come with Convoy, and those that installed packages add."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from convoy.contract.errors import UsageError
from convoy.training import plugins
from convoy.training.recipes import cifar, digits, photos, speed, transfer
from convoy.training.recipes.entry import Entry
from convoy.training.recipes.overrides import merge, override
from convoy.training.recipes.reader import READER_RECIPES
from convoy.training.recipes.recipe import Recipe

GROUP: Final = "convoy.recipes"
"""The group of entry points in which a package adds recipes: by name, a ``Recipe`` or an ``Entry`` each."""

ADDED_FAMILY: Final = "Added by packages"

_ENTRIES: Final[Mapping[str, Entry]] = MappingProxyType(
    {entry.recipe.name: entry for entry in (*digits.ENTRIES, *speed.ENTRIES, *photos.ENTRIES, *cifar.ENTRIES, *transfer.ENTRIES)}
)


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes, Convoy's first; what packages add is not imported."""
    return (*_ENTRIES, *(name for name in plugins.names(GROUP) if name not in _ENTRIES))


def recipe_families() -> Mapping[str, tuple[str, ...]]:
    """The same names under the headings that ``convoy recipes`` lists them under; what packages add stands under one."""
    families: dict[str, tuple[str, ...]] = {}
    for name in recipe_names():
        family = _ENTRIES[name].family if name in _ENTRIES else ADDED_FAMILY
        families[family] = (*families.get(family, ()), name)
    return MappingProxyType(families)


def get_recipe(name: str, *, data: str | None = None, assignments: Iterable[str] = ()) -> Recipe:
    """The recipe ``name``, resolved for a data set, with fields changed.

    Args:
        name: One of ``recipe_names()``.
        data: The data set's name, or a folder of images; None takes the recipe's own.
        assignments: ``key=value`` each, as ``--set`` takes them; they win over what the data set changes.

    Raises:
        UsageError: There is no such recipe or field, or a value does not fit.
        MissingDependencyError: The package that adds it cannot be loaded.
    """
    entry = _find(name)
    chosen = data or entry.recipe.data
    recipe = merge(entry.recipe, {"data": chosen, **entry.changes_for(chosen)})
    return override(recipe, assignments)


def _find(name: str) -> Entry:
    if name in _ENTRIES:
        return _ENTRIES[name]

    def fits(added: Any) -> bool:
        recipe = added.recipe if isinstance(added, Entry) else added
        return isinstance(recipe, Recipe) and recipe.name == name

    added = plugins.find(GROUP, name, what=f"a Recipe or an Entry named {name!r}", fits=fits)
    if added is None and name in READER_RECIPES:
        raise UsageError(
            f"recipe {name!r} is for a reader of amounts: `convoy train {name}` trains it and `convoy recipes {name}` shows it; "
            "expected a classifier's here."
        )
    if added is None:
        names = (*recipe_names(), *READER_RECIPES)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}."
        raise UsageError(f"there is no recipe {name!r}: {hint} `convoy recipes` lists them.")
    return added if isinstance(added, Entry) else Entry(added, ADDED_FAMILY)
