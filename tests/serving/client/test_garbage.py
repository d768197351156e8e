"""Servers that answer what is no answer: on every wire, to both clients, it is an error of the tree, soon, and costs no memory."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidResponseError,
    ServerFailureError,
    UnavailableError,
)
from convoy.serving.client import AsyncClient, Client, InferResult
from convoy.serving.client import _grpc_wire as grpc_wire
from convoy.serving.client import _http_wire as http_wire
from convoy.serving.client._call import (
    Call,
    DescribeModel,
    DescribeServer,
    Infer,
    ListModels,
    ReadConfig,
    ReadStatistics,
    Tensor,
)
from convoy.serving.client._http_wire import HEADER_LENGTH

X = np.arange(6, dtype=np.float32).reshape(3, 2)
SLACK_S = 1.0
TIMEOUT_S = 0.4


# Right answers, and what becomes of them when bytes are changed, added or lost. ---------------------------------------------------


INFER = Infer("m", "", inputs=(Tensor("x", "FP32", (3, 2), X.tobytes()),), outputs=("y",))
CALLS: tuple[Call[Any], ...] = (
    INFER,
    DescribeServer(),
    DescribeModel("m"),
    ReadConfig("m"),
    ReadStatistics("m"),
    ListModels(),
)


def rest_answers() -> dict[Call[Any], tuple[bytes, dict[str, str]]]:
    outputs = [
        {"name": "y", "datatype": "FP32", "shape": [3, 2], "parameters": {"binary_data_size": 24}},
        {"name": "t", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 13}},
        {"name": "n", "datatype": "INT64", "shape": [2], "data": [1, -2]},
        {"name": "w", "datatype": "BYTES", "shape": [1, 2], "data": [["a", "b"]]},
    ]
    header = json.dumps({"model_name": "m", "model_version": "1", "outputs": outputs}).encode()
    text = b"\x03\0\0\0one\x02\0\0\0to"
    tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    documents: dict[Call[Any], Any] = {
        DescribeServer(): {"name": "triton", "version": "2", "extensions": ["binary_tensor_data"]},
        DescribeModel("m"): {"name": "m", "versions": ["1"], "platform": "p", "inputs": tensors, "outputs": tensors},
        ReadConfig("m"): {"name": "m", "max_batch_size": 8, "dynamic_batching": {}},
        ReadStatistics("m"): {"model_stats": [{"name": "m", "inference_count": 3}]},
        ListModels(): [{"name": "m", "version": "1", "state": "READY", "reason": ""}],
    }
    answers = {call: (json.dumps(document).encode(), dict[str, str]()) for call, document in documents.items()}
    return {INFER: (header + X.tobytes() + text, {HEADER_LENGTH: str(len(header))}), **answers}


def grpc_answers() -> dict[Call[Any], bytes]:
    infer = service_pb2.ModelInferResponse(model_name="m", model_version="1", raw_output_contents=[X.tobytes(), b"\x01\0\0\0a"])
    infer.outputs.add(name="y", datatype="FP32", shape=[3, 2])
    infer.outputs.add(name="t", datatype="BYTES", shape=[1])
    metadata = service_pb2.ModelMetadataResponse(name="m", versions=["1"], platform="p")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
    config = service_pb2.ModelConfigResponse()
    config.config.name, config.config.max_batch_size = "m", 8
    config.config.parameters["p"].string_value = "text"
    statistics = service_pb2.ModelStatisticsResponse()
    statistics.model_stats.add(name="m", version="1", inference_count=3)
    index = service_pb2.RepositoryIndexResponse()
    index.models.add(name="m", version="1", state="READY")
    server = service_pb2.ServerMetadataResponse(name="triton", version="2", extensions=["e"])
    answers = {
        INFER: infer,
        DescribeServer(): server,
        DescribeModel("m"): metadata,
        ReadConfig("m"): config,
        ReadStatistics("m"): statistics,
        ListModels(): index,
    }
    return {call: answer.SerializeToString() for call, answer in answers.items()}


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of which some are changed, added, lost or moved."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        n = draw(st.integers(0, 8))
        put = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"-1", b"null", b"1e999", b"[" * 40, b'"', b"\xff" * 10])))
        data = data[:at] + put + data[at + n :]
    return data


def is_whole(result: Any) -> bool:
    """Whether arrays have the elements that their shapes say, each of its kind."""
    if not isinstance(result, InferResult):
        return True
    elements = {name: array.ravel().tolist() for name, array in result.outputs.items()}
    texts = (value for name, values in elements.items() if result[name].dtype == object for value in values)
    return all(len(elements[name]) == array.size for name, array in result.outputs.items()) and all(
        isinstance(text, bytes) for text in texts
    )


@pytest.mark.filterwarnings("ignore:NumPy will stop allowing conversion of out-of-bound:DeprecationWarning")
@settings(max_examples=300)
@given(st.data())
def test_a_rest_answer_with_other_bytes_is_an_answer_or_invalid(data: st.DataObject) -> None:
    call, (body, headers) = data.draw(st.sampled_from(list(rest_answers().items())), label="call")
    body = data.draw(damaged(body), label="body")
    if headers and data.draw(st.booleans()):
        headers = {HEADER_LENGTH: data.draw(st.one_of(st.integers(-2, 10**30).map(str), st.text(max_size=9)), label="length")}
    with contextlib.suppress(InvalidResponseError):
        assert is_whole(http_wire.decode_response(call, body, headers))


@settings(max_examples=300)
@given(st.data())
def test_a_grpc_answer_with_other_bytes_is_an_answer_or_invalid(data: st.DataObject) -> None:
    call, body = data.draw(st.sampled_from(list(grpc_answers().items())), label="call")
    body = data.draw(damaged(body), label="body")
    with contextlib.suppress(InvalidResponseError):
        assert is_whole(grpc_wire.decode_response(call, body))


PLAIN = Infer("m", "", inputs=(Tensor("x", "FP32", (3, 2), X.tobytes()),), outputs=("y", "n"), request_id="an id-1")


def plain_answer(x: np.ndarray, n: np.ndarray, request_id: str, *, version: str = "1") -> bytes:
    answer = service_pb2.ModelInferResponse(model_name="m", model_version=version, id=request_id)
    answer.outputs.add(name="y", datatype="FP32", shape=x.shape)
    answer.outputs.add(name="n", datatype="INT64", shape=n.shape)
    answer.raw_output_contents.extend([x.tobytes(), n.tobytes()])
    return bytes(answer.SerializeToString())


def outcome_of(call: Infer, data: bytes, alike: dict[Any, Any] | None) -> Any:
    try:
        result = grpc_wire.decode_response(call, data, alike)
    except InvalidResponseError as error:
        return str(error)
    return result.model_name, result.model_version, {name: (a.dtype, a.shape, a.tobytes()) for name, a in result.outputs.items()}


@settings(max_examples=300)
@given(st.data())
def test_an_answer_like_an_earlier_one_is_read_as_protobuf_reads_it(data: st.DataObject) -> None:
    alike: dict[Any, Any] = {}
    grpc_wire.decode_response(PLAIN, plain_answer(X, np.arange(3), "an id-1"), alike)
    assert len(alike) == 1
    later = replace(PLAIN, request_id=data.draw(st.sampled_from(["an id-1", "another", ""])))
    rows = data.draw(st.integers(0, 4))
    numbers = np.array(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows)), np.int64)
    body = plain_answer(np.full((rows, 2), 7, np.float32), numbers, later.request_id, version=data.draw(st.sampled_from("12")))
    if data.draw(st.booleans()):
        body = data.draw(damaged(body), label="body")
    assert outcome_of(later, body, dict(alike)) == outcome_of(later, body, None)


def test_what_is_read_of_an_answer_like_an_earlier_one_is_the_callers_own() -> None:
    alike: dict[Any, Any] = {}
    body = plain_answer(X, np.arange(3), "an id-1")
    for _ in range(2):
        result = grpc_wire.decode_response(PLAIN, body, alike)
        result["y"][:] = 0
    assert np.array_equal(grpc_wire.decode_response(PLAIN, body, alike)["y"], X)


def test_an_answer_that_is_cut_short_is_invalid_wherever_it_is_cut() -> None:
    body, headers = rest_answers()[INFER]
    assert is_whole(http_wire.decode_response(INFER, body, headers))
    for n in range(len(body)):
        with pytest.raises(InvalidResponseError):
            http_wire.decode_response(INFER, body[:n], headers)


JSON = {
    "nested too deep": b'{"outputs": ' + b"[" * 100_000,
    "elements nested too deep": b'{"outputs": [{"name": "y", "datatype": "BYTES", "shape": [1], "data": %s}]}'
    % (b"[" * 800 + b"]" * 800),
    "not UTF-8": b'{"outputs": "\xff\xfe"}',
    "a number without end": b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [%s]}]}' % (b"1" * 5000),
    "an infinite extent": b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [Infinity], "data": [1]}]}',
    "a fractional extent": b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1.0], "data": [1]}]}',
    "a null": b"null",
    "a web page": b"<!DOCTYPE html><html><body>Welcome to nginx!</body></html>",
}


@pytest.mark.parametrize("body", JSON.values(), ids=JSON.keys())
def test_json_that_is_none_is_an_invalid_response(body: bytes) -> None:
    with pytest.raises(InvalidResponseError):
        http_wire.decode_response(INFER, body, {})
    for call in CALLS:
        with contextlib.suppress(InvalidResponseError):  # to some it is an odd answer
            http_wire.decode_response(call, body, {})
    assert http_wire.error_text(body)


def test_metadata_and_header_lengths_of_numbers_that_cannot_be_are_invalid() -> None:
    for extent in (b"1e999", b"NaN", b'"x"', b"[]"):
        document = b'{"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [%s]}], "outputs": []}' % extent
        with pytest.raises(InvalidResponseError):
            http_wire.decode_response(DescribeModel("m"), document, {})
    for length in ("9" * 5000, "²", "+1", "1_0", " 1"):
        with pytest.raises(InvalidResponseError):
            http_wire.decode_response(INFER, rest_answers()[INFER][0], {HEADER_LENGTH: length})


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("UINT8", [300, 1]),
        ("INT8", [-129, 1]),
        ("UINT32", [-1, 1]),
        ("UINT64", [-1, 1]),
        ("INT64", [2**63, 1]),
        ("INT32", [1.5, 1]),
        ("INT32", ["7", 1]),
        ("INT32", [True, False]),
        ("FP32", ["1.5", "2"]),
        ("BOOL", ["false", "true"]),
        ("BOOL", [2, 0]),
    ],
)
def test_numbers_in_json_that_a_datatype_does_not_have_are_invalid_and_not_made_to_fit(datatype: str, values: list[Any]) -> None:
    document = {"outputs": [{"name": "y", "datatype": datatype, "shape": [2], "data": values}]}
    with pytest.raises(InvalidResponseError):
        http_wire.decode_response(INFER, json.dumps(document).encode(), {})


SHAPES = [[2**40], [2**62, 2**62], [2**70], [-1], [-(2**40), -1], [2**70, 0], [0, 2**63], [1] * 70]


@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "BF16", "BYTES", "INT64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_shape_beyond_all_memory_is_refused_before_any_is_taken(datatype: str, shape: list[int]) -> None:
    elements = 1 if len(shape) > 9 else 0
    blob = b"\0" * elements * {"FP32": 4, "BOOL": 1, "BF16": 2, "BYTES": 4, "INT64": 8}[datatype]
    output = {"name": "y", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(blob)}}
    header = json.dumps({"outputs": [output]}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidResponseError):
            http_wire.decode_response(INFER, header + blob, {HEADER_LENGTH: str(len(header))})
        with pytest.raises(InvalidResponseError):
            http_wire.decode_response(INFER, json.dumps({"outputs": [{**output, "parameters": {}, "data": []}]}).encode(), {})
        if all(-(2**63) <= extent < 2**63 for extent in shape):
            answer = service_pb2.ModelInferResponse(model_name="m", raw_output_contents=[blob])
            answer.outputs.add(name="y", datatype=datatype, shape=shape)
            with pytest.raises(InvalidResponseError):
                grpc_wire.decode_response(INFER, answer.SerializeToString())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# Servers on sockets. --------------------------------------------------------------------------------------------------------------


class RawServer:
    """A TCP server; each connection is given to a function, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket, threading.Event], None]) -> None:
        self._serve = serve
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    return
                self._threads.append(threading.Thread(target=self._talk, args=(connection,), daemon=True))
                self._threads[-1].start()

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        with connection, contextlib.suppress(OSError):
            self._serve(connection, self._stop)

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def raw() -> Iterator[Callable[[Callable[[socket.socket, threading.Event], None]], RawServer]]:
    """Start servers that write on their connections what the test says."""
    servers: list[RawServer] = []

    def start(serve: Callable[[socket.socket, threading.Event], None]) -> RawServer:
        servers.append(RawServer(serve))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


