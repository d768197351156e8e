"""Calls over gRPC: the channels and their options, and the one place where grpc's exceptions become Convoy's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import grpc

from convoy.contract.errors import ClientError, InvalidResponseError, UsageError
from convoy.serving.client._call import Call, R
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._failure import GRPC_STATUS, failure
from convoy.serving.client._grpc_wire import METHODS, decode_response, encode_request, method_of

CHANNEL_OPTIONS: Final = (
    # gRPC's own limit is 4 MiB a message: less than a batch of 32 photographs. The server has the last word.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Notices a peer that vanished without a word (a lost machine, a cut cable) while a call is under way. Not more often: servers
    # hang up on peers whose pings they find too many.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # While a channel waits to reconnect it fails calls at once. gRPC's wait grows to 2 minutes, long after the server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Clients of one process do not share connections, and so neither their state nor their fate.
    ("grpc.use_local_subchannel_pool", 1),
    # Calls go to the server that the URL names, whatever proxy the environment names for the web.
    ("grpc.enable_http_proxy", 0),
)


class GrpcTransport:
    """A ``Transport`` on one grpc channel."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self._endpoint = endpoint
        self._metadata = tuple(headers.items())
        if endpoint.secure:
            self._channel = grpc.secure_channel(endpoint.address, grpc.ssl_channel_credentials(), CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(endpoint.address, CHANNEL_OPTIONS)
        self._methods = {method: self._channel.unary_unary(method) for method in METHODS}

    def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        request = encode_request(call, timeout_s)
        try:
            response = self._methods[method_of(call)](request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _translated(error, self._endpoint, call) from error
        except ValueError as error:  # what grpc raises on a channel that another thread has closed
            raise UsageError(f"{self._endpoint}: the client was closed while it was in use.") from error
        return _decoded(call, response, self._endpoint)

    def close(self) -> None:
        """See ``Transport.close``."""
        self._channel.close()


class AsyncGrpcTransport:
    """An ``AsyncTransport`` on one grpc.aio channel, opened in the event loop that first uses it."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self._endpoint = endpoint
        self._metadata = tuple(headers.items())
        self._channel: Any = None
        self._methods: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        request = encode_request(call, timeout_s)
        method = self._method(method_of(call))
        try:
            response = await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, self._endpoint, call) from error
        except grpc.aio.UsageError as error:
            raise UsageError(f"{self._endpoint}: the client was closed while it was in use.") from error
        return _decoded(call, response, self._endpoint)

    async def close(self) -> None:
        """See ``Transport.close``."""
        if self._channel is not None:
            await self._channel.close()

    def _method(self, name: str) -> Any:
        loop = asyncio.get_running_loop()
        if self._channel is None:
            address = self._endpoint.address
            if self._endpoint.secure:
                self._channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
            self._methods = {method: self._channel.unary_unary(method) for method in METHODS}
            self._loop = loop
        elif loop is not self._loop:
            raise UsageError("an AsyncClient lives in the event loop that first used it; make one client a loop.")
        return self._methods[name]


def _translated(error: Any, endpoint: Endpoint, call: Call[Any]) -> ClientError:
    status = error.code().name
    return failure(GRPC_STATUS[status], endpoint, call, f"{status}: {error.details() or 'no details'}")


def _decoded(call: Call[R], response: bytes, endpoint: Endpoint) -> R:
    try:
        return decode_response(call, response)
    except InvalidResponseError as error:
        raise failure(InvalidResponseError, endpoint, call, str(error)) from error
