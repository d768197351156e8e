"""Calls over REST: pools of connections, and the one place where httpcore's exceptions become Convoy's.

httpcore is what httpx stands on; of httpx, which takes twice the processor time a request, nothing would be used.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import ssl
import threading
import time
import zlib
from typing import Any, Final

import anyio
import httpcore

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client._call import (
    Call,
    Infer,
    ListModels,
    LoadModel,
    ModelReady,
    R,
    ReadConfig,
    ReadStatistics,
    ServerLive,
    ServerReady,
    UnloadModel,
)
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._failure import HTTPCORE_ERRORS, NOT_OFFERED, failure, of_http_status
from convoy.serving.client._http_dialect import Dialect, Exchange
from convoy.serving.client._http_wire import HttpRequest, decode_response, encode_request, error_text
from convoy.serving.client._transport import Options

# Health questions are answered by the status alone; Triton says 400 for "not ready".
_NOT_READY = (400, 404, 503)

_OK: Final = 200
_GZIP_WINDOW: Final = 31  # zlib's number for a gzip header
_MOST_TENSOR_BYTES: Final = (2 << 30) - 1
_MOST_DOCUMENT_BYTES: Final = 64 << 20
_GZIP_LEVEL: Final = 1  # the quickest, which is most of what there is to be had
_KEEP_ALIVE_S: Final = 5.0  # a connection that is idle for longer is closed: servers and what lies between close theirs, too

_ERRORS: Final = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    ssl.SSLError,  # httpcore on anyio lets it through where a record is damaged
)

_EXTENSIONS: Final = (ReadConfig, ReadStatistics, ListModels, LoadModel, UnloadModel)
"""Calls that a server of the protocol need not know."""

_NO_SUCH_PATH: Final = ("not found", "404 page not found")
"""What web frameworks say of a path that nobody serves; of a model that is not there servers say more."""


class HttpTransport:
    """A ``Transport`` on kept-alive connections."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._outgoing = _Outgoing(endpoint, options)
        self._clock = _Clock()
        self._pool = httpcore.ConnectionPool(**_arguments(endpoint, options), network_backend=_TimedBackend(self._clock))
        self._dialect = Dialect()

    def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        deadline = time.monotonic() + timeout_s
        exchanges = self._dialect.exchanges(call)
        try:
            exchange = next(exchanges)
            while True:
                try:
                    answer = self._exchange(exchange, deadline)
                except ClientError as error:
                    exchange = exchanges.throw(error)
                else:
                    exchange = exchanges.send(answer)
        except StopIteration as done:
            result: R = done.value
            return result
        finally:
            exchanges.close()

    def _exchange(self, exchange: Exchange[R], deadline: float) -> R:
        call, timeout_s = exchange.call, _left_s(deadline, self._endpoint, exchange.call)
        request = self._outgoing.request(exchange, timeout_s)
        self._clock.until_s = deadline
        body = _Body(call, self._endpoint)
        try:
            with self._pool.stream(**request) as response:
                for chunk in response.iter_stream():
                    body.add(chunk)
        except _ERRORS as error:
            raise self._outgoing.translated(error, call, len(body)) from error
        try:
            return _decoded(call, response, body.data, self._endpoint)
        except InvalidResponseError:
            response.extensions["network_stream"].close()  # what comes next on it may be no answer either
            raise

    def close(self) -> None:
        """See ``Transport.close``."""
        self._outgoing.closed = True
        self._pool.close()


