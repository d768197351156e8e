"""The one comparison: what it must never let through, and where it must not cry wolf."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convoy.contract.agreement import Tolerance, compare

TIGHT = Tolerance(atol=1e-3, rtol=0)
finite = hnp.arrays(np.float32, (4, 3), elements=st.floats(-100, 100, width=32))


@given(finite)
def test_equal_outputs_agree(outputs):
    found = compare(outputs, outputs.copy(), Tolerance(atol=0, rtol=0))
    assert found.passed
    assert found.max_abs_diff == 0


@given(finite, st.integers(0, 3), st.integers(0, 2), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans())
def test_a_value_that_is_not_finite_never_passes_on_either_side(outputs, row, column, value, in_expected):
    other = outputs.copy()
    other[row, column] = value
    pair = (other, outputs) if in_expected else (outputs, other)
    found = compare(*pair, Tolerance(atol=1e9, rtol=1e9))
    assert not found.passed
    assert found.n_nonfinite == 1
    assert found.worst_row == row


def test_nan_on_both_sides_never_passes():
    nans = np.full((2, 3), np.nan, np.float32)
    assert not compare(nans, nans, TIGHT).passed


def test_nothing_compared_is_nothing_proven():
    assert not compare(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), TIGHT).passed


def test_the_limit_itself_passes_and_a_little_more_does_not():
    expected = np.array([[2.0, 0.0]])
    tolerance = Tolerance(atol=0.5, rtol=0.25)
    assert compare(expected, np.array([[3.0, 0.0]]), tolerance).passed
    assert compare(expected, np.array([[3.0001, 0.0]]), tolerance).n_outside == 1


def test_the_tolerance_is_relative_to_expected_not_to_actual():
    tolerance = Tolerance(atol=0, rtol=0.5)
    assert compare(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0]]), tolerance).passed
    assert not compare(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]]), tolerance).passed


def test_another_decision_fails_even_inside_a_wide_tolerance_unless_it_is_a_tie():
    wide = Tolerance(atol=1.0, rtol=0)
    assert compare(np.array([[5.0, 1.0]]), np.array([[4.0, 1.9]]), wide).passed
    flipped = compare(np.array([[5.0, 2.5]]), np.array([[4.0, 4.5]]), wide)
    assert flipped.n_top1_differs == 1
    tied = compare(np.array([[5.0, 4.5]]), np.array([[4.8, 4.9]]), wide)
    assert tied.ties == (0,)
    assert tied.passed


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected two arrays"):
        compare(np.zeros((2, 3)), np.zeros(shape), TIGHT)
