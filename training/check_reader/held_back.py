"""The fields that a run does not learn from: what its threshold, its calibration and the gate go by."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

from convoy.contract.errors import DataError
from convoy.training.check_reader.building import draw_synthetic, load_handwriting
from convoy.training.check_reader.examples import Example
from convoy.training.check_reader.fields import GAP, Fields
from convoy.training.check_reader.grammar import Grammar
from convoy.training.data import DataLocation
from convoy.training.recipes.reader import ReaderRecipe

N_HELD_BACK: Final = 1_000
"""Synthetic fields that a run without real ones is judged by, written with the test digits of its handwriting."""
_LEAST_REAL: Final = 60
_HELD_BACK_SEED: Final = 1_000_003  # added to the run's


def split_fields(fields: Fields, fraction: float) -> tuple[Fields, Fields]:
    """Fields to learn from, and a block of neighbours that is held back, with a gap between them.

    Args:
        fields: Sorted by name.
        fraction: Of those held back: the last ones.

    Raises:
        DataError: There are too few.
    """
    n_held_back = round(len(fields) * fraction)
    gap = min(GAP, len(fields) // 20)
    if len(fields) < _LEAST_REAL or n_held_back < 1:
        raise DataError(f"{fields.name}: expected {_LEAST_REAL} fields or more, some to be held back; found {len(fields)}.")
    first = len(fields) - n_held_back
    return fields[: first - gap], fields[first:]


def digest_of(fields: Fields) -> str:
    """SHA-256 of all pixels and labels."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(f"{field.name}\0{field.label}\0{field.image.shape}\0".encode())
        digest.update(np.ascontiguousarray(field.image).tobytes())
    return digest.hexdigest()


def synthetic_held_back(recipe: ReaderRecipe, grammar: Grammar, seed: int, location: DataLocation | None) -> list[Example]:
    """The fields that judge a run without real ones: other amounts, other writers."""
    handwriting = load_handwriting(recipe.handwriting, "test", location)
    return draw_synthetic(recipe, handwriting, N_HELD_BACK, seed + _HELD_BACK_SEED, grammar=grammar)
