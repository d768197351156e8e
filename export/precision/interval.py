"""How much accuracy was lost, at most: a confidence bound for the difference of two proportions on the same images."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

CONFIDENCE: Final = 0.95
_Z: Final = 1.6448536269514722  # the normal distribution's 95 % point
_BERGER_BOOS: Final = 1e-3
MAX_EXACT: Final = 100
"""Up to so many images with another outcome the bound is exact; beyond, Tango's score bound is right to the second digit."""
_N_NUISANCE: Final = 24
_PRECISION: Final = 1e-4


def drop_upper_bound(lost: int, gained: int, n: int) -> float:
    """The one-sided 95 % upper confidence bound of the accuracy drop, from paired decisions.

    Of n images, ``lost`` were right before and are wrong now, ``gained`` the other way round; the drop is (lost - gained) / n. The
    bound is the largest drop that the score statistic (Tango 1998, Statistics in Medicine 17:891) does not reject at 5 %, with the
    exact trinomial probability of a statistic as small as the observed one, maximised over the unknown share of gained images: the
    unconditional exact test for paired proportions (Hsueh, Liu, Chen 2001, Biometrics 57:478), in which that share is sought
    within its own 99.9 % interval and 0.1 % is paid for it (Berger, Boos 1994, JASA 89:1012). It never promises more than 95 %
    where few images differ: 0 of n give 3.02/n, where the score bound alone gives 2.71/n. No gain is claimed: the bound is never
    below 0. Where more than ``MAX_EXACT`` images differ, it is the score bound.

    Args:
        lost: Images that became wrong.
        gained: Images that became right.
        n: All images.

    Raises:
        ValueError: The counts are negative or more than n, or n is 0.
    """
    if min(lost, gained) < 0 or n <= 0 or lost + gained > n:
        raise ValueError(f"expected counts of at least 0 that together are at most n > 0, found {lost}, {gained} of {n}")
    score = max(_score_bound(lost, gained, n), 0.0)
    if lost + gained > MAX_EXACT:
        return score
    return max(score, _exact_bound(lost, gained, n, max(score, 0.01 / n)))


def _score_bound(lost: int, gained: int, n: int) -> float:
    """Tango's bound: the drop at which the score statistic is -1.645."""
    low, high = (lost - gained) / n, 1.0
    while high - low > _PRECISION * max(high, 1 / n):
        middle = (low + high) / 2
        statistic = float(_score(np.array(lost), np.array(gained), n, middle))
        low, high = (middle, high) if statistic > -_Z else (low, middle)
    return high


def _score(lost: npt.NDArray[np.int64], gained: npt.NDArray[np.int64], n: int, drop: float) -> npt.NDArray[np.float64]:
    """Tango's statistic for the hypothesis that the true drop is ``drop``: far below 0 where the data say that it is less."""
    b = -lost - gained + (2 * n - lost + gained) * drop
    c = -gained * drop * (1 - drop)
    share = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)  # of gained images, most likely under the hypothesis
    variance = n * (2 * share + drop * (1 - drop))
    difference = lost - gained - n * drop
    # at drop 1 nothing varies: all images are lost, or the hypothesis is wrong
    return np.where(variance > 0, difference / np.sqrt(np.maximum(variance, 1e-300)), np.where(difference < -1e-9, -np.inf, 0.0))


def _exact_bound(lost: int, gained: int, n: int, start: float) -> float:
    """The least drop from which on the exact test rejects; sought upwards from the score bound."""
    most_discordant = _binomial_upper(lost + gained, n, _BERGER_BOOS)
    low, high = start, min(1.0, 1.5 * start)
    while high < 1.0 and _p_value(lost, gained, n, high, most_discordant) > 1 - CONFIDENCE:
        low, high = high, min(1.0, 1.5 * high)
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        rejected = _p_value(lost, gained, n, middle, most_discordant) <= 1 - CONFIDENCE
        low, high = (low, middle) if rejected else (middle, high)
    return high


def _p_value(lost: int, gained: int, n: int, drop: float, most_discordant: float) -> float:
    """How likely a statistic as small as the observed is, at worst, where the true drop is ``drop``; the search is paid for."""
    most_gained = max(0.0, min((most_discordant - drop) / 2, (1 - drop) / 2))
    shares = np.linspace(0.0, most_gained, _N_NUISANCE if most_gained > 0 else 1)
    most = _count_limit(n, drop + most_gained)
    m_lost, m_gained = (grid.ravel() for grid in np.meshgrid(np.arange(most + 1), np.arange(_count_limit(n, most_gained) + 1)))
    possible = m_lost + m_gained <= n
    m_lost, m_gained = m_lost[possible], m_gained[possible]
    observed = _score(np.array(lost), np.array(gained), n, drop)
    extreme = _score(m_lost, m_gained, n, drop) <= observed + 1e-9
    m_lost, m_gained = m_lost[extreme], m_gained[extreme]
    ways = _log_ways(m_lost, m_gained, n)
    tails = [_trinomial(m_lost, m_gained, n, min(1.0, share + drop), share, ways).sum() for share in shares]
    return float(max(tails)) + _BERGER_BOOS


def _count_limit(n: int, share: float) -> int:
    """A count that a binomial variable passes with a probability below 1e-10."""
    mean = n * share
    return min(n, math.ceil(mean + 7 * math.sqrt(mean) + 25))


def _log_ways(lost: npt.NDArray[np.int64], gained: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.float64]:
    """The logarithm of n! / (lost! gained! (n - lost - gained)!), for n of any size."""
    most = int((lost + gained).max(initial=0))
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
    falling = np.concatenate([[0.0], np.cumsum(np.log(n - np.arange(most)))])  # n! / (n - k)!
    ways: npt.NDArray[np.float64] = falling[lost + gained] - factorials[lost] - factorials[gained]
    return ways


def _trinomial(
    lost: npt.NDArray[np.int64],
    gained: npt.NDArray[np.int64],
    n: int,
    p_lost: float,
    p_gained: float,
    log_ways: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    log_p, same = log_ways, n - lost - gained
    for count, p in ((lost, p_lost), (gained, p_gained), (same, max(0.0, 1 - p_lost - p_gained))):
        log_p = log_p + (count * math.log(p) if p > 0 else np.where(count == 0, 0.0, -np.inf))
    probability: npt.NDArray[np.float64] = np.exp(log_p)
    return probability


def _binomial_upper(count: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's one-sided upper bound of a share: where ``count`` or fewer of n have probability ``alpha``."""
    if count >= n:
        return 1.0
    counts, none = np.arange(count + 1), np.zeros(count + 1, dtype=np.int64)
    ways = _log_ways(counts, none, n)
    low, high = count / n, 1.0
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        below = float(_trinomial(counts, none, n, middle, 0.0, ways).sum())
        low, high = (middle, high) if below > alpha else (low, middle)
    return high
