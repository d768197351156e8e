"""How far apart two float32 computations of one network may lie: the rules, and nothing tuned by hand to a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from convoy.contract.agreement import FloatArray, Tolerance

_EPS: Final = float(np.finfo(np.float32).eps)

OWN_ERROR_FACTOR: Final = 16
"""How many times the source's own largest float32 error another implementation's answers may lie away from the source's."""
FLOOR_EPS: Final = 16
"""The least tolerance, in units of float32's epsilon times the largest expected value: what the last few operations cost."""
UNKNOWN_EPS: Final = 1024
"""The same where there is no float64 truth to derive a tolerance from: a hundred layers, each with an error of its own."""
_LEAST_POSTERIOR: Final = 1e-6
TRUTH_FACTOR: Final = 8
"""How many times further from the float64 truth than the source the file may lie, in the mean."""


@dataclass(frozen=True)
class Bound:
    """What one output is held to.

    Attributes:
        tolerance: Element by element, against the source's float32 answers.
        own_max_error: The source's largest float32 distance from the float64 truth; None without a truth.
        own_rms_error: The root mean square of that distance; None without a truth.
        rms_limit: The largest root mean square distance of the file from the truth that passes; None without a truth.
    """

    tolerance: Tolerance
    own_max_error: float | None = None
    own_rms_error: float | None = None
    rms_limit: float | None = None


def derive_bound(expected: FloatArray, truth: FloatArray | None) -> Bound:
    """The bound of one output, from how far the source's float32 lies from its own float64.

    Two float32 implementations of one network sum in different orders; each lies about as far from the truth as the other. So

    - element by element: ``atol = max(16 * max |float32 - float64|, 16 * eps * max |float64|)`` and ``rtol = 16 * eps``;
    - over all elements: the root mean square of the file's distance from float64 is at most 8 times that of the source's float32,
      or 8 * eps times the root mean square of float64 where that is more,

    with eps = 2^-23. Without a truth: ``atol = 1024 * eps * max |float32|``.

    Args:
        expected: The source's float32 answers, shape (n, K).
        truth: Its float64 answers for the same images, the same shape; None where there are none.
    """
    rtol = FLOOR_EPS * _EPS
    if truth is None:
        return Bound(Tolerance(atol=_finite(UNKNOWN_EPS * _EPS * _largest(expected)), rtol=rtol))
    own = np.abs(expected.astype(np.float64) - truth)
    own_max, own_rms = float(own.max()), rms(own)
    atol = max(OWN_ERROR_FACTOR * own_max, FLOOR_EPS * _EPS * _largest(truth))
    return Bound(
        Tolerance(atol=_finite(atol), rtol=rtol),
        _finite(own_max),
        _finite(own_rms),
        _finite(TRUTH_FACTOR * max(own_rms, _EPS * rms(truth))),
    )


def follow_logits(probabilities: Bound, logits: Bound, largest: float, temperature: float = 1.0) -> Bound:
    """The bound of the probabilities, no narrower than what the logits' tolerance lets them move.

    Where every logit of an image moves by t at most, each of its probabilities moves by at most ``tanh(t / (2 T))``, T being the
    temperature: a softmax can move by that much with nothing wrong but what passed already. For a trained network that is about
    what its own error gives; it matters where one image's logits are so large that rounding decides between classes.

    Args:
        probabilities: As ``derive_bound`` gave it.
        logits: The same.
        largest: The largest absolute value among the expected logits.
        temperature: What the logits are divided by before the softmax.
    """
    moved = float(np.tanh((logits.tolerance.atol + logits.tolerance.rtol * _finite(largest)) / (2 * temperature)))
    given = probabilities.tolerance
    return replace(probabilities, tolerance=Tolerance(atol=max(given.atol, moved), rtol=given.rtol))


def follow_log_posteriors(posteriors: Bound, expected: FloatArray, truth: FloatArray) -> Bound:
    """The bound of posteriors, no narrower than what their logarithms' own float32 error lets them move.

    A posterior is the exponential of a difference of sums over frames: its error grows with itself. ``rtol`` is 16 times the
    largest relative distance of float32 from float64 among posteriors of at least 1e-6, which next-best amounts show where the
    best ones are certain.

    Args:
        posteriors: As ``derive_bound`` gave it.
        expected: The source's float32 answers.
        truth: Its float64 answers of the same amounts.
    """
    counted = truth >= _LEAST_POSTERIOR
    relative = np.abs(expected[counted] / truth[counted] - 1)
    given, moved = posteriors.tolerance, _finite(OWN_ERROR_FACTOR * float(relative.max(initial=0)))
    return replace(posteriors, tolerance=Tolerance(atol=given.atol, rtol=max(given.rtol, moved)))


def follow_sigmoid(confidence: Bound) -> Bound:
    """The bound of what a sigmoid gave, no narrower than that of a 1: ONNX Runtime computes it as a half and something."""
    given, limit = confidence.tolerance, confidence.rms_limit
    return replace(
        confidence,
        tolerance=Tolerance(atol=max(given.atol, FLOOR_EPS * _EPS), rtol=given.rtol),
        rms_limit=None if limit is None else max(limit, TRUTH_FACTOR * _EPS),
    )


def rms(values: FloatArray) -> float:
    """The root mean square of all elements."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _largest(values: FloatArray) -> float:
    return float(np.abs(values).max())


def _finite(value: float) -> float:
    """A reference that is not finite must fail the gate, not widen it without bound."""
    return value if np.isfinite(value) else 0.0
