from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from convoy.serving.scoring.source._cache import Cache


def test_a_value_is_made_once_however_many_threads_ask() -> None:
    cache: Cache[int] = Cache(2)
    made: list[int] = []
    together = threading.Barrier(8)

    def make() -> int:
        made.append(1)
        return 7

    def ask(_: int) -> int:
        together.wait()
        return cache.get("a", make)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [7] * 8
    assert made == [1]


def test_the_oldest_goes_first() -> None:
    cache: Cache[int] = Cache(2)
    for key in ("a", "b", "a", "c"):
        cache.get(key, lambda: 1)
    assert cache.get("a", lambda: 2) == 1
    assert cache.get("b", lambda: 2) == 2


def test_heavy_values_go_down_to_two() -> None:
    cache: Cache[int] = Cache(9, most_bytes=10, weigh=lambda value: value)
    for key in range(5):
        cache.get(key, lambda: 8)
    assert [cache.get(key, lambda: 0) for key in (4, 3)] == [8, 8]
    assert cache.get(2, lambda: 0) == 0


def test_a_failure_is_not_kept() -> None:
    cache: Cache[int] = Cache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert cache.get("a", lambda: 3) == 3