async def outcomes(
    url: str, method: str, *arguments: Any, timeout_s: float = TIMEOUT_S, within_s: float | None = None
) -> list[Any]:
    """What both clients end with; neither may take longer than its deadline, or may take it at all if ``within_s`` says so."""

    def ask() -> Any:
        with Client(url, retry=None) as client:
            try:
                return getattr(client, method)(*arguments, timeout_s=timeout_s)
            except Exception as error:
                return error

    async def ask_async() -> Any:
        async with AsyncClient(url, retry=None) as client:
            try:
                return await getattr(client, method)(*arguments, timeout_s=timeout_s)
            except Exception as error:
                return error

    ended = []
    for outcome in (lambda: asyncio.to_thread(ask), ask_async):
        started = time.monotonic()
        ended.append(await asyncio.wait_for(outcome(), timeout_s + 10))
        # a client that is closed gives an inference that it has given up a second to end
        assert time.monotonic() - started < (timeout_s if within_s is None else within_s) + SLACK_S + 1.0
    return ended


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """The path and the body of an HTTP/1.1 request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += receive(connection)
    return head.split()[1], body


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise OSError("the peer has ended")
    return data


def response(body: bytes, *, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


MODELS = b'[{"name": "m", "version": "1", "state": "READY"}]'
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

REST: dict[str, tuple[bytes, type[ClientError] | tuple[type[ClientError], ...]]] = {
    "100 and silence": (b"HTTP/1.1 100 Continue\r\n\r\n", (DeadlineExceededError, UnavailableError)),
    "101": (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n", UnavailableError),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", InvalidResponseError),
    "206": (response(MODELS, status=b"206 Partial Content"), InvalidResponseError),
    "301": (response(b"", status=b"301 Moved", headers=b"location: http://127.0.0.1:1/\r\n"), InvalidResponseError),
    "302": (response(b"", status=b"302 Found", headers=b"location: /v2\r\n"), InvalidResponseError),
    "304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", InvalidResponseError),
    "999": (response(b"", status=b"999 None"), InvalidResponseError),
    "a web page": (response(b"<html>Welcome</html>", headers=b"content-type: text/html\r\n"), InvalidResponseError),
    "compressed though nobody asked": (response(b"\x1f\x8b\x08\0", headers=b"content-encoding: gzip\r\n"), InvalidResponseError),
    "too short": (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n" + MODELS, UnavailableError),
    "too long": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + MODELS, InvalidResponseError),
    "two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n" + MODELS, UnavailableError),
    "a length that is none": (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n" + MODELS, UnavailableError),
    "chunks that are none": (CHUNKED + b"zz\r\n" + MODELS, UnavailableError),
    "chunks without end": (CHUNKED + b"5\r\n[{}\r\n", UnavailableError),
    "a header without a colon": (b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n" + MODELS, UnavailableError),
    "a header of a megabyte": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * (1 << 20), UnavailableError),
    "a null byte": (b"HTTP/1.1 200 OK\r\nx: \0\r\n\r\n" + MODELS, UnavailableError),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", (InvalidResponseError, UnavailableError)),
    "HTTP/0.9": (MODELS, (InvalidResponseError, UnavailableError)),
    "nothing": (b"", UnavailableError),
    "an error of other words": (response(b"\xff\xfe" + b"[" * 5000, status=b"500 No"), ServerFailureError),
    "an error nested too deep": (response(b"[" * 100_000, status=b"500 No"), ServerFailureError),
}


@pytest.mark.parametrize(("answer", "expected"), REST.values(), ids=REST.keys())
async def test_what_is_no_rest_answer_is_an_error_at_once(answer: bytes, expected: Any, raw: Any) -> None:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        read_request(connection)
        connection.sendall(answer)

    for outcome in await outcomes(f"http://127.0.0.1:{raw(serve).port}", "models", timeout_s=5.0, within_s=0.5):
        assert isinstance(outcome, expected), outcome


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_noise_is_an_error_in_time(scheme: str, raw: Any) -> None:
    noise = random.Random(scheme)

    def serve(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(1 << 16)
        connection.sendall(noise.randbytes(noise.choice([1, 9, 100, 5000])))
        stop.wait(0.1)

    port = raw(serve).port
    for _ in range(10):
        for outcome in await outcomes(f"{scheme}://127.0.0.1:{port}", "models", timeout_s=0.3):
            assert isinstance(outcome, (InvalidResponseError, UnavailableError, ServerFailureError, DeadlineExceededError)), outcome


def by_drops(head: bytes, drop: bytes, pause_s: float) -> Callable[[socket.socket, threading.Event], None]:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        read_request(connection)
        connection.sendall(head)
        while not stop.wait(pause_s):
            connection.sendall(drop)

    return serve


@pytest.mark.parametrize(
    ("head", "drop", "pause_s"),
    [
        (b"HTTP/1.1 200 OK\r\nx: ", b"y", 0.02),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0.02),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.0),
        (CHUNKED, b"1\r\n \r\n", 0.02),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n", b" ", 0.02),
    ],
    ids=["header", "headers", "informational", "informational in a flood", "chunks", "body"],
)
async def test_a_rest_server_that_drips_without_end_does_not_hold_a_call(
    head: bytes, drop: bytes, pause_s: float, raw: Any
) -> None:
    port = raw(by_drops(head, drop, pause_s)).port
    for outcome in await outcomes(f"http://127.0.0.1:{port}", "models"):
        assert isinstance(outcome, DeadlineExceededError), outcome


async def test_a_rest_server_that_takes_a_request_by_drops_does_not_hold_a_call(raw: Any) -> None:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        while True:
            data = receive(connection)
            if data.startswith(b"GET"):
                body = V2 if data.startswith(b"GET /v2 ") else METADATA
                connection.sendall(response(body))
            while data.startswith(b"POST") and not stop.wait(0.02):
                connection.recv(1 << 18)

    large = {"x": np.zeros((4_000_000, 2), np.float32)}
    for outcome in await outcomes(f"http://127.0.0.1:{raw(serve).port}", "infer", "m", large):
        assert isinstance(outcome, DeadlineExceededError), outcome


async def test_a_rest_answer_without_end_does_not_fill_the_memory(raw: Any) -> None:
    port = raw(by_drops(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", b" " * (1 << 20), 0.0)).port
    before = peak_bytes()
    for outcome in await outcomes(f"http://127.0.0.1:{port}", "models", timeout_s=2.0):
        assert isinstance(outcome, InvalidResponseError), outcome
    assert peak_bytes() - before < 400 << 20


def peak_bytes() -> int:
    """The most memory that this process has had."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


