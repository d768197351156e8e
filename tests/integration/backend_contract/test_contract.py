"""What an ``onnxruntime`` backend answers, stated as requests and answers; Convoy's and NVIDIA's shall agree on it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ClientError, InvalidRequestError, ModelNotFoundError
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


def rows(*values: float) -> Any:
    """Rows of two equal numbers."""
    return np.array([[value, value] for value in values], np.float32)


@pytest.mark.parametrize("n", [1, 3])
def test_every_type_passes_unchanged(contract: Client, n: int) -> None:
    inputs = {f"in_{kind}": np.repeat(value, n, axis=0) for kind, value in VALUES.items()}

    outputs = contract.infer("types", inputs).outputs

    for kind, value in VALUES.items():
        expected, actual = np.repeat(value, n, axis=0), outputs[f"out_{kind}"]
        assert actual.dtype == expected.dtype, kind
        np.testing.assert_array_equal(actual, expected, err_msg=kind)


def test_inputs_are_matched_by_name_and_outputs_are_sent_in_the_order_asked_for(contract: Client) -> None:
    inputs = {"a": rows(3, 5), "b": rows(1, 1)}

    both = contract.infer("several", inputs, outputs=["sum", "difference"]).outputs
    one = contract.infer("several", inputs, outputs=["difference"]).outputs

    assert both["sum"][:, 0].tolist() == [4, 6]
    assert {name: array[:, 0].tolist() for name, array in one.items()} == {"difference": [2, 4]}


def test_callers_that_want_different_outputs_share_a_batch(contract: Client) -> None:
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


def test_a_bad_request_fails_alone_and_not_the_batch_that_it_is_in(contract: Client) -> None:
    barrier = threading.Barrier(8)

    def ask(index: int) -> float | ClientError:
        barrier.wait(10)
        try:
            return float(contract.infer("lookup", {"index": np.array([[index]])})["value"].item())
        except ClientError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [0, 1, 99, 3, 2, 1, 0, 3]))

    assert isinstance(answers[2], ClientError)
    assert "out of data bounds" in str(answers[2])
    assert [answer for answer in answers if answer is not answers[2]] == [10, 20, 40, 30, 20, 10, 40]


def test_requests_of_different_lengths_do_not_meet(contract: Client) -> None:
    barrier = threading.Barrier(6)

    def ask(length: int) -> list[float]:
        barrier.wait(10)
        found: list[float] = contract.infer("lengths", {"x": np.full((1, length), 3, np.float32)})["y"][0].tolist()
        return found

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(1, 7))) == [[-3.0] * length for length in range(1, 7)]


def test_a_zero_length_axis_is_an_answer(contract: Client) -> None:
    assert contract.infer("lengths", {"x": np.zeros((2, 0), np.float32)})["y"].shape == (2, 0)


def test_a_model_without_batch_axis_takes_its_whole_shape(contract: Client) -> None:
    x = np.arange(4, dtype=np.float32).reshape(2, 2)

    np.testing.assert_array_equal(contract.infer("unbatched", {"x": x})["y"], -x)


def test_a_bare_file_is_served_with_what_it_says_itself(contract: Client) -> None:
    config = contract.config("bare")

    assert (config["max_batch_size"], config["input"][0]["dims"]) == (
        4,
        ["2"] if isinstance(config["input"][0]["dims"][0], str) else [2],
    )
    assert "dynamic_batching" in config
    assert contract.infer("bare", {"x": rows(1, 2)})["y"][:, 0].tolist() == [-1, -2]


def test_file_name_versions_labels_warm_up_and_unknown_words_of_a_configuration(contract: Client) -> None:
    answer = contract.infer("dressed", {"x": rows(1)})

    assert answer.model_version == "1"
    assert answer["y"][0].tolist() == [-1, -1]
    with pytest.raises(ModelNotFoundError):
        contract.infer("dressed", {"x": rows(1)}, model_version="2")


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 2), np.int32)},
        {"x": np.zeros((9, 2), np.float32)},
        {"z": np.zeros((1, 2), np.float32)},
    ],
    ids=["shape", "datatype", "batch size", "name"],
)
def test_what_the_model_does_not_take_is_refused_and_the_next_request_is_not(contract: Client, inputs: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        contract.infer("dressed", inputs)

    assert contract.infer("dressed", {"x": rows(2)})["y"][0].tolist() == [-2, -2]


def test_an_output_that_the_model_does_not_have_is_refused(contract: Client) -> None:
    with pytest.raises(InvalidRequestError):
        contract.infer("dressed", {"x": rows(1)}, outputs=["nothing"])


@pytest.mark.parametrize("n", [1, 5, 8])
def test_any_batch_up_to_the_largest_answers_row_by_row(contract: Client, n: int) -> None:
    values = np.arange(1, n + 1)

    assert contract.infer("dressed", {"x": rows(*values)})["y"][:, 0].tolist() == (-values).tolist()
