"""Calls over gRPC: the channels and their options, and the one place where grpc's exceptions become Convoy's."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final

import grpc

from convoy.contract.errors import ClientError, InvalidResponseError, UsageError
from convoy.serving.client._call import Call, Headers, Infer, R
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._failure import GRPC_STATUS, failure
from convoy.serving.client._grpc_likeness import Likeness
from convoy.serving.client._grpc_wire import METHODS, decode_response, encode_request, method_of
from convoy.serving.client._transport import Options, Tls

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
    # gRPC's own retries and idle timer cost each call some; ours are in `_router`, and the keep-alive is above.
    ("grpc.enable_retries", 0),
    ("grpc.minimal_stack", 1),
    # Calls go to the server that the URL names, whatever proxy the environment names for the web.
    ("grpc.enable_http_proxy", 0),
)


ABANDONED_S: Final = 60.0
"""How long an inference whose caller has given up may run on before gRPC cancels it.

Triton 2.51 ends with signal 11 when a cancelled inference is just being answered: with one in some thousands of those that a
deadline cancels (triton-inference-server/server #7368, #8034, seen up to 25.01). A caller's short timeout must not take the
server from all others. The time that the caller has goes to the server with the request, for the policy of its queue.
"""

PATIENT_S: Final = 5.0
"""From this timeout on an inference is left to gRPC's own deadline, which does cancel it, until one was missed.

The way that cancels nothing costs a blocking caller a thread's start an inference (a third of a millisecond where one is under way
at a time). A patient caller's deadline is missed where a server hangs, and then once: for ``WARY_S`` after it no inference is
cancelled."""

WARY_S: Final = 300.0
CLOSE_S: Final = 1.0


class GrpcTransport:
    """A ``Transport`` on one grpc channel."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._metadata = tuple(options.headers.items()) or None
        self._channel = _open(grpc, endpoint, options)
        self._methods = {method: self._channel.unary_unary(method) for method in METHODS}
        self._wary_until_s = 0.0
        self._alike: dict[Any, Likeness] = {}
        self._abandoned: set[Any] = set()  # grpc cancels a call that nobody holds

    def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        request = encode_request(call, timeout_s)
        method = self._methods[method_of(call)]
        try:
            if type(call) is Infer and (timeout_s < PATIENT_S or time.monotonic() < self._wary_until_s):
                response = self._infer(call, method, request, timeout_s)
            else:
                metadata = _metadata(self._metadata, call) if call.headers else self._metadata
                response = method(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            if isinstance(call, Infer) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._wary_until_s = time.monotonic() + WARY_S
            raise _translated(error, self._endpoint, call) from error
        except ValueError as error:  # what grpc raises on a channel that another thread has closed
            raise UsageError(f"{self._endpoint}: the client was closed while it was in use.") from error
        return _decoded(call, response, self._endpoint, self._alike)

    def _infer(self, call: Call[Any], method: Any, request: bytes, timeout_s: float) -> Any:
        sent = method.future(request, timeout=timeout_s + ABANDONED_S, metadata=_metadata(self._metadata, call))
        try:
            return sent.result(timeout_s)
        except grpc.FutureTimeoutError as error:
            raise _too_late(self._endpoint, call, timeout_s) from error
        except grpc.FutureCancelledError as error:
            raise UsageError(f"{self._endpoint}: the client was closed while it was in use.") from error
        finally:
            if not sent.done():
                self._abandoned.add(sent)
                sent.add_done_callback(self._abandoned.discard)

    def close(self) -> None:
        """See ``Transport.close``. Inferences whose callers gave up are given a moment to end: see ``ABANDONED_S``."""
        until_s = time.monotonic() + CLOSE_S
        while self._abandoned and time.monotonic() < until_s:
            time.sleep(0.01)
        self._channel.close()


class AsyncGrpcTransport:
    """An ``AsyncTransport`` on one grpc.aio channel, opened in the event loop that first uses it."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._metadata = tuple(options.headers.items()) or None
        self._options = options
        self._channel: Any = None
        self._methods: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wary_until_s = 0.0
        self._alike: dict[Any, Likeness] = {}
        self._abandoned: set[Any] = set()  # grpc cancels a call that nobody holds

    async def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        method = self._method(method_of(call))
        request = encode_request(call, timeout_s)
        try:
            if isinstance(call, Infer):
                response = await self._infer(call, method, request, timeout_s)
            else:
                response = await method(request, timeout=timeout_s, metadata=_metadata(self._metadata, call))
        except grpc.aio.AioRpcError as error:
            if isinstance(call, Infer) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._wary_until_s = time.monotonic() + WARY_S
            # Its traceback holds the call, and this the connection: also after `close`, as long as somebody keeps the error.
            raise _translated(error, self._endpoint, call) from error.with_traceback(None)
        except grpc.aio.UsageError as error:
            raise UsageError(f"{self._endpoint}: the client was closed while it was in use.") from error
        return _decoded(call, response, self._endpoint, self._alike)

    async def _infer(self, call: Infer, method: Any, request: bytes, timeout_s: float) -> Any:
        """Wait for the answer without waiting on grpc's call itself: who gives up on that, cancels it."""
        assert self._loop is not None
        patient = timeout_s >= PATIENT_S and time.monotonic() >= self._wary_until_s
        lasts_s = timeout_s if patient else timeout_s + ABANDONED_S
        sent = method(request, timeout=lasts_s, metadata=_metadata(self._metadata, call))
        ended: asyncio.Future[None] = self._loop.create_future()

        def answered(_: Any) -> None:
            if not ended.done():
                ended.set_result(None)

        sent.add_done_callback(answered)
        try:
            await (ended if patient else asyncio.wait({ended}, timeout=timeout_s))
        finally:
            if not sent.done():
                self._abandoned.add(sent)
                sent.add_done_callback(self._abandoned.discard)
        if not ended.done():
            raise _too_late(self._endpoint, call, timeout_s)
        return await sent

    async def close(self) -> None:
        """See ``Transport.close``, and ``GrpcTransport.close``."""
        until_s = time.monotonic() + CLOSE_S
        while self._abandoned and time.monotonic() < until_s:
            await asyncio.sleep(0.01)
        if self._channel is not None:
            await self._channel.close()

    def _method(self, name: str) -> Any:
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._channel = _open(grpc.aio, self._endpoint, self._options)
            self._methods = {method: self._channel.unary_unary(method) for method in METHODS}
            self._loop = loop
        elif loop is not self._loop:
            raise UsageError("an AsyncClient lives in the event loop that first used it; make one client a loop.")
        return self._methods[name]


def _open(library: Any, endpoint: Endpoint, options: Options) -> Any:
    """A channel of ``grpc`` or ``grpc.aio``."""
    arguments: tuple[tuple[str, int | str], ...] = CHANNEL_OPTIONS
    if endpoint.ip:  # the name that the server knows itself by
        arguments = (*arguments, ("grpc.default_authority", endpoint.authority))
    compression = None
    if options.compression == "gzip":
        compression = grpc.Compression.Gzip
        arguments = (*arguments, ("grpc.per_message_compression", 1))  # which the minimal stack leaves out
    if not endpoint.secure:
        return library.insecure_channel(endpoint.address, arguments, compression)
    if endpoint.ip:
        arguments = (*arguments, ("grpc.ssl_target_name_override", endpoint.host))
    return library.secure_channel(endpoint.address, _credentials(options.tls), arguments, compression)


def _credentials(tls: Tls) -> Any:
    if tls != Tls():
        tls.context()  # grpc says of files that are no PEM only that it cannot connect

    def content(file: Path | str | None) -> bytes | None:
        try:
            return None if file is None else Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"tls: expected a PEM file, {file} cannot be read: {error.strerror or error}.") from error

    return grpc.ssl_channel_credentials(content(tls.ca_file), content(tls.key_file), content(tls.certificate_file))


def _metadata(own: Headers | None, call: Call[Any]) -> Headers | None:
    """What goes with a request: the client's headers and the call's, which count where both have one."""
    return tuple(dict((*(own or ()), *call.headers)).items()) if call.headers else own


def _too_late(endpoint: Endpoint, call: Call[Any], timeout_s: float) -> ClientError:
    return failure(GRPC_STATUS["DEADLINE_EXCEEDED"], endpoint, call, f"DEADLINE_EXCEEDED: no answer within {timeout_s:.3g} s")


def _translated(error: Any, endpoint: Endpoint, call: Call[Any]) -> ClientError:
    status = error.code().name
    return failure(GRPC_STATUS[status], endpoint, call, f"{status}: {error.details() or 'no details'}")


def _decoded(call: Call[R], response: bytes | None, endpoint: Endpoint, alike: dict[Any, Likeness]) -> R:
    if response is None:  # what grpc gives for a status of OK with no message, or with one that was cut short
        raise failure(InvalidResponseError, endpoint, call, "expected a message, found a status of OK alone")
    try:
        return decode_response(call, response, alike)
    except InvalidResponseError as error:
        raise failure(InvalidResponseError, endpoint, call, str(error)) from error
