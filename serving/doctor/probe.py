"""What a running server answers to whom: calls that read and change nothing.

Triton puts its calls into categories that can be restricted together, with ``--http-restricted-api`` and
``--grpc-restricted-protocol``. Each category has a call that only reads; where that is answered, so are the others of its category.
No call here loads, unloads, sets, registers or infers anything.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from convoy.serving.client._endpoint import Endpoint

if TYPE_CHECKING:
    import httpx

State: TypeAlias = Literal["open", "restricted", "absent", "unknown"]

CONNECT_LIMIT_S = 0.5
CALL_LIMIT_S = 1.0
_SERVICE = "/inference.GRPCInferenceService/"


@dataclass(frozen=True)
class Probe:
    """One call that tells whether a category of calls is open.

    Attributes:
        name: What is looked at.
        category: What Triton calls the category.
        method: The HTTP method.
        path: The HTTP path.
        rpc: The gRPC call, sent an empty request.
        harm: What somebody can do who reaches the category.
        grave: Whether that must not be open to others.
    """

    name: str
    category: str
    method: str
    path: str
    rpc: str
    harm: str
    grave: bool = True


PROBES = (
    Probe(
        "repository control",
        "model-repository",
        "POST",
        "/v2/repository/index",
        "RepositoryIndex",
        "load models (code of their own among them) and unload yours",
    ),
    Probe("log settings", "logging", "GET", "/v2/logging", "LogSettings", "switch logs off, or fill the disk with them"),
    Probe(
        "trace settings",
        "trace",
        "GET",
        "/v2/trace/setting",
        "TraceSetting",
        "switch tracing on, which slows the server and fills its disk",
    ),
    Probe(
        "system shared memory",
        "shared-memory",
        "GET",
        "/v2/systemsharedmemory/status",
        "SystemSharedMemoryStatus",
        "register and so read and write shared memory of this machine, the Python backend's own too",
    ),
    Probe(
        "CUDA shared memory",
        "shared-memory",
        "GET",
        "/v2/cudasharedmemory/status",
        "CudaSharedMemoryStatus",
        "register and so read and write memory of the GPU",
    ),
    Probe(
        "statistics", "statistics", "GET", "/v2/models/stats", "ModelStatistics", "see which models are used how much", grave=False
    ),
)


@dataclass(frozen=True)
class Reply:
    """How a call was answered.

    Attributes:
        state: Whether it is open to whoever calls.
        shown: The call and its answer, for people: "GET /v2/logging: 200".
    """

    state: State
    shown: str


@dataclass(frozen=True)
class Metadata:
    """What a server says about itself.

    Attributes:
        version: Its version, "2.51.0"; empty where it did not say.
        reason: Why it did not; empty where it did.
    """

    version: str = ""
    reason: str = ""


def accepts(endpoint: Endpoint) -> bool:
    """Whether anything accepts connections there."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), CONNECT_LIMIT_S):
            return True
    except OSError:
        return False


class HttpDoor:
    """A server's REST side."""

    protocol = "http"

    def __init__(self, endpoint: Endpoint) -> None:
        import httpx

        self.endpoint = endpoint
        # No proxy: what is looked at is what this machine reaches itself.
        self._client = httpx.Client(
            base_url=str(endpoint), timeout=httpx.Timeout(CALL_LIMIT_S, connect=CONNECT_LIMIT_S), trust_env=False
        )

    def metadata(self) -> Metadata:
        """Ask the server who it is."""
        response, reason = self._send("GET", "/v2")
        if response is None:
            return Metadata(reason=reason)
        try:
            said: Any = response.json()
        except ValueError:
            said = None
        if response.status_code != 200 or not isinstance(said, dict) or "extensions" not in said:
            return Metadata(reason=f"GET /v2 was answered with {response.status_code}, but not as Triton does")
        return Metadata(str(said.get("version", "")))

    def ask(self, probe: Probe) -> Reply:
        """Make one call."""
        response, reason = self._send(probe.method, probe.path)
        shown = f"{probe.method} {probe.path}: {response.status_code if response is not None else reason}"
        if response is None:
            return Reply("unknown", shown)
        states: dict[int, State] = {200: "open", 401: "restricted", 403: "restricted", 400: "absent", 404: "absent", 405: "absent"}
        return Reply(states.get(response.status_code, "unknown"), shown)

    def _send(self, method: str, path: str) -> tuple[httpx.Response | None, str]:
        import httpx

        try:
            return self._client.request(method, path), ""
        except httpx.TimeoutException:
            return None, "no answer in time"
        except httpx.HTTPError as error:
            return None, str(error) or type(error).__name__

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class GrpcDoor:
    """A server's gRPC side."""

    protocol = "grpc"

    def __init__(self, endpoint: Endpoint) -> None:
        import grpc

        self.endpoint = endpoint
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
        self._channel = (
            grpc.secure_channel(endpoint.address, grpc.ssl_channel_credentials(), options)
            if endpoint.secure
            else grpc.insecure_channel(endpoint.address, options)
        )

    def metadata(self) -> Metadata:
        """Ask the server who it is."""
        from tritonclient.grpc import service_pb2

        data, code, details = self._send("ServerMetadata")
        if code != "OK":
            return Metadata(reason=f"ServerMetadata: {code} {details}".strip())
        return Metadata(service_pb2.ServerMetadataResponse.FromString(data).version)

    def ask(self, probe: Probe) -> Reply:
        """Make one call."""
        _, code, details = self._send(probe.rpc)
        shown = f"{probe.rpc}: {code}"
        if code == "OK":
            return Reply("open", shown)
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "restricted" in details:
            return Reply("restricted", shown)
        return Reply("absent" if code in ("UNIMPLEMENTED", "INVALID_ARGUMENT", "NOT_FOUND") else "unknown", shown)

    def _send(self, rpc: str) -> tuple[bytes, str, str]:
        """Send an empty request. Returns the answer as it came, the status code's name and its details."""
        import grpc

        try:
            return self._channel.unary_unary(_SERVICE + rpc)(b"", timeout=CALL_LIMIT_S), "OK", ""
        except grpc.RpcError as error:
            return b"", error.code().name, error.details() or ""

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def open_door(endpoint: Endpoint) -> HttpDoor | GrpcDoor:
    """The side of a server that ``endpoint`` names."""
    return GrpcDoor(endpoint) if endpoint.uses_grpc else HttpDoor(endpoint)
