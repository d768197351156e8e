"""The order of versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.serving.doctor.version import key


def test_versions_are_ordered_by_number_and_not_by_letter() -> None:
    mixed = ["1.10.1", "26.07", "1.10.0", "24.10", "1.9", "2.51.0", "1.10rc1"]

    assert sorted(mixed, key=key) == ["1.9", "1.10rc1", "1.10.0", "1.10.1", "2.51.0", "24.10", "26.07"]


@pytest.mark.parametrize(
    ("one", "other"), [("1.10", "1.10.0"), ("1.10.0", "1.10.0+cu130"), ("v2.51.0", "2.51.0"), ("r26.07", "26.7")]
)
def test_other_ways_to_write_a_version_are_equal(one: str, other: str) -> None:
    assert key(one) == key(other)


@pytest.mark.parametrize("early", ["2.10.0rc1", "2.10.0a0+git", "2.10.0.dev2026", "2.10.0b3", "2.10.0-rc.2"])
def test_what_comes_before_a_release_is_older(early: str) -> None:
    assert key("2.9.9") < key(early) < key("2.10.0")


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a version such as"):
        key("latest")


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=5), st.lists(st.integers(0, 3000), min_size=1, max_size=5))
def test_the_order_is_that_of_the_numbers(one: list[int], other: list[int]) -> None:
    padded = [numbers + [0] * (5 - len(numbers)) for numbers in (one, other)]

    assert (key(".".join(map(str, one))) < key(".".join(map(str, other)))) == (padded[0] < padded[1])