class AsyncHttpTransport:
    """An ``AsyncTransport`` on kept-alive connections."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._outgoing = _Outgoing(endpoint, options)
        self._pool = _AsyncPool(**_arguments(endpoint, options), network_backend=_TlsBackend() if endpoint.secure else None)
        self._dialect = Dialect()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if loop is not self._loop:
            raise UsageError("an AsyncClient lives in the event loop that first used it; make one client a loop.")
        deadline = time.monotonic() + timeout_s
        exchanges = self._dialect.exchanges(call)
        try:
            exchange = next(exchanges)
            while True:
                try:
                    answer = await self._exchange(exchange, deadline)
                except ClientError as error:
                    exchange = exchanges.throw(error)
                else:
                    exchange = exchanges.send(answer)
        except StopIteration as done:
            result: R = done.value
            return result
        finally:
            exchanges.close()

    async def _exchange(self, exchange: Exchange[R], deadline: float) -> R:
        call, timeout_s = exchange.call, _left_s(deadline, self._endpoint, exchange.call)
        request = self._outgoing.request(exchange, timeout_s)
        body = _Body(call, self._endpoint)
        try:
            with anyio.fail_after(timeout_s):
                async with self._pool.stream(**request) as response:
                    async for chunk in response.aiter_stream():
                        body.add(chunk)
                    # In a task of its own: were it cancelled, httpcore would take the connection for busy for ever, and keep it.
                    await asyncio.shield(asyncio.ensure_future(response.aclose()))
        except TimeoutError as error:
            raise failure(DeadlineExceededError, self._endpoint, call, "the server is silent") from error
        except _ERRORS as error:
            raise self._outgoing.translated(error, call) from error
        try:
            return _decoded(call, response, body.data, self._endpoint)
        except InvalidResponseError:
            await response.extensions["network_stream"].aclose()  # what comes next on it may be no answer either
            raise

    async def close(self) -> None:
        """See ``Transport.close``."""
        self._outgoing.closed = True
        await self._pool.aclose()


class _Clock(threading.local):
    """Until when what this thread waits for is of use.

    Attributes:
        until_s: On the monotonic clock.
    """

    until_s = math.inf

    def left_s(self, most_s: float | None, late: type[Exception]) -> float:
        """How long the next step may take.

        Args:
            most_s: What the step was given.
            late: Is raised where nothing is left.
        """
        left_s = self.until_s - time.monotonic()
        if left_s <= 0:
            raise late("the call's time is over")
        return left_s if most_s is None else min(most_s, left_s)


class _TimedBackend(httpcore.SyncBackend):
    """Opens connections on which no step outlasts the call, however many steps there are: httpcore gives each all of the time.

    A server that drips its answer, or takes a request by drops, would hold a call for ever.
    """

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def connect_tcp(self, *args: Any, **options: Any) -> httpcore.NetworkStream:
        """See ``httpcore.NetworkBackend``."""
        return _TimedStream(super().connect_tcp(*args, **options), self._clock)


class _TimedStream(httpcore.NetworkStream):
    """A connection whose steps end with the call that they are part of."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See ``httpcore.NetworkStream``."""
        return self._stream.read(max_bytes, self._clock.left_s(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See ``httpcore.NetworkStream``."""
        connection = self._stream.get_extra_info("socket")
        left = memoryview(buffer)
        try:
            while left:
                connection.settimeout(self._clock.left_s(timeout, httpcore.WriteTimeout))
                left = left[connection.send(left) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        """See ``httpcore.NetworkStream``."""
        self._stream.close()

    def start_tls(self, *args: Any, **options: Any) -> httpcore.NetworkStream:
        """See ``httpcore.NetworkStream``."""
        return _TimedStream(self._stream.start_tls(*args, **options), self._clock)

    def get_extra_info(self, info: str) -> Any:
        """See ``httpcore.NetworkStream``."""
        return self._stream.get_extra_info(info)


class _Body:
    """The body of an answer, as it comes, and no more of it than an answer may have.

    Args:
        call: What was asked.
        endpoint: Who answers.
    """

    def __init__(self, call: Call[Any], endpoint: Endpoint) -> None:
        self._call, self._endpoint = call, endpoint
        self._data = bytearray()

    @property
    def data(self) -> bytes:
        """What has come."""
        return bytes(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def add(self, chunk: bytes) -> None:
        """Take in what comes next.

        Raises:
            InvalidResponseError: It is too much.
        """
        self._data += chunk
        if len(self._data) > (most := _most_bytes(self._call)):
            found = f"expected at most {most >> 20} MiB, found more"
            raise failure(InvalidResponseError, self._endpoint, self._call, found)


def _most_bytes(call: Call[Any]) -> int:
    """How long an answer may be: that to an inference as long as gRPC's may be, any other as no document is."""
    return _MOST_TENSOR_BYTES if isinstance(call, Infer) else _MOST_DOCUMENT_BYTES


class _AsyncPool(httpcore.AsyncConnectionPool):
    """A pool that keeps no connection whose first request was cancelled."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        names = ("ssl_context", "keepalive_expiry", "network_backend")
        self._of_connections = {name: options[name] for name in names}

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        """See ``httpcore.AsyncConnectionPool``."""
        return _AsyncConnection(origin, **self._of_connections)


class _AsyncConnection(httpcore.AsyncHTTPConnection):
    """A connection that is closed where its first request does not come to an answer.

    httpcore leaves it open, and in its pool for good, where the request is cancelled just when the connection is there.
    """

    _is_new = True

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """See ``httpcore.AsyncHTTPConnection``."""
        was_new, self._is_new = self._is_new, False  # a new one has one request; later several may be after it at once
        try:
            return await super().handle_async_request(request)
        except BaseException:
            if was_new:
                with anyio.CancelScope(shield=True):
                    await self.aclose()
            raise


class _TlsBackend(httpcore.AnyIOBackend):
    """Opens connections that TLS is about to be spoken on."""

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        """See ``httpcore.AsyncNetworkBackend``."""
        return _BeforeTls(await super().connect_tcp(*args, **options))


class _BeforeTls(httpcore.AsyncNetworkStream):
    """A connection that is closed where the handshake is given up: httpcore does so where it fails, not where it is cancelled."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def start_tls(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        """See ``httpcore.AsyncNetworkStream``. Afterwards all is said on the stream that this gives."""
        try:
            return await self._stream.start_tls(*args, **options)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()
            raise


class _Outgoing:
    """What holds for every request to one server.

    Attributes:
        closed: Whether the client was closed.
    """

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._origin: dict[str, Any] = {
            "scheme": endpoint.scheme.encode(),
            "host": (endpoint.ip or endpoint.host).encode(),
            "port": endpoint.port,
        }
        self._compression = options.compression
        headers = {
            "host": endpoint.authority,
            "accept": "*/*",
            "accept-encoding": options.compression or "identity",
            "user-agent": "convoy",
        }
        self._headers = [(name.encode(), value.encode()) for name, value in {**headers, **options.headers}.items()]
        # The name that the server's certificate is for, where one of the addresses behind it is meant.
        self._extensions = {"sni_hostname": endpoint.host} if endpoint.secure and endpoint.ip else {}
        self.closed = False

    def request(self, exchange: Exchange[Any], timeout_s: float) -> dict[str, Any]:
        """The arguments of a pool's ``request`` or ``stream``.

        Raises:
            UsageError: The client was closed.
            InvalidRequestError: The wire cannot carry the call.
        """
        if self.closed:
            raise self._closed()
        outgoing = _encoded(exchange, timeout_s, self._endpoint)
        given = (*outgoing.headers.items(), *exchange.call.headers)  # what is said last counts
        headers = list(dict([*self._headers, *((name.encode(), value.encode()) for name, value in given)]).items())
        body = outgoing.body
        if body and self._compression is not None:
            body = gzip.compress(body, _GZIP_LEVEL)
            headers.append((b"content-encoding", b"gzip"))
        if outgoing.method == "POST":
            headers.append((b"content-length", str(len(body)).encode()))
        return {
            "method": outgoing.method,
            "url": httpcore.URL(**self._origin, target=outgoing.path.encode()),
            "headers": headers,
            "content": body,
            "extensions": {**self._extensions, "timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)},
        }

    def translated(self, error: Exception, call: Call[Any], n_bytes: int = 0) -> ClientError | UsageError:
        """What httpcore raised, as Convoy's; ``n_bytes`` of the answer had come."""
        if self.closed:
            return self._closed()
        kind = UnavailableError if isinstance(error, ssl.SSLError) else HTTPCORE_ERRORS[type(error).__name__]
        found = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return failure(kind, self._endpoint, call, f"{found}; {n_bytes} bytes of the answer came" if n_bytes else found)

    def _closed(self) -> UsageError:
        return UsageError(f"{self._endpoint}: the client was closed while it was in use.")


def _arguments(endpoint: Endpoint, options: Options) -> dict[str, Any]:
    return {
        # Plain http has no certificates to check: reading the machine's bundle would only cost 20 ms a client.
        "ssl_context": options.tls.context() if endpoint.secure else None,
        "max_connections": None,
        "max_keepalive_connections": 64,
        "keepalive_expiry": _KEEP_ALIVE_S,
    }


def _left_s(deadline: float, endpoint: Endpoint, call: Call[Any]) -> float:
    """Seconds until ``deadline``, on the monotonic clock."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise failure(DeadlineExceededError, endpoint, call, "the requests before it took all the time")
    return left_s


def _encoded(exchange: Exchange[Any], timeout_s: float, endpoint: Endpoint) -> HttpRequest:
    try:
        return encode_request(exchange.call, timeout_s, binary=exchange.binary)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{endpoint}: {exchange.call.subject}: {error} Nothing was sent.") from error


def _decoded(call: Call[R], response: httpcore.Response, body: bytes, endpoint: Endpoint) -> R:
    status = response.status
    headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    if headers.get("content-encoding") == "gzip":
        body = _unzipped(body, call, endpoint)
    if isinstance(call, (ServerLive, ServerReady, ModelReady)) and status in _NOT_READY:
        return False  # type: ignore[return-value]  # R is bool for these
    if status != _OK:
        kind, words = of_http_status(status), error_text(body)
        if kind is ModelNotFoundError and isinstance(call, _EXTENSIONS) and words.lower() in _NO_SUCH_PATH:
            kind, words = InvalidRequestError, f"{words}: {NOT_OFFERED}"
        raise failure(kind, endpoint, call, f"HTTP {status}: {words}")
    try:
        return decode_response(call, body, headers)
    except InvalidResponseError as error:
        raise failure(InvalidResponseError, endpoint, call, str(error)) from error


def _unzipped(body: bytes, call: Call[Any], endpoint: Endpoint) -> bytes:
    unzip, most = zlib.decompressobj(_GZIP_WINDOW), _most_bytes(call)
    try:
        unzipped = unzip.decompress(body, most)
    except zlib.error as error:
        raise failure(InvalidResponseError, endpoint, call, f"expected a body in gzip, found other bytes: {error}") from error
    if not unzip.eof:
        found = f"more than {most >> 20} MiB" if unzip.unconsumed_tail else "one that is cut short"
        raise failure(InvalidResponseError, endpoint, call, f"expected a body in gzip, found {found}")
    return unzipped
