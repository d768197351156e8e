from __future__ import annotations

import numpy as np

from convoy.contract.reject import choose_threshold, reject_curve


def test_the_reject_curve_counts_what_is_accepted_and_what_of_it_is_wrong() -> None:
    curve = reject_curve([0.9, 0.5, 0.9, 0.1], [True, False, False, True])
    assert curve.thresholds.tolist() == [0.9, 0.5, 0.1]
    assert curve.coverage.tolist() == [0.5, 0.75, 1.0]
    assert np.allclose(curve.error, [0.5, 2 / 3, 0.5])


def test_the_threshold_accepts_the_most_that_the_error_allows() -> None:
    confidence = [0.99, 0.98, 0.97, 0.96, 0.5]
    point = choose_threshold(confidence, [True, True, False, True, True], 0.25)
    assert point is not None
    assert (point.threshold, point.coverage, point.error, point.n) == (0.5, 1.0, 0.2, 5)
    strict = choose_threshold(confidence * 4, [True] * 8 + [False] + [True] * 11, 0.1)
    assert strict is not None
    assert (strict.threshold, strict.coverage, strict.error) == (0.5, 1.0, 0.05)
    assert choose_threshold(confidence, [True, True, False, True, True], 0.1) is None  # two right ones are no evidence of 10 %
    assert choose_threshold(confidence, [False] * 5, 0.1) is None
    assert choose_threshold([], [], 0.1) is None
