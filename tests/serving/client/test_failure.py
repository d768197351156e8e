from __future__ import annotations

import http
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpcore
import pytest

from convoy.contract import errors
from convoy.contract.errors import (
    AuthenticationError,
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    OverloadedError,
    ServerFailureError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client import AsyncClient, Client, Tls
from convoy.serving.client._call import DescribeModel, ListModels
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._failure import GRPC_STATUS, HTTPCORE_ERRORS, failure, of_http_status

ENDPOINT = Endpoint("grpc", "host", 8001)

EXPECTED = {
    "CANCELLED": UnavailableError,
    "UNKNOWN": ServerFailureError,
    "INVALID_ARGUMENT": InvalidRequestError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "NOT_FOUND": ModelNotFoundError,
    "ALREADY_EXISTS": InvalidRequestError,
    "PERMISSION_DENIED": AuthenticationError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "FAILED_PRECONDITION": InvalidRequestError,
    "ABORTED": ServerFailureError,
    "OUT_OF_RANGE": InvalidRequestError,
    "UNIMPLEMENTED": InvalidRequestError,
    "INTERNAL": ServerFailureError,
    "UNAVAILABLE": UnavailableError,
    "DATA_LOSS": ServerFailureError,
    "UNAUTHENTICATED": AuthenticationError,
}


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
async def test_every_grpc_status_becomes_one_error_for_both_clients(status: grpc.StatusCode, grpc_double: Any) -> None:
    double = grpc_double(lambda method, request, context: context.abort(status, "the server's own words"))
    caught = []
    with Client(double.url) as client, pytest.raises(ClientError) as blocking:
        client.metadata("m")
    caught.append(blocking.value)
    async with AsyncClient(double.url) as client:
        with pytest.raises(ClientError) as awaited:
            await client.metadata("m")
    caught.append(awaited.value)
    for error in caught:
        assert type(error) is EXPECTED[status.name]
        assert isinstance(error.__cause__, grpc.RpcError)
        assert all(part in str(error) for part in (double.url, "model 'm'", "the server's own words", status.name))


def test_the_grpc_table_names_every_status_and_no_other() -> None:
    assert set(GRPC_STATUS) == {status.name for status in grpc.StatusCode} - {"OK"}


HTTP_STATUSES = [status for status in http.HTTPStatus if status >= 203 and status not in (204, 205, 206, 304)]


async def test_every_http_status_becomes_one_error_for_both_clients(http_double: Any) -> None:
    double = http_double(lambda *request: (200, {}, b""))
    with Client(double.url) as client:
        async with AsyncClient(double.url) as aclient:
            for status in HTTP_STATUSES:
                body = json.dumps({"error": "the server's own words"}).encode()
                double.behave = lambda *request, status=status, body=body: (int(status), {}, body)
                with pytest.raises(ClientError) as blocking:
                    client.metadata("m")
                with pytest.raises(ClientError) as awaited:
                    await aclient.metadata("m")
                for error in (blocking.value, awaited.value):
                    assert type(error) is of_http_status(status)
                    assert all(part in str(error) for part in (double.url, "model 'm'", "own words", f"HTTP {int(status)}"))


@pytest.mark.parametrize("status", [status for status in http.HTTPStatus if status != 200])
def test_the_http_table_knows_what_every_status_is(status: http.HTTPStatus) -> None:
    special = {
        401: AuthenticationError,
        403: AuthenticationError,
        404: ModelNotFoundError,
        407: AuthenticationError,
        408: DeadlineExceededError,
        429: OverloadedError,
        501: InvalidRequestError,
        502: UnavailableError,
        503: UnavailableError,
        504: DeadlineExceededError,
        511: AuthenticationError,
    }
    hundred = {4: InvalidRequestError, 5: ServerFailureError}.get(status // 100, InvalidResponseError)
    assert of_http_status(status) is special.get(status, hundred)


def test_every_exception_that_httpcore_raises_in_a_call_is_mapped() -> None:
    kinds = {name for name, kind in vars(httpcore).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert set(HTTPCORE_ERRORS) == kinds - {"ConnectionNotAvailable"}  # it stays within the pool


def test_every_client_error_comes_with_advice_that_ends_in_a_sentence() -> None:
    for kind in ClientError.__subclasses__():
        error = failure(kind, ENDPOINT, DescribeModel("m", "2"), "words")
        assert str(error).startswith("grpc://host:8001: cannot read the metadata of model 'm' version 2: ")
        assert str(error)[-1] in ".?)"
        assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("kind", "words", "refined"),
    [
        (UnavailableError, "Exceeds maximum queue size", OverloadedError),
        (UnavailableError, "Request timeout expired", DeadlineExceededError),
        (UnavailableError, "Request for unknown model: 'm' has no available versions", UnavailableError),
        (UnavailableError, "Request for unknown model: 'm' version 1 is not at ready state", UnavailableError),
        (ModelNotFoundError, "Request for unknown model: 'm' has no available versions", UnavailableError),
        (InvalidRequestError, "Request for unknown model: 'm' has no available versions", UnavailableError),
        (ModelNotFoundError, "Request for unknown model: 'm' is not found", ModelNotFoundError),
        (ModelNotFoundError, "Request for unknown model: 'm' version 9 is not found", ModelNotFoundError),
        (InvalidRequestError, "Request for unknown model: 'm' is not found", ModelNotFoundError),
        (OverloadedError, "Received message larger than max (5 vs. 4)", InvalidRequestError),
        (UnavailableError, "Trying to connect an http1.x server", InvalidResponseError),
        (UnavailableError, "Connection refused", UnavailableError),
        (InvalidRequestError, "unexpected shape", InvalidRequestError),
    ],
)
def test_what_servers_say_in_words_only_refines_the_error(kind: type, words: str, refined: type) -> None:
    assert type(failure(kind, ENDPOINT, ListModels(), words)) is refined


@pytest.mark.parametrize("status", [400, 404, 503])
async def test_a_model_that_is_known_but_not_ready_is_unavailable_on_both_wires(
    status: int, grpc_double: Any, http_double: Any
) -> None:
    words = "Request for unknown model: 'm' has no available versions"
    body = json.dumps({"error": words}).encode()
    over_grpc = grpc_double(lambda method, request, context: context.abort(grpc.StatusCode.NOT_FOUND, words))
    over_http = http_double(lambda *request: (status, {}, body))
    for url in (over_grpc.url, over_http.url):
        with (
            Client(url) as client,
            pytest.raises(UnavailableError, match=r"no available versions\. The server knows it.*Try again"),
        ):
            client.metadata("m")
        async with AsyncClient(url) as aclient:
            with pytest.raises(UnavailableError, match="Try again"):
                await aclient.metadata("m")


DEAD = [
    "Stub process 'm_0_0' is not healthy.",
    "Failed to process the request(s) for model instance 'm_0_0', message: Stub process is not healthy.",
    "Failed to process the request(s) for model instance 'm_0_0', message: Failed to obtain the health mutex.",
]


@pytest.mark.parametrize("words", DEAD)
def test_a_model_whose_process_died_is_unavailable_on_both_wires(words: str, grpc_double: Any, http_double: Any) -> None:
    over_grpc = grpc_double(lambda method, request, context: context.abort(grpc.StatusCode.INTERNAL, words))
    over_http = http_double(lambda *request: (500, {}, json.dumps({"error": words}).encode()))
    for url in (over_grpc.url, over_http.url):
        with Client(url) as client, pytest.raises(UnavailableError, match=r"has died or hangs\..*try again"):
            client.metadata("m")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ServerFailureError, "the patient is not healthy"),
        (ServerFailureError, "Failed to start the stub process"),
        (InvalidRequestError, DEAD[0]),
    ],
)
def test_other_failures_are_not_taken_for_a_dead_process(kind: type, words: str) -> None:
    assert type(failure(kind, ENDPOINT, DescribeModel("m"), words)) is kind


