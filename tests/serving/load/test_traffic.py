"""Poisson arrivals, and loads shared out to processes."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest

from convoy.contract.errors import UsageError
from convoy.serving.load import Closed, Open
from convoy.serving.load.traffic import arrivals

RATE = 1000.0


def test_a_seed_gives_the_same_arrivals_again_and_another_gives_others() -> None:
    first, again, other = (list(islice(arrivals(RATE, seed), 10_000)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert all(early <= late for early, late in pairwise(first))


def test_gaps_are_distributed_exponentially() -> None:
    gaps = np.diff(np.array(list(islice(arrivals(RATE, 0), 50_000)))) / 1e9
    assert gaps.mean() == pytest.approx(1 / RATE, rel=0.02)
    assert gaps.std() == pytest.approx(1 / RATE, rel=0.02)  # as large as the mean
    # The largest distance between the empirical and the exponential distribution (Kolmogorov and Smirnov), at 0.1 %.
    ordered = np.sort(gaps)
    distance = np.abs(np.arange(1, len(ordered) + 1) / len(ordered) - (1 - np.exp(-RATE * ordered))).max()
    assert distance < 1.95 / np.sqrt(len(ordered))


@pytest.mark.parametrize(("concurrency", "processes", "shares"), [(16, 3, [6, 5, 5]), (2, 4, [1, 1]), (1, 1, [1])])
def test_requests_in_flight_are_shared_out(concurrency: int, processes: int, shares: list[int]) -> None:
    assert [share.concurrency for share in Closed(concurrency).split(processes)] == shares


def test_rates_are_shared_out() -> None:
    parts = Open(900.0, max_outstanding=10).split(3)
    assert [part.rate_per_s for part in parts] == [300.0] * 3
    assert [part.max_outstanding for part in parts] == [4, 3, 3]


@pytest.mark.parametrize("concurrency", [0, -1, 16_385])
def test_impossible_numbers_of_requests_are_refused(concurrency: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 16384 requests in flight"):
        Closed(concurrency)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 2e6])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="rate_per_s: expected more than 0"):
        Open(rate)


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(UsageError, match="max_outstanding: expected 1 to"):
        Open(1.0, max_outstanding=0)
