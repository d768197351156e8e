"""How far two arrays lie apart, and whether one holds the other's elements in another order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

Value = npt.NDArray[Any]
_NUMBERS = "fiub"


def max_abs_diff(expected: Value, actual: Value) -> float:
    """The largest |actual - expected|; infinite where one is NaN or infinite and the other is not the same.

    Args:
        expected: Any shape; bool and whole numbers count as numbers.
        actual: The same shape.
    """
    diff = differences(expected, actual)
    return float(diff.max()) if diff.size else 0.0


def differences(expected: Value, actual: Value) -> npt.NDArray[np.float64]:
    """|actual - expected|, element by element; 0 where both are the same infinity or both NaN, infinite where only one is."""
    if expected.dtype.kind not in _NUMBERS or actual.dtype.kind not in _NUMBERS:
        return np.where(np.asarray(expected == actual), 0.0, np.inf)
    wide, narrow = expected.astype(np.float64), actual.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        diff: npt.NDArray[np.float64] = np.abs(narrow - wide)
    if not np.isfinite(diff).all():  # the infinities of an attention mask are no fault
        same = (wide == narrow) | (np.isnan(wide) & np.isnan(narrow))
        diff = np.where(same, 0.0, np.where(np.isnan(diff), np.inf, diff))
    return diff


def agree(expected: Value, actual: Value, allowed: float) -> bool:
    """Whether two arrays have one shape and lie within ``allowed`` everywhere."""
    return expected.shape == actual.shape and max_abs_diff(expected, actual) <= allowed


def find_permutation(expected: Value, actual: Value, allowed: float) -> tuple[int, ...] | None:
    """The permutation of axes, other than none, that turns ``expected`` into ``actual``; None where there is none.

    Args:
        expected: At most five axes are looked at.
        actual: Any shape.
        allowed: The largest absolute difference.
    """
    if not 2 <= expected.ndim <= 5 or expected.ndim != actual.ndim or sorted(expected.shape) != sorted(actual.shape):
        return None
    if expected.size == 0 or not _alike(expected, actual, allowed):
        return None
    identity = tuple(range(expected.ndim))
    for axes in itertools.permutations(identity):
        if axes != identity and agree(expected.transpose(axes), actual, allowed):
            return axes
    return None


def _alike(expected: Value, actual: Value, allowed: float) -> bool:
    """Whether two arrays can hold the same elements in another order, cheaply."""
    if expected.dtype.kind not in _NUMBERS or actual.dtype.kind not in _NUMBERS:
        return True
    with np.errstate(invalid="ignore", over="ignore"):
        ends = [np.array([a.min(), a.max(), a.mean()], dtype=np.float64) for a in (expected, actual)]
    slack = allowed + 1e-12 * float(np.abs(ends[0]).max())
    return bool(np.isfinite(ends[1]).all() and (np.abs(ends[0] - ends[1]) <= slack).all())
