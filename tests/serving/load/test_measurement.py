"""Percentiles, windows, stability, and what the server's counters say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.serving.load import Percentiles, ServerShare, Window
from convoy.serving.load.measurement import agree, window_of


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200))
def test_percentiles_are_numpys(values: list[int]) -> None:
    latencies = np.array(values, np.int64)
    found = Percentiles.of(latencies)
    assert found is not None
    expected = np.percentile(latencies, [50, 90, 95, 99, 99.9]) / 1e6
    assert [found.p50, found.p90, found.p95, found.p99, found.p999] == pytest.approx(list(expected))
    assert found.max == max(values) / 1e6
    assert found.mean == pytest.approx(sum(values) / len(values) / 1e6)


def test_there_are_no_percentiles_of_nothing() -> None:
    assert Percentiles.of(np.array([], np.int64)) is None


def window(rate: float, latency: float) -> Window:
    return Window(rate, Percentiles(*[latency] * 7), 0)


@pytest.mark.parametrize(
    ("points", "stable"),
    [
        ([(100, 1), (100, 1)], False),  # too few
        ([(100, 1), (100, 1), (100, 1)], True),
        ([(109, 1), (100, 1), (91, 1)], True),  # each within 10 % of their mean
        ([(112, 1), (100, 1), (88, 1)], False),
        ([(100, 1.12), (100, 1.0), (100, 0.88)], False),
        ([(500, 9), (100, 1), (100, 1), (100, 1)], True),  # only the last three count
        ([(100, 1), (100, 1), (100, 1), (500, 9)], False),
    ],
)
def test_three_windows_within_a_tenth_are_stable(points: list[tuple[float, float]], stable: bool) -> None:
    assert agree([window(*point) for point in points], 0.10) == stable


def test_windows_without_an_answer_are_not_stable() -> None:
    assert not agree([Window(0.0, None, 5)] * 3, 0.10)


def test_a_window_holds_what_was_answered_in_it() -> None:
    second = 10**9
    ends = np.array([0, 1, second - 1, second, 2 * second], np.int64)
    latencies = np.array([1, 2, 3, 4, 5], np.int64) * 10**6
    found = window_of(ends, latencies, 0, second, 2)
    assert found.requests_per_s == 3
    assert found.latency_ms is not None
    assert found.latency_ms.mean == 2.0
    assert found.n_errors == 2


def statistics(version: str, n: int, *, executions: int, images: int, failed: int = 0) -> dict[str, object]:
    stage = {"count": n, "ns": n * 5_000}
    names = ("queue", "compute_input", "compute_infer", "compute_output")
    return {
        "version": version,
        "inference_count": images,
        "execution_count": executions,
        "inference_stats": {"success": stage, "fail": {"count": failed, "ns": 0}, **dict.fromkeys(names, stage)},
    }


def test_the_servers_share_is_the_difference_of_its_counters() -> None:
    share = ServerShare.between(
        [statistics("1", 100, executions=50, images=200)], [statistics("1", 300, executions=100, images=600, failed=3)]
    )
    assert (share.n_succeeded, share.n_failed, share.n_images, share.n_executions) == (200, 3, 400, 50)
    assert share.mean_batch_size == 8
    assert share.queue_us == share.compute_infer_us == 5


def test_versions_are_added_up_and_one_that_was_loaded_again_counts_from_there() -> None:
    before = [statistics("1", 100, executions=50, images=100), statistics("2", 500, executions=500, images=500)]
    after = [statistics("1", 150, executions=60, images=150), statistics("2", 10, executions=10, images=10)]
    share = ServerShare.between(before, [*after, statistics("3", 1, executions=1, images=1)])
    assert share.n_succeeded == 50 + 10 + 1


def test_a_server_that_did_nothing_has_no_means() -> None:
    idle = [statistics("1", 5, executions=5, images=5)]
    share = ServerShare.between(idle, idle)
    assert share.n_succeeded == 0
    assert share.mean_batch_size == share.queue_us == 0.0