def test_a_version_that_triton_cannot_read_is_explained() -> None:
    words = "failed to get model version from specified version string 'v1' (details: stol)"
    error = failure(InvalidRequestError, ENDPOINT, DescribeModel("m", "v1"), words)
    assert str(error).endswith("Expected a positive whole number as the model's version.")


def test_messages_that_the_command_line_shows_too_name_no_method_of_the_client() -> None:
    for kind in (InvalidRequestError, ModelNotFoundError, DeadlineExceededError, UnavailableError):
        assert "client." not in str(failure(kind, ENDPOINT, DescribeModel("m"), "words"))


def test_a_web_page_in_place_of_an_answer_is_cut_short() -> None:
    assert len(str(failure(ServerFailureError, ENDPOINT, ListModels(), "<p>\n" * 10_000))) < 1000


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"outputs": 3}',
        b'{"outputs": [{"name": "y"}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": "x", "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": -1}}]}',
        b'{"model_name": "other", "outputs": []}',
        b'{"model_name": "echo", "outputs": []}',
    ],
)
@pytest.mark.parametrize("stated", [None, "0", "99999", "-1", "x"])
def test_a_rest_answer_that_is_none_is_an_invalid_response(answer: bytes, stated: str | None, http_double: Any) -> None:
    metadata = {"name": "echo", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}], "outputs": []}
    headers = {} if stated is None else {"inference-header-content-length": stated}

    def behave(method: str, path: str, *rest: Any) -> Any:
        return (200, headers, answer) if path.endswith("infer") else (200, {}, json.dumps(metadata).encode())

    import numpy as np

    with Client(http_double(behave).url) as client, pytest.raises(InvalidResponseError) as caught:
        client.infer("echo", {"x": np.zeros(1, np.float32)}, outputs=["y"])
    assert "model 'echo'" in str(caught.value)


