"""Do two sets of outputs say the same? The one comparison, for the gate and for live servers."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

FloatArray: TypeAlias = "npt.NDArray[np.floating[Any]]"


class Tolerance(BaseModel):
    """An element passes when ``|actual - expected| <= atol + rtol * |expected|``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    atol: float = Field(ge=0)
    rtol: float = Field(ge=0)

    def allowed(self, expected: FloatArray) -> npt.NDArray[np.float64]:
        """The largest difference that passes, element by element; NaN where ``expected`` is NaN."""
        allowed: npt.NDArray[np.float64] = self.atol + self.rtol * np.abs(expected.astype(np.float64))
        return allowed


class Agreement(BaseModel):
    """What a comparison of outputs found.

    Attributes:
        n: How many rows (images) were compared.
        n_nonfinite: Elements that are NaN or infinite on either side.
        n_outside: Elements that do not pass the tolerance (non-finite ones never do).
        max_abs_diff: The largest absolute difference among finite elements.
        max_rel_diff: The largest difference over ``|expected|`` among finite elements whose ``expected`` is not 0.
        n_top1_differs: Rows whose largest element is at another index, ties left out.
        ties: Rows whose largest element is at another index, but whose two candidates lie closer together in ``expected`` than
            the tolerance can tell apart.
        worst_row: The row of the largest difference (a non-finite one first); None where nothing was compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    n_nonfinite: int
    n_outside: int
    max_abs_diff: float
    max_rel_diff: float
    n_top1_differs: int
    ties: tuple[int, ...]
    worst_row: int | None

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it is finite, within the tolerance, and decides alike."""
        return self.n > 0 and self.n_nonfinite == 0 and self.n_outside == 0 and self.n_top1_differs == 0


def compare(expected: FloatArray, actual: FloatArray, tolerance: Tolerance) -> Agreement:
    """Compare two arrays of per-class outputs.

    Args:
        expected: The reference (PyTorch), shape (n, classes).
        actual: The thing under test, the same shape.
        tolerance: What passes.

    Returns:
        What was found; ``passed`` sums it up.

    Raises:
        ValueError: The shapes differ or are not (n, classes).
    """
    if expected.ndim != 2 or expected.shape != actual.shape:
        raise ValueError(f"expected two arrays of shape (n, classes), found {expected.shape} and {actual.shape}")
    found = compare_values(expected, actual, tolerance)
    if found.n == 0:
        return found
    finite = np.isfinite(expected) & np.isfinite(actual)
    reference = np.where(finite, expected, 0).astype(np.float64)
    allowed = tolerance.allowed(reference)
    rows = np.arange(found.n)
    first, second = expected.argmax(axis=1), actual.argmax(axis=1)
    differs = first != second
    gap = np.abs(reference[rows, first] - reference[rows, second])
    tied = differs & finite.all(axis=1) & (gap <= allowed[rows, first] + allowed[rows, second])
    return found.model_copy(
        update={"n_top1_differs": int((differs & ~tied).sum()), "ties": tuple(int(row) for row in np.flatnonzero(tied))}
    )


def compare_values(expected: npt.NDArray[Any], actual: npt.NDArray[Any], tolerance: Tolerance) -> Agreement:
    """Compare two arrays element by element, whatever they mean: whole numbers too, which a tolerance of 0 holds to be equal.

    Args:
        expected: The reference (PyTorch), a row for each image and any further axes.
        actual: The thing under test, the same shape.
        tolerance: What passes.

    Returns:
        What was found; it tells of no decisions (``n_top1_differs`` is 0, and there are no ``ties``).

    Raises:
        ValueError: The shapes differ, or there are no rows to tell apart.
    """
    if expected.ndim < 1 or expected.shape != actual.shape:
        raise ValueError(f"expected two arrays of one shape, found {expected.shape} and {actual.shape}")
    if expected.size == 0:
        return Agreement(
            n=0, n_nonfinite=0, n_outside=0, max_abs_diff=0.0, max_rel_diff=0.0, n_top1_differs=0, ties=(), worst_row=None
        )
    n = len(expected)
    finite = np.isfinite(expected) & np.isfinite(actual)
    reference = np.where(finite, expected, 0).astype(np.float64)
    diff = np.abs(np.where(finite, actual, 0).astype(np.float64) - reference)
    inside = finite & (diff <= tolerance.allowed(reference))  # "inside" is stated, "outside" follows: no NaN slips through a ">"
    relative = np.divide(diff, np.abs(reference), out=np.zeros_like(diff), where=finite & (reference != 0))
    worst = np.where(finite, diff, np.inf).reshape(n, -1).max(axis=1)
    return Agreement(
        n=n,
        n_nonfinite=int((~finite).sum()),
        n_outside=int((~inside).sum()),
        max_abs_diff=float(diff.max()),
        max_rel_diff=float(relative.max()),
        n_top1_differs=0,
        ties=(),
        worst_row=int(worst.argmax()),
    )
