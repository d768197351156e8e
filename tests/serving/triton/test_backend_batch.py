"""Requests joined, run, split: every caller gets its own rows, and its own error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.contract.errors import InvalidRequestError
from convoy.serving.triton.backend.batch import Request, answer_all


class Doubler:
    """Answers ``double`` and ``half``; refuses rows that hold a NaN, as an operator may refuse an index."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def __call__(self, names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        x = inputs["x"]
        self.runs.append(len(x))
        if np.isnan(x).any():
            raise InvalidRequestError("found a NaN")
        return [{"double": 2 * x, "half": x / 2}[name] for name in names]


def ask(values: list[float], outputs: tuple[str, ...] = ("double",)) -> Request:
    return Request({"x": np.array(values, np.float32).reshape(-1, 1)}, outputs)


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=5), min_size=1, max_size=8))
def test_split_then_joined_rows_come_back_to_their_callers(values: list[list[float]]) -> None:
    run = Doubler()

    answers = answer_all([ask(part) for part in values], run, batched=True)

    assert len(run.runs) == 1
    for part, answer in zip(values, answers, strict=True):
        assert not isinstance(answer, Exception)
        np.testing.assert_array_equal(answer[0].ravel(), 2 * np.array(part, np.float32))


def test_each_caller_gets_the_outputs_it_wants_in_its_order() -> None:
    run = Doubler()
    requests = [ask([2], ("half", "double")), ask([4], ("double",)), ask([8], ("double", "half"))]

    answers = answer_all(requests, run, batched=True)

    assert [[array.item() for array in answer] for answer in answers if not isinstance(answer, Exception)] == [[1, 4], [8], [16, 4]]
    assert run.runs == [3]


def test_only_wanted_outputs_are_computed() -> None:
    computed: list[list[str]] = []

    def run(names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        computed.append(list(names))
        return [inputs["x"] for _ in names]

    answer_all([ask([1], ("half",)), ask([2], ("half",))], run, batched=True)

    assert computed == [["half"]]


def test_a_bad_request_fails_alone() -> None:
    run = Doubler()

    good, bad, other = answer_all([ask([1, 2]), ask([float("nan")]), ask([3])], run, batched=True)

    assert isinstance(bad, InvalidRequestError)
    assert not isinstance(good, Exception)
    assert not isinstance(other, Exception)
    assert good[0].ravel().tolist() == [2, 4]
    assert other[0].ravel().tolist() == [6]
    assert run.runs == [4, 2, 1, 1]


def test_requests_of_different_shapes_are_not_joined() -> None:
    def run(names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        return [inputs["x"]]

    wide = Request({"x": np.ones((1, 3), np.float32)}, ("y",))
    answers = answer_all([Request({"x": np.ones((2, 2), np.float32)}, ("y",)), wide], run, batched=True)

    assert [answer[0].shape for answer in answers if not isinstance(answer, Exception)] == [(2, 2), (1, 3)]


def test_a_model_without_batch_axis_runs_each_request_alone() -> None:
    run = Doubler()

    answer_all([ask([1]), ask([2])], run, batched=False)

    assert run.runs == [1, 1]


def test_a_model_that_loses_the_batch_axis_is_an_error_not_a_wrong_answer() -> None:
    def run(names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        return [inputs["x"].sum(axis=0)]

    answers = answer_all([ask([1, 2]), ask([3, 4])], run, batched=True)

    assert all(isinstance(answer, InvalidRequestError) for answer in answers)
    assert "does not carry the batch axis" in str(answers[0])


@pytest.mark.parametrize("n", [0, 1])
def test_zero_rows_are_an_answer_too(n: int) -> None:
    answers = answer_all([ask([]), ask([1] * n)], Doubler(), batched=True)

    assert [answer[0].shape for answer in answers if not isinstance(answer, Exception)] == [(0, 1), (n, 1)]
