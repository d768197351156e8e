"""Recipes: everything that decides what is trained and how, as frozen, validated values. Imports no torch."""

from __future__ import annotations

from convoy.training.recipes.entry import Entry as Entry
from convoy.training.recipes.overrides import Setting as Setting
from convoy.training.recipes.overrides import override as override
from convoy.training.recipes.overrides import settings as settings
from convoy.training.recipes.recipe import Architecture as Architecture
from convoy.training.recipes.recipe import Augmentation as Augmentation
from convoy.training.recipes.recipe import Normalisation as Normalisation
from convoy.training.recipes.recipe import Recipe as Recipe
from convoy.training.recipes.recipe import Transfer as Transfer
from convoy.training.recipes.registry import get_recipe as get_recipe
from convoy.training.recipes.registry import recipe_families as recipe_families
from convoy.training.recipes.registry import recipe_names as recipe_names
