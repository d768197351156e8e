"""Real servers on real sockets that answer by a function of the test: tiny doubles of Triton's gRPC and REST front ends."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from convoy.contract.errors import InvalidRequestError, ModelNotFoundError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import ModelInterface, TensorSpec
from convoy.serving.client._call import DescribeModel, Infer, ListModels, ReadConfig, Tensor
from convoy.serving.client._datatype import datatype_of, encode
from convoy.serving.client.testing import FakeModel, FakeTransport

GrpcBehaviour = Callable[[str, bytes, Any], bytes]
HttpBehaviour = Callable[[str, str, dict[str, str], bytes], "tuple[int, dict[str, str], bytes]"]


def make_interface(labels: tuple[str, ...] = ("zero", "one", "two"), *, size_px: int = 4, channels: int = 1) -> ModelInterface:
    return ModelInterface(
        labels=labels,
        image=ImageSpec(height_px=size_px, width_px=size_px, channels=channels),
        inputs=(TensorSpec(name="image", datatype="UINT8", dims=(size_px, size_px, channels)),),
        outputs=(
            TensorSpec(name="logits", datatype="FP32", dims=(len(labels),)),
            TensorSpec(name="probabilities", datatype="FP32", dims=(len(labels),)),
        ),
    )


def by_first_pixel(pixels: np.ndarray) -> np.ndarray:
    """A classifier whose answer the test can foretell: the first pixel names the class."""
    probabilities = np.full((len(pixels), 3), 0.1, dtype=np.float32)
    probabilities[np.arange(len(pixels)), pixels[:, 0, 0, 0] % 3] = 0.8
    return probabilities


@pytest.fixture
def fake() -> FakeTransport:
    """A fake server with a classifier ``digits`` and a model ``echo`` for tensors."""
    return FakeTransport(
        {
            "digits": FakeModel.classifier(make_interface(), by_first_pixel, max_batch_size=4, version="3"),
            "echo": FakeModel.of_tensors({"x": ("FP32", (-1, 2))}, lambda inputs: {"y": inputs["x"]}),
        }
    )


class GrpcDouble:
    """A gRPC server whose every method is ``behave(method, request, context)``."""

    def __init__(self, behave: GrpcBehaviour) -> None:
        self.behave = behave
        self.port = 0
        self._server: Any = None

    def start(self) -> GrpcDouble:
        double = self

        class Handler(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                name = details.method.rsplit("/", 1)[1]
                return grpc.unary_unary_rpc_method_handler(lambda request, context: double.behave(name, request, context))

        self._server = grpc.server(
            futures.ThreadPoolExecutor(8),
            handlers=[Handler()],
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait(5)

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"


class HttpDouble:
    """A REST server whose every answer is ``behave(method, path, headers, body)``; it tells its ``extensions``, if any."""

    def __init__(self, behave: HttpBehaviour, extensions: Sequence[str] | None = ("binary_tensor_data",)) -> None:
        self.behave = behave
        self.extensions = extensions
        self.port = 0
        self._server: Any = None
        self._thread: Any = None
        self._connections: list[socket.socket] = []

    def start(self) -> HttpDouble:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                double._connections.append(self.connection)

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                if self.path == "/v2" and double.extensions is not None:
                    metadata = {"name": "double", "version": "1", "extensions": double.extensions}
                    status, extra, answer = 200, {}, json.dumps(metadata).encode()
                else:
                    status, extra, answer = double.behave(self.command, self.path, headers, body)
                self.send_response(status)
                for name, value in extra.items():
                    self.send_header(name, value)
                if "content-length" not in extra:
                    self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128  # with five, many that connect at once are reset where the machine is busy

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that hang up are part of the tests

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None
            for connection in self._connections:
                with contextlib.suppress(OSError):  # closed by its own thread already
                    connection.shutdown(socket.SHUT_RDWR)
            self._connections.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def echo_infer_grpc(request: bytes) -> bytes:
    """Triton's identity model on the gRPC wire, without any of the client's codec."""
    asked = service_pb2.ModelInferRequest.FromString(request)
    answer = service_pb2.ModelInferResponse(model_name=asked.model_name, model_version=asked.model_version or "1")
    for tensor, raw in zip(asked.inputs, asked.raw_input_contents, strict=True):
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        answer.raw_output_contents.append(raw)
    return answer.SerializeToString()


def echo_infer_http(path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Triton's identity model on the REST wire, without any of the client's codec."""
    length = int(headers["inference-header-content-length"])
    asked = json.loads(body[:length])
    parts = path.split("/")
    document = {"model_name": parts[3], "model_version": parts[5] if parts[4] == "versions" else "1", "outputs": asked["inputs"]}
    header = json.dumps(document).encode()
    return 200, {"inference-header-content-length": str(len(header))}, header + body[length:]


def served_by_grpc(fake: FakeTransport) -> GrpcBehaviour:
    """What ``fake`` serves, on the gRPC wire."""

    def behave(method: str, request: bytes, context: Any) -> bytes:
        asked = getattr(service_pb2, f"{method}Request").FromString(request)
        answer = getattr(service_pb2, f"{method}Response")()
        try:
            if method == "ServerLive":
                answer.live = True
            elif method == "ServerReady":
                answer.ready = True
            elif method == "ModelReady":
                answer.ready = asked.name in fake.models
            elif method == "ModelMetadata":
                metadata = fake.send(DescribeModel(asked.name, asked.version), 1)
                answer.name, answer.platform = metadata.name, metadata.platform
                answer.versions.extend(metadata.versions)
                for tensor in metadata.inputs:
                    answer.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            elif method == "ModelConfig":
                json_format.ParseDict(fake.send(ReadConfig(asked.name, asked.version), 1), answer.config)
            elif method == "RepositoryIndex":
                for model in fake.send(ListModels(), 1):
                    answer.models.add(name=model.name, version=model.version, state=model.state, reason=model.reason)
            elif method == "ModelInfer":
                inputs = tuple(
                    Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), raw)
                    for tensor, raw in zip(asked.inputs, asked.raw_input_contents, strict=True)
                )
                result = fake.send(Infer(asked.model_name, asked.model_version, inputs=inputs), 1)
                answer.model_name, answer.model_version = result.model_name, result.model_version
                for name, array in result.outputs.items():
                    answer.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
                    answer.raw_output_contents.append(bytes(encode(array, datatype_of(array) or "")))
        except ModelNotFoundError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except InvalidRequestError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return answer.SerializeToString()

    return behave


