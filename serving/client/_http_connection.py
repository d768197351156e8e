"""Calls over REST: httpx's clients, and the one place where its exceptions become Convoy's."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx

from convoy.contract.errors import ClientError, DeadlineExceededError, InvalidResponseError, UsageError
from convoy.serving.client._call import Call, ModelReady, R, ServerLive, ServerReady
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._failure import HTTPX_ERRORS, failure, of_http_status
from convoy.serving.client._http_wire import decode_response, encode_request, error_text

# Health questions are answered by the status alone; Triton says 400 for "not ready".
_NOT_READY = (400, 404, 503)


class HttpTransport:
    """A ``Transport`` on an ``httpx.Client`` with kept-alive connections."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self._endpoint = endpoint
        self._client = httpx.Client(**_options(endpoint, headers))

    def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        deadline = time.monotonic() + timeout_s
        outgoing = encode_request(call, timeout_s)
        try:
            request = self._client.build_request(
                outgoing.method, outgoing.path, content=outgoing.body, headers=dict(outgoing.headers), timeout=timeout_s
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

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self._endpoint = endpoint
        self._client = httpx.AsyncClient(**_options(endpoint, headers))
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if loop is not self._loop:
            raise UsageError("an AsyncClient lives in the event loop that first used it; make one client a loop.")
        outgoing = encode_request(call, timeout_s)
        try:
            request = self._client.build_request(
                outgoing.method, outgoing.path, content=outgoing.body, headers=dict(outgoing.headers), timeout=timeout_s
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


def _options(endpoint: Endpoint, headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "base_url": f"{endpoint.scheme}://{endpoint.address}",
        # Compressing tensors costs more than sending them: ask for none unless the caller does.
        "headers": {"accept-encoding": "identity", "user-agent": "convoy", **headers},
        # The machine's own certificates. Plain http has none to check: reading the bundle would only cost 20 ms a client.
        "verify": ssl.create_default_context() if endpoint.secure else False,
        # Calls go to the server that the URL names, whatever proxy the environment names for the web.
        "trust_env": False,
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
        "follow_redirects": False,
    }


def _translated(error: httpx.HTTPError, endpoint: Endpoint, call: Call[Any]) -> ClientError:
    kind = HTTPX_ERRORS[type(error).__name__]
    return failure(kind, endpoint, call, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _decoded(call: Call[R], response: httpx.Response, body: bytes, endpoint: Endpoint) -> R:
    status = response.status_code
    if isinstance(call, (ServerLive, ServerReady, ModelReady)) and status in _NOT_READY:
        return False  # type: ignore[return-value]  # R is bool for these
    if status != httpx.codes.OK:
        raise failure(of_http_status(status), endpoint, call, f"HTTP {status}: {error_text(body)}")
    try:
        return decode_response(call, body, response.headers)
    except InvalidResponseError as error:
        raise failure(InvalidResponseError, endpoint, call, str(error)) from error
