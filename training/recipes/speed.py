"""Recipes that go for speed and for the last tenth of a percent."""

from __future__ import annotations

from typing import Final

from convoy.training.recipes.entry import Entry

ENTRIES: Final[tuple[Entry, ...]] = ()
