"""What is left of errors when doubtful amounts go to a person: coverage against error, and thresholds for a stated error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from convoy.contract.reading import OperatingPoint

ERRORS: Final = (0.005, 0.01, 0.02, 0.05)
"""The shares of errors among what is accepted for which pages say how much is accepted."""


class Curve(NamedTuple):
    """Coverage against error: entry i accepts the i + 1 most confident fields, but for equal confidences, which go together.

    Attributes:
        thresholds: float (n,), descending: amounts of at least this confidence are accepted.
        coverage: float (n,), the share of fields that is accepted.
        error: float (n,), the share of those that is wrong.
    """

    thresholds: npt.NDArray[np.float64]
    coverage: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]


def reject_curve(confidence: Sequence[float], right: Sequence[bool]) -> Curve:
    """The curve of a set of fields.

    Args:
        confidence: Of each answer.
        right: Whether it is the whole amount.
    """
    values, truth = np.asarray(confidence, np.float64), np.asarray(right, np.bool_)
    order = np.argsort(-values, kind="stable")
    values, wrong = values[order], ~truth[order]
    last = np.append(values[1:] != values[:-1], True) if len(values) else np.zeros(0, np.bool_)
    accepted = np.arange(1, len(values) + 1)
    return Curve(values[last], (accepted / max(len(values), 1))[last], (wrong.cumsum() / accepted)[last])


def choose_threshold(confidence: Sequence[float], right: Sequence[bool], accepted_error: float) -> OperatingPoint | None:
    """The threshold that accepts the most fields with at most this share of errors among them.

    So many must be accepted that a single wrong one would not be more than that share: a few lucky fields are no evidence.

    Returns:
        None where no threshold does, or there are no fields.
    """
    curve = reject_curve(confidence, right)
    holds = np.flatnonzero((curve.error <= accepted_error) & (curve.coverage * len(right) >= least_accepted(accepted_error)))
    if not len(holds):
        return None
    best = int(holds[-1])
    return OperatingPoint(
        threshold=float(curve.thresholds[best]), coverage=float(curve.coverage[best]), error=float(curve.error[best]), n=len(right)
    )


def shown_threshold(threshold: float) -> str:
    """A threshold as people read it; never rounded up: one above the one that was measured would accept fewer."""
    return f"{int(threshold * 1e6) / 1e6:.6f}"


def least_accepted(accepted_error: float) -> int:
    """How many fields must be accepted before one wrong among them is within a share of errors."""
    return math.ceil(1 / accepted_error - 1e-9)
