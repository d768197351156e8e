"""What a configuration says holds, and what it leaves out is completed from the file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ModelNotFoundError
from convoy.serving.client import Client

pytestmark = [pytest.mark.integration, pytest.mark.alone]


def dims_of(config: dict[str, Any], key: str = "input") -> list[int]:
    return [int(extent) for extent in config[key][0]["dims"]]


@pytest.mark.parametrize("model_name", ["bare", "bare_folder"])
def test_a_bare_file_is_served_with_what_it_says_itself(
    contract: Client, model_name: str, rows: Callable[..., Any], refuses_rows: Callable[..., None]
) -> None:
    config = contract.config(model_name)

    assert (config["max_batch_size"], dims_of(config)) == (4, [2])
    assert "dynamic_batching" in config
    assert contract.infer(model_name, {"x": rows(1, 2)})["y"][:, 0].tolist() == [-1, -2]
    refuses_rows(model_name, rows(*range(5)))
    assert contract.infer(model_name, {"x": rows(*range(5))})["y"][:, 0].tolist() == [0, -1, -2, -3, -4], "in parts"


def test_a_bare_file_without_batch_axis_keeps_its_axes(contract: Client) -> None:
    config = contract.config("bare_fixed")

    assert (config["max_batch_size"], dims_of(config)) == (0, [3, 2])
    assert contract.infer("bare_fixed", {"x": np.ones((3, 2), np.float32)})["y"].tolist() == [[-1, -1]] * 3


def test_a_bare_file_of_one_number_a_row_gets_an_axis_of_one(contract: Client) -> None:
    config = contract.config("bare_rows")

    assert (config["max_batch_size"], dims_of(config), dims_of(config, "output")) == (4, [1], [1])
    assert contract.infer("bare_rows", {"x": np.array([[1], [2], [3]], np.float32)})["y"].tolist() == [[-1], [-2], [-3]]


def test_a_batch_size_alone_is_completed_with_tensors_and_batching(contract: Client, rows: Callable[..., Any]) -> None:
    config = contract.config("partly_batch")

    assert (config["max_batch_size"], dims_of(config)) == (16, [2])
    assert "dynamic_batching" in config
    assert contract.infer("partly_batch", {"x": rows(*range(16))})["y"][15].tolist() == [-15, -15]


def test_outputs_that_are_listed_are_the_only_ones(contract: Client) -> None:
    config = contract.config("partly_output")

    assert (config["max_batch_size"], dims_of(config)) == (2, [2])
    assert [output["name"] for output in config["output"]] == ["z"]


def test_file_name_versions_labels_warm_up_and_unknown_words_of_a_configuration(contract: Client, rows: Callable[..., Any]) -> None:
    answer = contract.infer("dressed", {"x": rows(1)})

    assert answer.model_version == "1"
    assert answer["y"][0].tolist() == [-1, -1]
    with pytest.raises(ModelNotFoundError):
        contract.infer("dressed", {"x": rows(1)}, model_version="2")


@pytest.mark.parametrize(
    ("model_name", "served"), [("latest_two", {"2": 2, "10": 10}), ("all_versions", {"1": 1, "2": 2, "10": 10})]
)
def test_the_version_policy_says_what_is_served_and_the_highest_number_is_the_default(
    contract: Client, model_name: str, served: dict[str, int], rows: Callable[..., Any]
) -> None:
    for version in ("1", "2", "10"):
        if version in served:
            answer = contract.infer(model_name, {"x": rows(1)}, model_version=version)
            assert (answer.model_version, answer["y"][0, 0]) == (version, served[version])
        else:
            with pytest.raises(ModelNotFoundError):
                contract.infer(model_name, {"x": rows(1)}, model_version=version)

    assert contract.infer(model_name, {"x": rows(1)})["y"][0, 0] == 10


def test_two_instances_answer_as_one_and_so_does_a_response_cache(contract: Client, rows: Callable[..., Any]) -> None:
    """Equal requests and different ones, from more callers than instances."""
    barrier = threading.Barrier(8)

    def ask(i: int) -> bool:
        barrier.wait(10)
        return all(
            contract.infer("dressed", {"x": rows(value, -value)})["y"][:, 0].tolist() == [-value, value]
            for value in [i, 1, 1, i + 100, 1] * 10
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_a_label_comes_with_a_classification(wire: Any) -> None:
    from tritonclient import grpc

    tensor = grpc.InferInput("x", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.array([[3, 1]], np.float32))

    answer = wire.infer("dressed", [tensor], outputs=[grpc.InferRequestedOutput("y", class_count=1)])

    assert answer.as_numpy("y").tolist() == [[b"-1.000000:1:right"]]


def test_a_request_of_high_priority_overtakes_those_that_wait(wire: Any) -> None:
    from tritonclient import grpc

    tensor = grpc.InferInput("x", [1, 256, 256], "FP32")
    tensor.set_data_from_numpy(np.eye(256, dtype=np.float32)[None])
    finished: list[str] = []
    errors: list[Any] = []
    all_done = threading.Semaphore(0)

    def ask(request_id: str, priority: int) -> None:
        def done(result: Any, error: Any) -> None:
            finished.append(request_id)
            errors.extend([error] if error else [])
            all_done.release()

        wire.async_infer("priorities", [tensor], done, request_id=request_id, priority=priority)

    for i in range(40):
        ask(f"low {i}", 2)
    ask("high", 1)
    for _ in range(41):
        assert all_done.acquire(timeout=60)

    assert errors == []
    assert finished.index("high") < 35


def test_a_priority_beyond_the_levels_counts_as_the_default(wire: Any) -> None:
    from tritonclient import grpc

    tensor = grpc.InferInput("x", [1, 256, 256], "FP32")
    tensor.set_data_from_numpy(np.eye(256, dtype=np.float32)[None])

    assert wire.infer("priorities", [tensor], priority=9).as_numpy("y").shape == (1, 256, 256)


def test_the_control_of_a_sequence_reaches_the_model(wire: Any, rows: Callable[..., Any]) -> None:
    from tritonclient import grpc

    def ask(sequence: int, *, start: bool = False, end: bool = False) -> float:
        tensor = grpc.InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(rows(sequence))
        answer = wire.infer("sequences", [tensor], sequence_id=sequence, sequence_start=start, sequence_end=end)
        return float(answer.as_numpy("y")[0, 0])

    assert [ask(3, start=True), ask(4, start=True), ask(3), ask(4), ask(3, end=True), ask(4, end=True)] == [-3, -4, 3, 4, 3, 4]
