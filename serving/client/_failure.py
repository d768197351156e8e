"""Every way in which a call fails, mapped to Convoy's errors: one table a wire, one place for the words."""

from __future__ import annotations

import re
from typing import Any, Final

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
)
from convoy.serving.client._call import Call, Infer
from convoy.serving.client._endpoint import Endpoint

NOT_OFFERED: Final = "the server does not offer this"

GRPC_STATUS: Final[dict[str, type[ClientError]]] = {
    "CANCELLED": UnavailableError,  # we never cancel and read on: the server or a proxy went away with the call
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
"""By the name of ``grpc.StatusCode``, so that this table needs no grpc; ``OK`` is no failure."""

HTTP_STATUS: Final[dict[int, type[ClientError]]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    404: ModelNotFoundError,
    407: AuthenticationError,
    408: DeadlineExceededError,
    429: OverloadedError,
    501: InvalidRequestError,  # the server does not offer what was asked for
    502: UnavailableError,
    503: UnavailableError,
    504: DeadlineExceededError,
    511: AuthenticationError,
}
"""Those that differ from the rest of their hundred: see ``of_http_status``."""

HTTPCORE_ERRORS: Final[dict[str, type[ClientError]]] = {
    "ConnectError": UnavailableError,
    "ConnectTimeout": UnavailableError,
    "ProxyError": UnavailableError,
    "ReadError": UnavailableError,
    "WriteError": UnavailableError,
    "NetworkError": UnavailableError,
    "RemoteProtocolError": UnavailableError,  # as a rule: the server hung up before it answered
    "ReadTimeout": DeadlineExceededError,
    "WriteTimeout": DeadlineExceededError,
    "PoolTimeout": DeadlineExceededError,
    "TimeoutException": DeadlineExceededError,
    "LocalProtocolError": InvalidRequestError,
    "ProtocolError": InvalidResponseError,
    "UnsupportedProtocol": InvalidRequestError,
}
"""By the name of httpcore's class, so that this table needs no httpcore."""

_NOT_READY: Final = ("has no available versions", "is not at ready state")
"""Triton's words for a model, or a version of it, that it knows and that is loading, unloading or stopped."""

_BACKEND_DIED: Final = re.compile(r"stub process (?:'[^']*' )?is not healthy|failed to obtain the health mutex")
"""Triton's words where the process that runs the model has died or hangs; its status says a fault of the server itself."""

# What servers say in words only. Each is refined from the status that it comes under.
_WORDS: Final[tuple[tuple[type[ClientError], str, type[ClientError]], ...]] = (
    # A model that is known but not ready now. These words stand first: they come together with "unknown model".
    *(
        (kind, words, UnavailableError)
        for kind in (ModelNotFoundError, InvalidRequestError, UnavailableError)
        for words in _NOT_READY
    ),
    (UnavailableError, "exceeds maximum queue size", OverloadedError),
    (UnavailableError, "request timeout expired", DeadlineExceededError),
    (UnavailableError, "unknown model", ModelNotFoundError),
    (InvalidRequestError, "unknown model", ModelNotFoundError),
    (ServerFailureError, "unknown model", ModelNotFoundError),
    (ServerFailureError, "mlserver.errors.modelnotfound", ModelNotFoundError),  # MLServer's gRPC says UNKNOWN
    (InvalidRequestError, "failed to find model", ModelNotFoundError),
    (OverloadedError, "message larger than max", InvalidRequestError),
    (UnavailableError, "http1.x server", InvalidResponseError),
    (UnavailableError, "expected settings frame", InvalidResponseError),
    (UnavailableError, "illegal status line", InvalidResponseError),
    (UnavailableError, "illegal request line", InvalidResponseError),
)

_ADVICE: Final[dict[type[ClientError], str]] = {
    InvalidRequestError: "Compare what was sent with the model's metadata, which the server tells.",
    ModelNotFoundError: "Look for a slip in the name or the version; `convoy models` lists what a repository holds.",
    AuthenticationError: "Pass credentials with headers={'authorization': ...}.",
    DeadlineExceededError: "Allow more time (timeout_s; --timeout on the command line), or look at the server's load.",
    UnavailableError: "Is `convoy serve` running, and is this its address (Triton's gRPC: 8001, REST: 8000)?",
    OverloadedError: "Send less at a time, or come back later.",
    InvalidResponseError: "Is this a KServe v2 server, and the right port (Triton's gRPC: 8001, REST: 8000)?",
    ServerFailureError: "The server's log says more.",
}

_NOT_READY_ADVICE: Final = (
    "The server knows it, but has it not ready: it is being loaded or unloaded, or the server is stopping. Try again; where it "
    "stays so, the server's log says why."
)
_BACKEND_DIED_ADVICE: Final = (
    "The process that runs the model has died or hangs. `convoy serve` notices and loads the model again: try again."
)
_TLS: Final = ("wrong_version_number", "ssl_error_ssl", "[ssl", "handshaker", "handshake failed", "certificate")
_TLS_ADVICE: Final = (
    "Something answers there, but the two cannot agree on TLS. Does this port speak it (if not: grpc:// or http://)? Who may vouch "
    "for the server (Tls(ca_file=...); --ca on the command line)?"
)
_VERSION_ADVICE: Final = "Expected a positive whole number as the model's version."

_REQUEST_ID: Final = "[request id: {}] "  # what Triton writes before its reason
_NO_REQUEST_ID: Final = "<id_unknown>"
_LONGEST_DETAIL: Final = 600  # characters of a server's own words; a proxy may answer with a whole web page


def of_http_status(status: int) -> type[ClientError]:
    """The error of an HTTP status other than 200: the table's, else 4xx a bad request, 5xx a failed server, any other no answer."""
    if status in HTTP_STATUS:
        return HTTP_STATUS[status]
    if 400 <= status < 500:
        return InvalidRequestError
    return ServerFailureError if 500 <= status < 600 else InvalidResponseError


def failure(kind: type[ClientError], endpoint: Endpoint, call: Call[Any], found: str) -> ClientError:
    """The error to raise for a failed call.

    Args:
        kind: What the wire's table says; some servers' words refine it.
        endpoint: Whom was asked.
        call: What was asked.
        found: What came instead of an answer: the server's or the library's own words.
    """
    request_id = call.request_id if isinstance(call, Infer) else ""
    said = " ".join(found.replace(_REQUEST_ID.format(request_id or _NO_REQUEST_ID), "").split())
    said = said if len(said) <= _LONGEST_DETAIL else said[:_LONGEST_DETAIL] + "..."
    lowered = said.lower()
    for under, words, refined in _WORDS:
        if kind is under and words in lowered:
            kind = refined
            break
    died = kind is ServerFailureError and _BACKEND_DIED.search(lowered) is not None
    kind = UnavailableError if died else kind
    advice = _BACKEND_DIED_ADVICE if died else _ADVICE[kind]
    if kind is DeadlineExceededError:
        said = f"no answer in time ({said})"  # how much time that was, the client adds: it knows what the caller asked for
    elif kind is UnavailableError and any(words in lowered for words in _NOT_READY):
        advice = _NOT_READY_ADVICE
    elif kind is InvalidRequestError and "failed to get model version" in lowered:
        advice = _VERSION_ADVICE
    elif kind is ServerFailureError and request_id:
        advice = f"The server's log says more: look for request {request_id}."
    elif kind is UnavailableError and endpoint.secure and any(words in lowered for words in _TLS):
        advice = _TLS_ADVICE
    elif kind is UnavailableError and not call.model_name and not died:
        said = f"no server answers ({said})"
    said = said if said.endswith((".", "!", "?")) else said + "."
    return kind(f"{endpoint}: cannot {call.does} {call.subject}: {said} {advice}")