# Models that are not what they say they are. --------------------------------------------------------------------------------------

V2 = json.dumps({"name": "double", "version": "1", "extensions": ["binary_tensor_data"]}).encode()
METADATA = json.dumps(
    {
        "name": "m",
        "versions": ["1"],
        "platform": "p",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}, {"name": "z", "datatype": "INT64", "shape": [-1]}],
    }
).encode()
RIGHT = {"y": X, "z": np.arange(3)}

Outputs = dict[str, np.ndarray]
WIRE = {"float32": "FP32", "int64": "INT64", "float64": "FP64", "int32": "INT32"}


def rest_model(give: Callable[[], tuple[str, str, Outputs]]) -> Any:
    def behave(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path.endswith("/config"):
            return 200, {}, b'{"name": "m", "max_batch_size": 8}'
        if not path.endswith("/infer"):
            return 200, {}, METADATA
        name, version, outputs = give()
        tensors = [
            {
                "name": key,
                "datatype": WIRE[array.dtype.name],
                "shape": array.shape,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for key, array in outputs.items()
        ]
        head = json.dumps({"model_name": name, "model_version": version, "outputs": tensors}).encode()
        return 200, {HEADER_LENGTH: str(len(head))}, head + b"".join(array.tobytes() for array in outputs.values())

    return behave


def grpc_model(give: Callable[[], tuple[str, str, Outputs]]) -> Any:
    def behave(method: str, request: bytes, context: Any) -> bytes:
        if method == "ModelConfig":
            config = service_pb2.ModelConfigResponse()
            config.config.name, config.config.max_batch_size = "m", 8
            return bytes(config.SerializeToString())
        if method == "ModelMetadata":
            metadata = service_pb2.ModelMetadataResponse(name="m")
            for key, tensors in json.loads(METADATA).items():
                if key in ("inputs", "outputs"):
                    for tensor in tensors:
                        getattr(metadata, key).add(**tensor)
            return bytes(metadata.SerializeToString())
        name, version, outputs = give()
        answer = service_pb2.ModelInferResponse(model_name=name, model_version=version)
        for key, array in outputs.items():
            answer.outputs.add(name=key, datatype=WIRE[array.dtype.name], shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return bytes(answer.SerializeToString())

    return behave


LIES: dict[str, tuple[str, str, Outputs]] = {
    "another model": ("other", "1", RIGHT),
    "another version": ("m", "2", RIGHT),
    "no output": ("m", "1", {}),
    "an output too few": ("m", "1", {"y": X}),
    "another model's outputs": ("m", "1", {"scores": X, "classes": np.arange(3)}),
    "another datatype": ("m", "1", {**RIGHT, "y": X.astype(np.float64)}),
    "another datatype of the same size": ("m", "1", {**RIGHT, "y": X.view(np.int32)}),
    "an axis too many": ("m", "1", {**RIGHT, "y": X[None]}),
    "an axis too few": ("m", "1", {**RIGHT, "y": X.ravel()}),
    "axes turned around": ("m", "1", {**RIGHT, "y": X.T.copy()}),
    "a row too few": ("m", "1", {"y": X[:2], "z": np.arange(2)}),
    "rows of nothing": ("m", "1", {"y": X[:0], "z": np.arange(0)}),
}


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_an_answer_that_is_not_what_the_model_gives_is_invalid(
    scheme: str, lie: tuple[str, str, Outputs], http_double: Any, grpc_double: Any
) -> None:
    given_ = [("m", "1", RIGHT)]
    double = http_double(rest_model(lambda: given_[0])) if scheme == "http" else grpc_double(grpc_model(lambda: given_[0]))
    with Client(double.url) as client:
        async with AsyncClient(double.url) as aclient:
            ask = functools.partial(client.infer, "m", {"x": X}, model_version="1")
            ask_async = functools.partial(aclient.infer, "m", {"x": X}, model_version="1")
            for _ in range(2):  # the second time a model is known, another way is taken
                given_[0] = ("m", "1", RIGHT)
                assert np.array_equal(ask()["y"], X)
                assert np.array_equal((await ask_async())["z"], RIGHT["z"])
                given_[0] = lie
                with pytest.raises(InvalidResponseError):
                    ask()
                with pytest.raises(InvalidResponseError):
                    await ask_async()


@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_an_answer_that_comes_twice_is_not_taken_for_that_to_the_next_request(client: type[Any], raw: Any) -> None:
    """A proxy that doubles an answer puts HTTP/1.1 out of step: each request is met by the answer to the one before."""

    def serve(connection: socket.socket, stop: threading.Event) -> None:
        late = b""
        while True:
            path, body = read_request(connection)
            if not path.endswith(b"/infer"):
                connection.sendall(response(V2 if path == b"/v2" else METADATA))
                continue
            document = {
                "model_name": "m",
                "id": json.loads(body[: body.rindex(b"}") + 1])["id"],
                "outputs": [
                    {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
                    {"name": "z", "datatype": "INT64", "shape": [1], "data": [0]},
                ],
            }
            head = json.dumps(document).encode()
            answer = response(head + body[-8:], headers=f"{HEADER_LENGTH}: {len(head)}\r\n".encode())
            connection.sendall(late or answer)  # the double comes when the next request is under way
            late = b"" if late else answer

    url = f"http://127.0.0.1:{raw(serve).port}"
    async with contextlib.AsyncExitStack() as stack:
        if client is AsyncClient:
            aclient = await stack.enter_async_context(AsyncClient(url, retry=None))
            ask: Any = functools.partial(aclient.infer, "m")
        else:
            ask = functools.partial(asyncio.to_thread, stack.enter_context(Client(url, retry=None)).infer, "m")
        right = 0
        for i in range(6):
            with contextlib.suppress(InvalidResponseError):
                answer = await ask({"x": np.full((1, 2), i, np.float32)})
                assert answer["y"].tolist() == [[i, i]]
                right += 1
    assert right >= 3, "a connection out of step is given up, and the next one is not"


# gRPC, frame by frame. ------------------------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """A literal header without indexing (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
STATUS_200 = b"\x88"  # of HPACK's static table
HEAD = STATUS_200 + header(b"content-type", b"application/grpc")
OK = header(b"grpc-status", b"0")


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message (length-prefixed)."""
    return bytes([compressed]) + struct.pack(">I", len(payload)) + payload


def frames(answer: Callable[[int], bytes]) -> Callable[[socket.socket, threading.Event], None]:
    """A gRPC server that answers each request with frames."""

    def exactly(connection: socket.socket, n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = connection.recv(n - len(data))
            if not part:
                raise OSError("the peer has ended")
            data += part
        return data

    def serve(connection: socket.socket, stop: threading.Event) -> None:
        exactly(connection, 24)  # the preface
        connection.sendall(frame(SETTINGS, 0, 0))
        while not stop.is_set():
            head = exactly(connection, 9)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            exactly(connection, int.from_bytes(head[:3], "big"))
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(frame(SETTINGS, ACK, 0))
            if kind == PING and not flags & ACK:
                connection.sendall(frame(PING, ACK, 0, bytes(8)))
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                connection.sendall(answer(stream))

    return serve


def whole(stream: int, head: bytes = HEAD, data: bytes = b"", trailers: bytes = OK) -> bytes:
    body = frame(DATA, 0, stream, data) if data else b""
    return frame(HEADERS, END_HEADERS, stream, head) + body + frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers)


def trailers_only(stream: int, fields: bytes) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, fields)


GRPC: dict[str, tuple[Callable[[int], bytes], type[ClientError]]] = {
    "trailers only, OK": (lambda s: trailers_only(s, HEAD + OK), InvalidResponseError),
    "trailers only, INTERNAL": (lambda s: trailers_only(s, HEAD + header(b"grpc-status", b"13")), ServerFailureError),
    "a status that is none": (lambda s: trailers_only(s, HEAD + header(b"grpc-status", b"99")), ServerFailureError),
    "a status in words": (lambda s: trailers_only(s, HEAD + header(b"grpc-status", b"fine")), ServerFailureError),
    "OK without a message": (lambda s: whole(s), InvalidResponseError),
    "a message cut short, and OK": (lambda s: whole(s, data=message(b"x" * 9)[:-2]), InvalidResponseError),
    "a message that is none": (lambda s: whole(s, data=message(b"\xff" * 9)), InvalidResponseError),
    "two messages": (lambda s: whole(s, data=message(b"") * 2), DeadlineExceededError),
    "a message of 4 GiB": (lambda s: whole(s, data=b"\0\xff\xff\xff\xff" + bytes(99)), InvalidResponseError),
    "compressed, but how?": (lambda s: whole(s, data=message(b"x", compressed=True)), ServerFailureError),
    "no status": (lambda s: frame(HEADERS, END_HEADERS, s, HEAD) + frame(DATA, END_STREAM, s, message(b"")), ServerFailureError),
    "a redirect": (lambda s: trailers_only(s, b"\x08\x03302" + header(b"location", b"/")), ServerFailureError),
    "a web page": (
        lambda s: (
            frame(HEADERS, END_HEADERS, s, STATUS_200 + header(b"content-type", b"text/html"))
            + frame(DATA, END_STREAM, s, b"<html>Welcome</html>")
        ),
        ServerFailureError,
    ),
    "a stream cancelled": (lambda s: frame(RST_STREAM, 0, s, struct.pack(">I", 8)), UnavailableError),
    "a stream refused": (lambda s: frame(RST_STREAM, 0, s, struct.pack(">I", 7)), UnavailableError),
    "a stream broken": (lambda s: frame(RST_STREAM, 0, s, struct.pack(">I", 2)), ServerFailureError),
    "good-bye": (lambda s: frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)), UnavailableError),
    "headers that are none": (lambda s: trailers_only(s, b"\xff" * 7), ServerFailureError),
    "HTTP/1.1": (lambda s: response(MODELS), ClientError),
    "noise": (lambda s: bytes(range(256)) * 10, ServerFailureError),
    "silence": (lambda s: b"", DeadlineExceededError),
}


@pytest.mark.parametrize(("answer", "expected"), GRPC.values(), ids=GRPC.keys())
async def test_what_is_no_grpc_answer_is_an_error_in_time(answer: Callable[[int], bytes], expected: Any, raw: Any) -> None:
    url = f"grpc://127.0.0.1:{raw(frames(answer)).port}"
    for outcome in await outcomes(url, "models"):
        assert isinstance(outcome, expected), outcome

    metadata = service_pb2.ModelMetadataResponse(name="m")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
    described = message(metadata.SerializeToString())

    def describe_first(stream: int) -> bytes:
        return whole(stream, data=described) if stream == 1 else answer(stream)

    url = f"grpc://127.0.0.1:{raw(frames(describe_first)).port}"
    for outcome in await outcomes(url, "infer", "m", {"x": X[:1]}):  # on another way than questions
        assert isinstance(outcome, expected), outcome


async def test_a_grpc_server_that_drips_does_not_hold_a_call(raw: Any) -> None:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(1 << 16)
        connection.sendall(frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0))
        connection.sendall(frame(HEADERS, END_HEADERS, 1, HEAD) + frame(DATA, 0, 1, b"\0\0\xff\xff\xff"))
        while not stop.wait(0.02):
            connection.sendall(frame(DATA, 0, 1, b"x"))

    for outcome in await outcomes(f"grpc://127.0.0.1:{raw(serve).port}", "models"):
        assert isinstance(outcome, DeadlineExceededError), outcome
