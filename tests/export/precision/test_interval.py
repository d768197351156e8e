from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from convoy.export.precision import drop_upper_bound
from convoy.export.precision.interval import _binomial_upper, _log_ways, _score_bound, _trinomial


def coverage(n: int, p_lost: float, p_gained: float, bound) -> float:
    """How often the bound is not below the true drop: all outcomes that are not next to impossible, with their probabilities."""
    lost, gained = (grid.ravel() for grid in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    lost, gained = lost[lost + gained <= n], gained[lost + gained <= n]
    p = stats.multinomial.pmf(np.stack([lost, gained, n - lost - gained], axis=1), n, [p_lost, p_gained, 1 - p_lost - p_gained])
    likely = p > 1e-6
    pairs = zip(lost[likely], gained[likely], p[likely], strict=True)
    return sum(q for b, c, q in pairs if bound(int(b), int(c), n) >= p_lost - p_gained - 1e-12)


@pytest.mark.parametrize("n", [20, 45])
def test_the_bound_covers_the_true_drop_in_95_percent_of_all_outcomes(n):
    bounds: dict[tuple[int, int], float] = {}

    def bound(lost: int, gained: int, n: int) -> float:
        if (lost, gained) not in bounds:
            bounds[lost, gained] = drop_upper_bound(lost, gained, n)
        return bounds[lost, gained]

    covered = [coverage(n, lost, gained, bound) for lost in (0.005, 0.02, 0.047, 0.1, 0.3) for gained in (0.0, 0.01, 0.05)]
    assert min(covered) >= 0.95
    assert min(covered) < 0.98  # nor is it wastefully wide


def test_the_score_bound_alone_promises_too_much_where_few_images_differ():
    assert coverage(100, 0.028, 0.0, _score_bound) < 0.945
    assert coverage(100, 0.028, 0.0, drop_upper_bound) >= 0.95


def test_simulated_decisions_are_covered_with_many_images():
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(1000, [0.012, 0.006, 0.982], size=800)
    counts, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    covered = sum(k for (lost, gained), k in zip(counts, times, strict=True) if drop_upper_bound(lost, gained, 1000) >= 0.006)
    assert covered / 800 > 0.93  # the standard error is 0.8 %


@pytest.mark.parametrize("n", [10, 299, 5000])
def test_without_a_changed_image_it_is_the_exact_bound_of_a_binomial(n):
    exact = 1 - 0.05 ** (1 / n)
    assert exact <= drop_upper_bound(0, 0, n) <= exact * 1.01


def test_the_score_bound_is_where_the_statistic_says():
    # By its definition the statistic is -1.645 at the bound; here the share of gained images is sought on a grid,
    # not with the closed form of the code.
    lost, gained, n = 12, 5, 200
    bound = _score_bound(lost, gained, n)

    def log_likelihood(share: float) -> float:
        return lost * math.log(share + bound) + gained * math.log(share) + (n - lost - gained) * math.log(1 - 2 * share - bound)

    shares = np.linspace(1e-5, 0.4, 400_001)
    best = shares[np.argmax([log_likelihood(share) for share in shares[:80_000]])]
    statistic = (lost - gained - n * bound) / math.sqrt(n * (2 * best + bound * (1 - bound)))
    assert statistic == pytest.approx(-1.645, abs=2e-3)


def test_more_lost_images_never_lower_the_bound_and_more_images_never_raise_it():
    bounds = [drop_upper_bound(lost, 3, 400) for lost in range(0, 120, 6)]
    assert bounds == sorted(bounds)
    assert drop_upper_bound(4, 2, 400) > drop_upper_bound(40, 20, 4000) > drop_upper_bound(400, 200, 40000)


def test_the_trinomial_and_the_binomial_bound_agree_with_scipy():
    lost, gained = np.array([0, 1, 5, 2]), np.array([0, 3, 0, 2])
    expected = stats.multinomial.pmf(np.stack([lost, gained, 50 - lost - gained], axis=1), 50, [0.04, 0.03, 0.93])
    np.testing.assert_allclose(_trinomial(lost, gained, 50, 0.04, 0.03, _log_ways(lost, gained, 50)), expected, rtol=1e-9)
    assert _binomial_upper(3, 50, 0.05) == pytest.approx(stats.beta.ppf(0.95, 4, 47), rel=1e-3)


@pytest.mark.parametrize("counts", [(-1, 0, 10), (6, 5, 10), (0, 0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="expected counts"):
        drop_upper_bound(*counts)
