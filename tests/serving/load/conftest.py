"""Servers that answer as they are told, and targets that name them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest

from convoy.serving.load import Target

METHOD = "/test.Service/Call"


class HttpServer:
    """An HTTP server in a thread with one event loop, as a stalled server has one: while it blocks, nobody is answered.

    ``behave`` is given each request's number and returns the whole response; None closes the connection. What is asked with GET
    (the statistics) gets 404.
    """

    def __init__(self, behave: Callable[[int], Any]) -> None:
        self.n_requests = self.n_connections = 0
        self._behave = behave
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            self._loop.run_until_complete(self._end())
            self._loop.close()

    async def _end(self) -> None:
        await asyncio.sleep(0)  # connections that were just taken get their tasks
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # closed connections get their callbacks

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    writer.write(response(b"{}", "404 Not Found"))
                    continue
                if b"content-length" not in head.lower():
                    return  # no HTTP/1.1
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                self.n_requests += 1
                answer = self._behave(self.n_requests)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer is None:
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def stop(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()


def response(body: bytes = b"well", status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def http_target(port: int, *, timeout_s: float = 10.0, body: bytes = b"question") -> Target:
    request = f"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    return _target("http", port, request, timeout_s)


def grpc_target(port: int, *, timeout_s: float = 10.0, message: bytes = b"question") -> Target:
    return _target("grpc", port, message, timeout_s)


def _target(protocol: str, port: int, request: bytes, timeout_s: float) -> Target:
    return Target(
        url=f"{protocol}://127.0.0.1:{port}",
        model_name="model",
        model_version="",
        protocol=protocol,
        batch_size=1,
        max_batch_size=8,
        timeout_s=timeout_s,
        answered_version="1",
        shapes={},
        config={},
        request=request,
        task={
            "protocol": protocol,
            "host": "127.0.0.1",
            "port": port,
            "streams": 6,
            "authority": f"127.0.0.1:{port}",
            "method": METHOD,
        },
    )


@contextmanager
def grpc_server(behave: Callable[[bytes, Any], bytes], *options: tuple[str, int]) -> Iterator[int]:
    """A grpcio server of one method, bytes in and bytes out; yields its port."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(behave) if details.method == METHOD else None

    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Handler()], options=list(options))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait(10)


@pytest.fixture
def http_server() -> Iterator[Callable[[Callable[[int], Any]], HttpServer]]:
    with ExitStack() as stack:

        def start(behave: Callable[[int], Any]) -> HttpServer:
            server = HttpServer(behave)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def as_json() -> Callable[[Any], Any]:
    """What a value is after a trip through JSON; fails where it cannot make one."""
    return lambda value: json.loads(json.dumps(value, allow_nan=False))
