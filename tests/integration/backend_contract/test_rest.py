"""REST as anybody may speak it: JSON bodies and binary ones, by a plain HTTP client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

pytestmark = pytest.mark.integration


@pytest.fixture
def post(http_url: str) -> Any:
    def send(model_name: str, body: Any) -> tuple[int, Any]:
        answer = httpx.post(f"{http_url}/v2/models/{model_name}/infer", json=body, timeout=30)
        return answer.status_code, answer.json()

    return send


def tensor(name: str, datatype: str, data: Any, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or list(np.shape(data)), "data": data}


def test_numbers_go_as_json_and_come_back_as_json(post: Any) -> None:
    status, answer = post(
        "several",
        {
            "id": "seven",
            "inputs": [tensor("a", "FP32", [[1.5, -2], [3, 4]]), tensor("b", "FP32", [[1, 1], [1, 1]])],
            "outputs": [{"name": "difference"}],
        },
    )

    assert (status, answer["id"], answer["model_name"]) == (200, "seven", "several")
    assert answer["outputs"] == [{"name": "difference", "datatype": "FP32", "shape": [2, 2], "data": [0.5, -3.0, 2.0, 3.0]}]


def test_data_may_be_flat(post: Any) -> None:
    status, answer = post("bare", {"inputs": [tensor("x", "FP32", [1, 2, 3, 4], [2, 2])]})

    assert (status, answer["outputs"][0]["data"]) == (200, [-1, -2, -3, -4])


def test_strings_go_as_json(post: Any) -> None:
    status, answer = post("text", {"inputs": [tensor("x", "BYTES", [["grün", "", "日本"]])]})

    assert (status, answer["outputs"][0]["data"]) == (200, ["grün", "", "日本"])


def test_integers_go_as_json_to_their_limits(post: Any) -> None:
    status, answer = post("lookup", {"inputs": [tensor("index", "INT64", [[3], [0]])]})

    assert (status, answer["outputs"][0]["data"]) == (200, [40, 10])


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [tensor("x", "FP32", [[1, 2]]), tensor("x", "FP32", [[1, 2]])],
        [tensor("x", "FP32", [[1, 2, 3]])],
        [tensor("x", "FP32", [1, 2, 3], [1, 2])],
        [tensor("x", "FP32", [["a", "b"]])],
        [tensor("x", "NO_TYPE", [[1, 2]])],
        [{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
        [{"name": "x", "datatype": "FP32", "data": [1, 2]}],
    ],
    ids=["no inputs", "twice", "shape", "too much data", "no numbers", "datatype", "no data", "no shape"],
)
def test_what_is_no_request_is_refused_with_a_reason(post: Any, inputs: list[Any]) -> None:
    """Triton's REST calls some of these errors of its own."""
    status, answer = post("bare", {"inputs": inputs})

    assert status in (400, 500)
    assert answer["error"]
    assert post("bare", {"inputs": [tensor("x", "FP32", [[1, 2]])]})[0] == 200


def test_a_body_that_is_no_json_is_refused(http_url: str) -> None:
    answer = httpx.post(f"{http_url}/v2/models/bare/infer", content=b'{"inputs": [', timeout=30)

    assert answer.status_code in (400, 500)
    assert answer.json()["error"]


def test_binary_data_follows_the_json(http_url: str) -> None:
    x = np.array([[1, -2]], np.float32)
    head = json.dumps(
        {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": x.nbytes}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()

    answer = httpx.post(
        f"{http_url}/v2/models/bare/infer",
        content=head + x.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
        timeout=30,
    )

    assert answer.status_code == 200
    size = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(answer.content[:size])["outputs"][0]["parameters"]["binary_data_size"] == x.nbytes
    assert np.frombuffer(answer.content[size:], np.float32).tolist() == [-1, 2]
