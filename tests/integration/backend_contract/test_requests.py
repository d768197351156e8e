"""Bad requests fail alone, each with an error that is the caller's; good ones in the same batch are answered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ClientError, InvalidRequestError, ModelNotFoundError
from convoy.serving.client import Client

pytestmark = pytest.mark.integration

FLOAT = np.float32


def ask_together(client: Client, model_name: str, inputs: Sequence[dict[str, Any]]) -> list[Any]:
    """Ask at the same moment; returns the first output, or the error, of each."""
    barrier = threading.Barrier(len(inputs))

    def ask(tensors: dict[str, Any]) -> Any:
        barrier.wait(10)
        try:
            return next(iter(client.infer(model_name, tensors).outputs.values())).tolist()
        except ClientError as error:
            return error

    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(ask, inputs))


@pytest.mark.parametrize("bad", [[2], [0, 5], list(range(8))], ids=["one", "two", "all"])
def test_a_bad_request_fails_alone_and_not_the_batch_that_it_is_in(contract: Client, bad: list[int]) -> None:
    indices = [99 if i in bad else i % 4 for i in range(8)]

    answers = ask_together(contract, "lookup", [{"index": np.array([[index]])} for index in indices])

    for i, (index, answer) in enumerate(zip(indices, answers, strict=True)):
        if i in bad:
            assert isinstance(answer, ClientError)
            assert "out of data bounds" in str(answer)
        else:
            assert answer == [[10.0 * (index + 1)]]


def test_a_bad_row_fails_its_request_and_not_the_rows_of_others(contract: Client) -> None:
    bad, good = ask_together(contract, "lookup", [{"index": np.array([[0], [99], [1]])}, {"index": np.array([[2], [3]])}])

    assert isinstance(bad, ClientError)
    assert good == [[30], [40]]


def test_a_string_that_is_no_text_fails_alone(ours: object, contract: Client) -> None:
    """The C++ backend passes bytes on as they are."""
    bad, good = ask_together(contract, "text", [{"x": np.array([[b"\xff"]], object)}, {"x": np.array([[b"fine"]], object)}])

    assert isinstance(bad, InvalidRequestError)
    assert "UTF-8" in str(bad)
    assert good == [[b"fine"]]


def test_outputs_without_the_batch_axis_are_an_error_and_not_a_wrong_answer(contract: Client, rows: Callable[..., Any]) -> None:
    """One row comes back as one row; of several rows nobody knows whose the answer is."""
    assert contract.infer("axisless", {"x": rows(1)})["y"].tolist() == [[1, 1]]
    with pytest.raises(ClientError):
        contract.infer("axisless", {"x": rows(1, 2)})

    for value, answer in enumerate(ask_together(contract, "axisless", [{"x": rows(value)} for value in range(6)])):
        assert isinstance(answer, ClientError) or answer == [[value, value]]


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.zeros((1, 3), FLOAT)},
        {"x": np.zeros((1, 2, 1), FLOAT)},
        {"x": np.zeros(2, FLOAT)},
        {"x": np.zeros((), FLOAT)},
        {"x": np.zeros((1, 2), np.int32)},
        {"x": np.array([[b"1", b"2"]], object)},
        {"z": np.zeros((1, 2), FLOAT)},
        {"x": np.zeros((1, 2), FLOAT), "z": np.zeros((1, 2), FLOAT)},
    ],
    ids=["shape", "rank", "no batch axis", "no axis", "datatype", "strings", "name", "one too many"],
)
def test_what_the_model_does_not_take_is_refused_and_the_next_request_is_not(
    either: Client, inputs: dict[str, Any], rows: Callable[..., Any]
) -> None:
    with pytest.raises(InvalidRequestError):
        either.infer("dressed", inputs)

    assert either.infer("dressed", {"x": rows(2)})["y"][0].tolist() == [-2, -2]


def test_more_rows_than_the_batch_size_are_refused_and_the_next_request_is_not(
    contract: Client, rows: Callable[..., Any], refuses_rows: Callable[..., None]
) -> None:
    refuses_rows("dressed", np.zeros((9, 2), FLOAT))

    assert contract.infer("dressed", {"x": rows(2)})["y"][0].tolist() == [-2, -2]


def test_inputs_of_different_numbers_of_rows_are_refused(either: Client, rows: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequestError):
        either.infer("several", {"a": rows(1, 2), "b": rows(1)})


def test_a_missing_input_is_refused(either: Client, rows: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequestError):
        either.infer("several", {"a": rows(1)})


def test_an_output_that_the_model_does_not_have_is_refused(either: Client, rows: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequestError):
        either.infer("dressed", {"x": rows(1)}, outputs=["nothing"])


def test_an_output_that_the_configuration_leaves_out_is_not_there(either: Client, rows: Callable[..., Any]) -> None:
    assert list(either.infer("partly_output", {"x": rows(1)}).outputs) == ["z"]
    with pytest.raises(InvalidRequestError):
        either.infer("partly_output", {"x": rows(1)}, outputs=["y"])


@pytest.mark.parametrize(("model_name", "version"), [("nothing", ""), ("dressed", "7")], ids=["model", "version"])
def test_what_is_not_served_is_not_found(either: Client, model_name: str, version: str, rows: Callable[..., Any]) -> None:
    with pytest.raises(ModelNotFoundError):
        either.infer(model_name, {"x": rows(1)}, model_version=version)
