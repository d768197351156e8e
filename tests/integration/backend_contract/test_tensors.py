"""Tensors pass as they are: types, shapes, sizes, names, and who wants which."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ClientError, InvalidRequestError
from convoy.serving.client import Client

pytestmark = pytest.mark.integration

VALUES = {
    "BOOL": np.array([[True, False]]),
    **{f"{sign}INT{bits}": np.array([[0, 100]], f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP16": np.array([[0.5, -65504]], np.float16),
    "FP32": np.array([[np.pi, -np.inf]], np.float32),
    "FP64": np.array([[np.pi, np.nan]], np.float64),
    "STRING": np.array([["grün".encode(), b""]], object),
}


@pytest.mark.parametrize("n", [1, 3])
def test_every_type_passes_unchanged(either: Client, n: int) -> None:
    inputs = {f"in_{kind}": np.repeat(value, n, axis=0) for kind, value in VALUES.items()}

    outputs = either.infer("types", inputs).outputs

    for kind, value in VALUES.items():
        expected, actual = np.repeat(value, n, axis=0), outputs[f"out_{kind}"]
        assert actual.dtype == expected.dtype, kind
        np.testing.assert_array_equal(actual, expected, err_msg=kind)


@pytest.mark.parametrize("kind", ["FP16", "FP32", "FP64"])
def test_floats_pass_bit_by_bit(either: Client, kind: str) -> None:
    """NaN with its payload, both infinities, both zeros, the smallest and the largest numbers."""
    dtype = VALUES[kind].dtype
    info = np.finfo(dtype)
    payload = (np.array([np.nan], dtype).view(f"u{dtype.itemsize}") | 1).view(dtype)
    values = np.array([*payload, np.inf, -np.inf, 0.0, -0.0, info.smallest_subnormal, info.max, info.tiny], dtype).reshape(4, 2)
    inputs = {f"in_{other}": np.repeat(value, 4, axis=0) for other, value in VALUES.items()}

    found = either.infer("types", {**inputs, f"in_{kind}": values}, outputs=[f"out_{kind}"])[f"out_{kind}"]

    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize("kind", [kind for kind in VALUES if "INT" in kind])
def test_integers_pass_to_their_limits(either: Client, kind: str) -> None:
    info = np.iinfo(VALUES[kind].dtype)
    values = np.array([[info.min, info.max]], info.dtype)
    inputs = {f"in_{other}": value for other, value in VALUES.items()}

    found = either.infer("types", {**inputs, f"in_{kind}": values}, outputs=[f"out_{kind}"])[f"out_{kind}"]

    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "strings",
    [["", "a"], ["grün", "日本語", "🙂"], ["line\nbreak", 'quote"', "back\\slash", "tab\t"], ["long" * 100_000], ["", "", ""]],
    ids=["empty", "not ascii", "special", "long", "all empty"],
)
def test_strings_pass_unchanged(either: Client, strings: list[str]) -> None:
    values = np.array([[string.encode() for string in strings]], object)

    assert either.infer("text", {"x": values})["y"].tolist() == values.tolist()


def test_callers_of_strings_share_a_batch(contract: Client) -> None:
    barrier = threading.Barrier(8)

    def ask(i: int) -> bool:
        values = np.array([[f"caller {i}, word {j}".encode() for j in range(3)]], object)
        barrier.wait(10)
        return all(contract.infer("text", {"x": values})["y"].tolist() == values.tolist() for _ in range(10))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_inputs_are_matched_by_name_and_outputs_are_sent_in_the_order_asked_for(either: Client, rows: Callable[..., Any]) -> None:
    inputs = {"a": rows(3, 5), "b": rows(1, 1)}

    both = either.infer("several", inputs, outputs=["sum", "difference"]).outputs
    one = either.infer("several", inputs, outputs=["difference"]).outputs
    none_named = either.infer("several", inputs).outputs

    assert both["sum"][:, 0].tolist() == [4, 6]
    assert {name: array[:, 0].tolist() for name, array in one.items()} == {"difference": [2, 4]}
    assert set(none_named) == {"sum", "difference"}


def test_callers_that_want_different_outputs_share_a_batch(contract: Client, rows: Callable[..., Any]) -> None:
    barrier = threading.Barrier(8)

    def ask(i: int) -> bool:
        wanted = ["sum"] if i % 2 else ["difference", "sum"]
        barrier.wait(10)
        for _ in range(20):
            outputs = contract.infer("several", {"a": rows(i, 2 * i), "b": rows(1, 2)}, outputs=wanted).outputs
            if set(outputs) != set(wanted) or outputs["sum"][:, 0].tolist() != [i + 1, 2 * i + 2]:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_requests_of_different_lengths_do_not_meet(contract: Client) -> None:
    barrier = threading.Barrier(6)

    def ask(length: int) -> list[float]:
        barrier.wait(10)
        found: list[float] = contract.infer("lengths", {"x": np.full((1, length), 3, np.float32)})["y"][0].tolist()
        return found

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(1, 7))) == [[-3.0] * length for length in range(1, 7)]


@pytest.mark.parametrize(("model_name", "dtype"), [("lengths", np.float32), ("text", object)])
def test_an_axis_without_extent_is_an_answer(either: Client, model_name: str, dtype: Any) -> None:
    found = either.infer(model_name, {"x": np.zeros((2, 0), dtype)})["y"]

    assert (found.shape, found.dtype) == ((2, 0), dtype)


def test_a_request_without_rows_is_refused_and_the_next_is_not(either: Client, rows: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequestError):
        either.infer("several", {"a": rows(1)[:0], "b": rows(1)[:0]})

    assert either.infer("several", {"a": rows(1), "b": rows(2)})["sum"].tolist() == [[3, 3]]


@pytest.mark.parametrize("n_bytes", [4, 3 << 20, 48 << 20], ids=["small", "3 MB", "48 MB"])
def test_large_tensors_pass_both_ways(either: Client, n_bytes: int) -> None:
    """Larger than the shared memory that a backend process starts with, and than what it grows by."""
    values = np.arange(n_bytes // 4, dtype=np.float32)[None]

    np.testing.assert_array_equal(either.infer("lengths", {"x": values})["y"], -values)


def test_pictures_of_any_size_are_answered(either: Client) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (3, 37, 61, 3), np.uint8)

    found = either.infer("picture", {"image": picture})["colour"]

    np.testing.assert_allclose(found, picture.astype(np.float64).mean((1, 2)), rtol=1e-5)


def test_reshapes_are_seen_by_callers_and_not_by_the_file(either: Client) -> None:
    six = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    numbers, line = np.array([[7], [8]], np.float32), np.arange(10, dtype=np.float32).reshape(2, 5, 1)

    outputs = either.infer("reshaped", {"six_in": six, "rows_in": numbers, "line_in": line}).outputs

    np.testing.assert_array_equal(outputs["six_out"], -six.reshape(2, 3, 2))
    np.testing.assert_array_equal(outputs["rows_out"], -numbers)
    np.testing.assert_array_equal(outputs["line_out"], -line)


def test_callers_of_a_reshaped_model_share_a_batch(contract: Client) -> None:
    barrier = threading.Barrier(6)

    def ask(i: int) -> bool:
        six, numbers = np.full((i, 2, 3), i, np.float32), np.full((i, 1), -i, np.float32)
        barrier.wait(10)
        outputs = contract.infer("reshaped", {"six_in": six, "rows_in": numbers, "line_in": np.ones((i, 2, 1), np.float32)}).outputs
        return bool((outputs["six_out"] == -six.reshape(i, 3, 2)).all() and (outputs["rows_out"] == -numbers).all())

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(1, 7)))


def test_scalars_are_tensors_of_one_element_for_callers_and_scalars_for_the_model(either: Client) -> None:
    found = either.infer("scalars", {"a": np.array([3], np.float32), "b": np.array([4], np.float32)})

    assert found["product"].tolist() == [12]
    assert found["rank"].tolist() == [0]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [({}, [12, 24]), ({"bias": [1, 2]}, [3, 6]), ({"factor": [3]}, [13, 26]), ({"factor": [0], "bias": [5, 6]}, [5, 6])],
    ids=["none", "one", "the other", "both"],
)
def test_inputs_that_are_optional_may_be_left_out(either: Client, sent: dict[str, list[float]], expected: list[float]) -> None:
    inputs = {"x": np.array([[1, 2]], np.float32), **{name: np.array(values, np.float32) for name, values in sent.items()}}

    assert either.infer("optional", inputs)["y"].tolist() == [expected]


def test_an_input_that_is_not_optional_may_not_be_left_out(either: Client) -> None:
    with pytest.raises(ClientError):
        either.infer("optional", {"bias": np.array([1, 2], np.float32)})


def test_a_model_without_batch_axis_takes_its_whole_shape(either: Client) -> None:
    x = np.arange(4, dtype=np.float32).reshape(2, 2)

    np.testing.assert_array_equal(either.infer("unbatched", {"x": x})["y"], -x)


@pytest.mark.parametrize("n", [1, 5, 8])
def test_any_batch_up_to_the_largest_answers_row_by_row(either: Client, n: int, rows: Callable[..., Any]) -> None:
    values = np.arange(1, n + 1)

    assert either.infer("dressed", {"x": rows(*values)})["y"][:, 0].tolist() == (-values).tolist()
