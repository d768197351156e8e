"""Requests joined, run, split: every caller gets its own rows, and its own error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.contract.errors import InvalidRequestError
from convoy.serving.triton.backend.batch import Rows, run_alone, run_joined

EVERY = ("double", "half")


class Doubler:
    """Answers ``double`` and ``half``; notes what it was asked to compute."""

    def __init__(self) -> None:
        self.computed: list[tuple[str, ...]] = []

    def __call__(self, names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        self.computed.append(tuple(names))
        x = inputs["x"]
        return [{"double": 2 * x, "half": x / 2}[name] for name in names]


def column(*parts: list[float]) -> list[Any]:
    return [np.array(part, np.float32).reshape(-1, 1) for part in parts]


def of_request(rows: Rows, i: int) -> dict[str, list[float]]:
    start = rows.ends[i - 1] if i else 0
    return {name: array[start : rows.ends[i]].ravel().tolist() for name, array in rows.outputs}


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=5), min_size=1, max_size=8))
def test_joined_then_split_rows_come_back_to_their_callers(values: list[list[float]]) -> None:
    run = Doubler()

    rows = run_joined({"x": column(*values)}, [("double",)] * len(values), run, EVERY)

    assert len(run.computed) == 1
    for i, part in enumerate(values):
        assert of_request(rows, i) == {"double": (2 * np.array(part, np.float32)).tolist()}


@pytest.mark.parametrize(
    ("wanted", "computed"),
    [
        ([{"half"}, {"half"}], ("half",)),
        ([{"half"}, {"double"}], ("double", "half")),
        ([{"double", "half"}, {"half"}], ("double", "half")),
        ([{"half"}, {"half", "double"}], ("double", "half")),
    ],
)
def test_what_any_caller_wants_is_computed_and_nothing_else(wanted: list[set[str]], computed: tuple[str, ...]) -> None:
    run = Doubler()

    rows = run_joined({"x": column([2], [4])}, wanted, run, EVERY)

    assert run.computed == [computed]
    assert [name for name, _ in rows.outputs] == list(computed)


def test_requests_of_different_shapes_are_not_joined() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        run_joined({"x": [np.ones((2, 2)), np.ones((1, 3))]}, [EVERY, EVERY], Doubler(), EVERY)


def test_inputs_of_different_batch_sizes_are_not_joined() -> None:
    """Joined, row 2 of the first request's ``a`` would meet the second request's ``b``."""
    columns = {"a": [np.ones((2, 1)), np.ones((1, 1))], "b": [np.ones((1, 1)), np.ones((2, 1))]}

    with pytest.raises(ValueError, match="differ in their first axis"):
        run_joined(columns, [("y",), ("y",)], lambda names, inputs: [inputs["a"] + inputs["b"]], ("y",))


@pytest.mark.parametrize("lost", [lambda x: x.sum(axis=0), lambda x: x.sum(), lambda x: x[:-1]])
def test_a_model_that_loses_the_batch_axis_is_an_error_not_a_wrong_answer(lost: Any) -> None:
    def run(names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        return [np.asarray(lost(inputs["x"]))]

    with pytest.raises(InvalidRequestError, match="does not carry the batch axis"):
        run_joined({"x": column([1, 2], [3, 4, 5])}, [("y",), ("y",)], run, ("y",))
    with pytest.raises(InvalidRequestError, match="does not carry the batch axis"):
        run_alone({"x": column([1, 2, 3])[0]}, ("y",), run, ("y",), batched=True)


def test_one_request_alone_gets_what_it_wants() -> None:
    run = Doubler()

    outputs = run_alone({"x": column([2])[0]}, {"half"}, run, EVERY, batched=True)

    assert [(name, array.tolist()) for name, array in outputs] == [("half", [[1.0]])]
    assert run.computed == [("half",)]


def test_without_a_batch_axis_an_output_may_have_any_shape() -> None:
    outputs = run_alone({"x": np.float32(3)}, ("y",), lambda names, inputs: [np.asarray(inputs["x"])], ("y",), batched=False)

    assert outputs[0][1].shape == ()


@pytest.mark.parametrize("n", [0, 1])
def test_zero_rows_are_an_answer_too(n: int) -> None:
    rows = run_joined({"x": column([], [1] * n)}, [("double",), ("double",)], Doubler(), EVERY)

    assert [rows.outputs[0][1][:0].shape, rows.ends] == [(0, 1), [0, n]]