@pytest.mark.parametrize("answer", [b"\xff\xff\xff", b"\x0a\xff"])
def test_a_grpc_answer_that_is_none_is_an_invalid_response(answer: bytes, grpc_double: Any) -> None:
    with (
        Client(grpc_double(lambda *request: answer).url) as client,
        pytest.raises(InvalidResponseError, match="expected a ModelMetadataResponse message"),
    ):
        client.metadata("m")


@pytest.mark.parametrize("document", [b"nope", b"3", b'{"name": "m"}', b'{"name": "m", "inputs": [1], "outputs": []}'])
def test_rest_metadata_that_is_none_is_an_invalid_response(document: bytes, http_double: Callable[..., Any]) -> None:
    with Client(http_double(lambda *request: (200, {}, document)).url) as client, pytest.raises(InvalidResponseError):
        client.metadata("m")


def test_the_other_protocols_port_is_explained(grpc_double: Any, http_double: Any) -> None:
    http_port = http_double(lambda *request: (200, {}, b"")).port
    with Client(f"grpc://127.0.0.1:{http_port}") as client, pytest.raises(ClientError) as caught:
        client.models()
    assert "REST: 8000" in str(caught.value)
    grpc_port = grpc_double(lambda *request: b"").port
    with Client(f"http://127.0.0.1:{grpc_port}") as client, pytest.raises(ClientError) as caught:
        client.models()
    assert "REST: 8000" in str(caught.value)


async def test_an_error_that_no_server_could_mend_says_how_many_there_are(closed_port: int) -> None:
    urls = [f"grpc://127.0.0.1:{closed_port}", f"http://127.0.0.1:{closed_port}"]
    with Client(urls, retry=None) as client:
        with pytest.raises(UnavailableError, match="None of the 2 servers answered"):
            client.metadata("m")
        with pytest.raises(UnavailableError, match="0 of 2 servers did it"):
            client.load("m")


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_a_port_without_tls_is_explained(scheme: str, grpc_double: Any, http_double: Any) -> None:
    port = (grpc_double(lambda *_: b"") if scheme == "grpcs" else http_double(lambda *_: (200, {}, b"[]"))).port
    with Client(f"{scheme}://127.0.0.1:{port}", retry=None) as client, pytest.raises(UnavailableError, match="speak it"):
        client.models()


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_files_that_are_no_certificates_are_named(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name, found in (("ca.pem", "expected PEM files"), ("nowhere.pem", "nowhere.pem cannot be read: No such file")):
        with Client(f"{scheme}://localhost:1", tls=Tls(ca_file=tmp_path / name)) as client, pytest.raises(UsageError, match=found):
            client.models()


@pytest.mark.parametrize(("status", "raised"), [(500, None), (429, None), (401, AuthenticationError), (302, InvalidResponseError)])
def test_health_is_a_no_of_servers_that_fail_and_an_error_of_what_is_none(http_double: Any, status: int, raised: Any) -> None:
    with Client(http_double(lambda *_: (status, {}, b"")).url) as client:
        if raised is None:
            assert not client.live()
            assert not client.ready()
        else:
            with pytest.raises(raised):
                client.live()
