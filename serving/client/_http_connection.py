"""Calls over REST: httpx's clients, and the one place where its exceptions become Convoy's."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any, Final

import httpx

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    UsageError,
)
from convoy.serving.client._call import (
    Call,
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
from convoy.serving.client._failure import HTTPX_ERRORS, failure, of_http_status
from convoy.serving.client._http_dialect import Dialect, Exchange
from convoy.serving.client._http_wire import HttpRequest, decode_response, encode_request, error_text
from convoy.serving.client._transport import Options, Tls

# Health questions are answered by the status alone; Triton says 400 for "not ready".
_NOT_READY = (400, 404, 503)

_EXTENSIONS: Final = (ReadConfig, ReadStatistics, ListModels, LoadModel, UnloadModel)
"""Calls that a server of the protocol need not know."""

_NO_SUCH_PATH: Final = ("not found", "404 page not found")
"""What web frameworks say of a path that nobody serves; of a model that is not there servers say more."""


class HttpTransport:
    """A ``Transport`` on an ``httpx.Client`` with kept-alive connections."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._client = httpx.Client(**_arguments(endpoint, options))
        self._extensions = _extensions(endpoint)
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
        outgoing = _encoded(exchange, timeout_s, self._endpoint)
        try:
            request = self._client.build_request(
                outgoing.method, outgoing.path, content=outgoing.body, headers=dict(outgoing.headers), timeout=timeout_s, extensions=self._extensions
            )
            response = self._client.send(request, stream=True)
            try:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    # httpx's timeout is for each read; a server that drips bytes must not hold the call for ever.
                    if time.monotonic() > deadline:
                        found = f"{len(body)} bytes of the answer came"
                        raise failure(DeadlineExceededError, self._endpoint, call, found)
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise _translated(error, self._endpoint, call) from error
        except RuntimeError as error:
            if not self._client.is_closed:
                raise  # httpx says a closed client by a bare RuntimeError; any other must not be dressed up
            raise UsageError(f"{self._endpoint}: the client was closed while it was in use.") from error
        return _decoded(call, response, bytes(body), self._endpoint)

    def close(self) -> None:
        """See ``Transport.close``."""
        self._client.close()


class AsyncHttpTransport:
    """An ``AsyncTransport`` on an ``httpx.AsyncClient``."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._client = httpx.AsyncClient(**_arguments(endpoint, options))
        self._extensions = _extensions(endpoint)
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
        outgoing = _encoded(exchange, timeout_s, self._endpoint)
        try:
            request = self._client.build_request(
                outgoing.method, outgoing.path, content=outgoing.body, headers=dict(outgoing.headers), timeout=timeout_s, extensions=self._extensions
            )
            response = await asyncio.wait_for(self._client.send(request), timeout_s)
        except (asyncio.TimeoutError, TimeoutError) as error:  # one class from Python 3.11 on
            raise failure(DeadlineExceededError, self._endpoint, call, "the server is silent") from error
        except httpx.HTTPError as error:
            raise _translated(error, self._endpoint, call) from error
        except RuntimeError as error:
            if not self._client.is_closed:
                raise  # httpx says a closed client by a bare RuntimeError; any other must not be dressed up
            raise UsageError(f"{self._endpoint}: the client was closed while it was in use.") from error
        return _decoded(call, response, response.content, self._endpoint)

    async def close(self) -> None:
        """See ``Transport.close``."""
        await self._client.aclose()


def _arguments(endpoint: Endpoint, options: Options) -> dict[str, Any]:
    return {
        "base_url": f"{endpoint.scheme}://{endpoint.address}",
        # Compressing tensors costs more than sending them: ask for none unless the caller does.
        "headers": {"accept-encoding": "identity", "user-agent": "convoy", **_host(endpoint), **options.headers},
        # Plain http has no certificates to check: reading the machine's bundle would only cost 20 ms a client.
        "verify": _context(options.tls) if endpoint.secure else False,
        # Calls go to the server that the URL names, whatever proxy the environment names for the web.
        "trust_env": False,
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
        "follow_redirects": False,
    }


def _extensions(endpoint: Endpoint) -> dict[str, Any]:
    """The name that the server's certificate is for, where one of the addresses behind it is meant."""
    return {"sni_hostname": endpoint.host} if endpoint.secure and endpoint.ip else {}


def _host(endpoint: Endpoint) -> dict[str, str]:
    """The name that the server knows itself by, where one of the addresses behind it is meant."""
    return {"host": endpoint.authority} if endpoint.ip else {}


def _context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.certificate_file is not None and tls.key_file is not None:
            context.load_cert_chain(tls.certificate_file, tls.key_file, password=_no_password)
    except (OSError, ValueError) as error:  # ssl's own errors are OSErrors
        raise UsageError(f"tls: expected PEM files that can be read, found otherwise: {error}.") from error
    return context


def _no_password() -> str:
    raise UsageError("tls: expected a key without a password.")


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


def _translated(error: httpx.HTTPError, endpoint: Endpoint, call: Call[Any]) -> ClientError:
    kind = HTTPX_ERRORS[type(error).__name__]
    return failure(kind, endpoint, call, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _decoded(call: Call[R], response: httpx.Response, body: bytes, endpoint: Endpoint) -> R:
    status = response.status_code
    if isinstance(call, (ServerLive, ServerReady, ModelReady)) and status in _NOT_READY:
        return False  # type: ignore[return-value]  # R is bool for these
    if status != httpx.codes.OK:
        kind, words = of_http_status(status), error_text(body)
        if kind is ModelNotFoundError and isinstance(call, _EXTENSIONS) and words.lower() in _NO_SUCH_PATH:
            kind, words = InvalidRequestError, f"{words}: the server does not offer this"
        raise failure(kind, endpoint, call, f"HTTP {status}: {words}")
    try:
        return decode_response(call, body, response.headers)
    except InvalidResponseError as error:
        raise failure(InvalidResponseError, endpoint, call, str(error)) from error
