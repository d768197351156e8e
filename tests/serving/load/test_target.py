"""Requests that are prepared once: what is refused before a load, and the bytes that are sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import InvalidResponseError, ModelNotFoundError, UsageError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INTERFACE_PARAMETER, ModelInterface, TensorSpec
from convoy.serving.client import Client
from convoy.serving.client.testing import FakeModel, FakeTransport
from convoy.serving.load import Target
from convoy.serving.load import target as target_module

INTERFACE = ModelInterface(
    labels=("a", "b"),
    image=ImageSpec(height_px=2, width_px=2, channels=1, resize="stretch"),
    inputs=(TensorSpec(name="x", datatype="UINT8", dims=(2, 2, 1), value_range=(5, 9)),),
    outputs=(TensorSpec(name="y", datatype="FP32", dims=(2,)),),
)
CONFIG: dict[str, Any] = {
    "max_batch_size": 8,
    "parameters": {INTERFACE_PARAMETER: {"string_value": INTERFACE.model_dump_json()}},
}


def rows(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"y": np.zeros((len(inputs["x"]), 2), np.float32)}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has ``Target.of`` ask a fake server; gives back the calls that it gets."""

    def start(model: FakeModel) -> list[Any]:
        fake = FakeTransport({"m": model})
        monkeypatch.setattr(target_module, "Client", lambda url, **options: Client(url, transport=fake, **options))
        return fake.calls

    return start


def model(config: dict[str, Any] = CONFIG, run: Any = rows, shape: tuple[int, ...] = (-1, 2, 2, 1)) -> FakeModel:
    return FakeModel(run, {"x": ("UINT8", shape)}, config, "3")


@pytest.mark.parametrize("url", ["http://host:1", "grpc://host:1"])
def test_the_request_that_was_tried_is_the_one_that_is_sent(url: str, serve: Any) -> None:
    calls = serve(model())
    made = Target.of(url, "m", batch_size=4)
    sent = bytes(calls[-1].inputs[0].data)
    assert len(sent) == 16
    assert set(sent) <= set(range(5, 10))  # the range that the deployed interface states
    assert sent in made.request
    assert (made.batch_size, made.max_batch_size, made.answered_version, made.shapes) == (4, 8, "3", {"x": (2, 2, 1)})
    assert made.task["host"] == "host"
    assert Target.of(url, "m", batch_size=4).request == made.request
    assert Target.of(url, "m", batch_size=4, seed=1).request != made.request


def test_an_http_request_is_whole(serve: Any) -> None:
    serve(model())
    request = Target.of("http://[::1]:8000", "m", model_version="3").request
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v2/models/m/versions/3/infer HTTP/1.1"
    assert "host: [::1]:8000" in lines
    assert f"content-length: {len(body)}" in lines


def test_given_inputs_bring_their_batch_axis(serve: Any) -> None:
    serve(model())
    images = np.arange(20, dtype=np.uint8).reshape(5, 2, 2, 1)
    made = Target.of("grpc://host", "m", inputs={"x": images})
    assert made.batch_size == 5
    assert images.tobytes() in made.request


def test_a_model_without_a_batch_axis_is_asked_one_at_a_time(serve: Any) -> None:
    serve(model({"max_batch_size": 0}, lambda _: {"y": np.zeros(3, np.float32)}, (2, 2)))
    made = Target.of("grpc://host", "m")
    assert (made.batch_size, made.max_batch_size, made.shapes) == (1, 0, {"x": (2, 2)})
    with pytest.raises(UsageError, match="m has no batch axis, found 2"):
        Target.of("grpc://host", "m", batch_size=2)


def test_optional_inputs_are_left_out(serve: Any) -> None:
    config = {**CONFIG, "input": [{"name": "x"}, {"name": "mask", "optional": True}]}
    both = {"x": ("UINT8", (-1, 2, 2, 1)), "mask": ("FP32", (-1, 2))}
    calls = serve(FakeModel(rows, both, config, "3"))
    with pytest.raises(Exception, match="expected the inputs"):  # the fake wants all; what was sent is what counts
        Target.of("grpc://host", "m")
    assert [tensor.name for tensor in calls[-1].inputs] == ["x"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 9}, "takes batches of at most 8, found 9"),
        ({"batch_size": 0}, "batch_size: expected 1 or more"),
        ({"streams": 0}, "streams: expected 1 or more"),
        ({"inputs": {"x": np.zeros((1, 2, 2, 1), np.uint8)}, "shapes": {"x": (2, 2, 1)}}, "given inputs have their own"),
        ({"inputs": {"x": np.zeros((1, 2, 2, 1), np.uint8), "z": np.zeros(3)}}, r"found extents \[1, 3\]"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], words: str, serve: Any) -> None:
    serve(model())
    with pytest.raises(UsageError, match=words):
        Target.of("grpc://host", "m", **options)


@pytest.mark.parametrize("url", ["https://host", "grpcs://host"])
def test_encrypted_connections_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="without TLS"):
        Target.of(url, "m")


def test_a_model_that_is_not_served_is_said_at_once(serve: Any) -> None:
    serve(model())
    with pytest.raises(ModelNotFoundError):
        Target.of("grpc://host", "other")


def test_an_answer_of_another_batch_is_refused(serve: Any) -> None:
    serve(model(run=lambda _: {"y": np.zeros((1, 2), np.float32)}))
    with pytest.raises(InvalidResponseError, match=r"expected 4 rows in output 'y', found shape \[1, 2\]"):
        Target.of("grpc://host", "m", batch_size=4)


def test_a_damaged_interface_is_said(serve: Any) -> None:
    serve(model({"max_batch_size": 8, "parameters": {INTERFACE_PARAMETER: {"string_value": "{}"}}}))
    with pytest.raises(InvalidResponseError, match="convoy_interface is damaged"):
        Target.of("grpc://host", "m")