def served_by_http(fake: FakeTransport) -> HttpBehaviour:
    """What ``fake`` serves, on the REST wire."""

    def behave(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")[1:]
        model = parts[1] if parts[0] == "models" else ""
        version = parts[3] if "versions" in parts else ""
        try:
            if parts[0] == "health":
                return 200, {}, b""
            if parts[0] == "repository":
                if parts[1] != "index":
                    return 200, {}, b""
                return 200, {}, json.dumps([vars(model) for model in fake.send(ListModels(), 1)]).encode()
            if parts[-1] == "ready":
                return (200 if model in fake.models else 400), {}, b""
            if parts[-1] == "config":
                return 200, {}, json.dumps(fake.send(ReadConfig(model, version), 1)).encode()
            if parts[-1] != "infer":
                metadata = fake.send(DescribeModel(model, version), 1)
                inputs = [vars(tensor) for tensor in metadata.inputs]
                document = {**vars(metadata), "inputs": inputs, "outputs": []}
                return 200, {}, json.dumps(document).encode()
            length = int(headers["inference-header-content-length"])
            asked, offset, tensors = json.loads(body[:length]), length, []
            for tensor in asked["inputs"]:
                size = tensor["parameters"]["binary_data_size"]
                tensors.append(Tensor(tensor["name"], tensor["datatype"], tuple(tensor["shape"]), body[offset : offset + size]))
                offset += size
            result = fake.send(Infer(model, version, inputs=tuple(tensors)), 1)
        except ModelNotFoundError as error:
            return 404, {}, json.dumps({"error": str(error)}).encode()
        except InvalidRequestError as error:
            return 400, {}, json.dumps({"error": str(error)}).encode()
        outputs, blobs = [], []
        for name, array in result.outputs.items():
            blobs.append(bytes(encode(array, datatype_of(array) or "")))
            outputs.append(
                {
                    "name": name,
                    "datatype": datatype_of(array),
                    "shape": array.shape,
                    "parameters": {"binary_data_size": len(blobs[-1])},
                }
            )
        document = {"model_name": result.model_name, "model_version": result.model_version, "outputs": outputs}
        header = json.dumps(document).encode()
        return 200, {"inference-header-content-length": str(len(header))}, header + b"".join(blobs)

    return behave


@pytest.fixture
def grpc_double() -> Iterator[Callable[[GrpcBehaviour], GrpcDouble]]:
    """Start gRPC servers that behave as the test says."""
    doubles: list[GrpcDouble] = []

    def start(behave: GrpcBehaviour) -> GrpcDouble:
        doubles.append(GrpcDouble(behave).start())
        return doubles[-1]

    yield start
    for double in doubles:
        double.stop()


@pytest.fixture
def http_double() -> Iterator[Callable[..., HttpDouble]]:
    """Start REST servers that behave as the test says."""
    doubles: list[HttpDouble] = []

    def start(behave: HttpBehaviour, **options: Any) -> HttpDouble:
        doubles.append(HttpDouble(behave, **options).start())
        return doubles[-1]

    yield start
    for double in doubles:
        double.stop()


@pytest.fixture(params=["grpc", "http"])
def served(request: pytest.FixtureRequest, fake: FakeTransport) -> Any:
    """A real server on one of the wires that serves what ``fake`` does."""
    if request.param == "grpc":
        return request.getfixturevalue("grpc_double")(served_by_grpc(fake))
    return request.getfixturevalue("http_double")(served_by_http(fake))


@pytest.fixture(params=["grpc", "http"])
def served_twice(request: pytest.FixtureRequest, fake: FakeTransport) -> Any:
    """Two real servers on one of the wires that serve what ``fake`` does."""
    double = request.getfixturevalue(f"{request.param}_double")
    behave = served_by_grpc if request.param == "grpc" else served_by_http
    return [double(behave(fake)) for _ in range(2)]


@pytest.fixture(scope="session")
def echo() -> dict[str, Any]:
    """The identity model of each wire, as a function."""
    return {"grpc": echo_infer_grpc, "http": echo_infer_http}


@pytest.fixture(scope="session")
def interface() -> Callable[..., ModelInterface]:
    """Make a classifier's interface."""
    return make_interface


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, fake: FakeTransport) -> list[tuple[str, dict[str, str]]]:
    """The servers that were connected to, with the headers; each is the fake one."""
    servers: list[tuple[str, dict[str, str]]] = []

    def open_transport(endpoint: Any, options: Any) -> FakeTransport:
        servers.append((str(endpoint), options.headers))
        return fake

    monkeypatch.setattr("convoy.serving.client._client.open_transport", open_transport)
    return servers


@pytest.fixture
def program(opened: list[tuple[str, dict[str, str]]], run_convoy: Callable[..., tuple[int, str, str]]) -> Any:
    """Run ``convoy ...`` on the fake server; gives exit code, stdout and stderr."""
    return run_convoy
