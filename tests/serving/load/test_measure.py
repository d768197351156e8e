"""Loads on servers that answer, refuse, stall, hang up, stay silent and talk nonsense."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from convoy.contract.errors import UnavailableError, UsageError
from convoy.serving.load import Closed, Open, Window, measure
from tests.serving.load.conftest import HttpServer, grpc_server, grpc_target, http_target, response

Start = Callable[[Callable[[int], Any]], HttpServer]
QUICK = {"window_s": 0.1, "warm_up_s": 0.1, "stable_within": 0.9}

pytestmark = pytest.mark.alone  # what is measured has to have the machine


@pytest.mark.parametrize("load", [Closed(1), Closed(5), Open(300.0)], ids=str)
@pytest.mark.parametrize("processes", [1, 2])
def test_every_request_is_answered_and_counted_once(load: Closed | Open, processes: int, http_server: Start, as_json: Any) -> None:
    server = http_server(lambda _: response())
    windows: list[Window] = []
    found = measure(http_target(server.port), load, processes=processes, on_window=windows.append, **QUICK)
    assert found.n_total_sent == found.n_total_answered == server.n_requests
    assert 0 < found.n_requests <= found.n_total_answered
    assert (found.n_errors, found.first_error, found.n_unsent) == (0, "", 0)
    assert tuple(windows) == found.windows
    assert 3 <= len(windows) <= 10
    assert found.latency_ms is not None
    assert 0 < found.latency_ms.p50 <= found.latency_ms.p99 <= found.latency_ms.max
    assert 0 < found.generator_cpu < 1.5
    assert found.n_processes == min(processes, getattr(load, "concurrency", processes))
    assert found.server is None  # it keeps no statistics
    assert as_json(found.as_dict())["load"]["kind"] == ("closed" if isinstance(load, Closed) else "open")
    if isinstance(load, Closed):
        assert server.n_connections == load.concurrency + 1  # each keeps its own; one more asked for the statistics
        assert found.requests_per_s * found.latency_ms.mean / 1e3 == pytest.approx(load.concurrency, rel=0.2)  # Little's law
        assert found.lag_ms is None
    else:
        assert found.lag_ms is not None


@pytest.mark.parametrize("load", [Closed(20), Open(200.0)], ids=str)
def test_grpc_calls_are_answered_and_counted_once(load: Closed | Open) -> None:
    calls: list[bytes] = []

    def behave(message: bytes, _context: Any) -> bytes:
        calls.append(message)
        return b"answer"

    with grpc_server(behave) as port:
        found = measure(grpc_target(port), load, **QUICK)
    assert found.n_total_sent == found.n_total_answered == len(calls) > 0
    assert set(calls) == {b"question"}
    assert found.n_errors == 0


def test_large_messages_wait_for_the_servers_windows() -> None:
    """HTTP/2 lets a client send 64 KiB before the server allows more."""
    message = bytes(range(256)) * 12_000
    with grpc_server(lambda got, _: got if got == message else b"", ("grpc.max_receive_message_length", -1)) as port:
        found = measure(grpc_target(port, message=message), Closed(6), **QUICK)
    assert found.n_errors == 0
    assert found.n_total_sent == found.n_total_answered > 6


def test_a_server_that_takes_few_calls_at_once_is_not_sent_more() -> None:
    with grpc_server(lambda _got, _: b"answer", ("grpc.max_concurrent_streams", 2)) as port:
        found = measure(grpc_target(port), Closed(16), **QUICK)
    assert found.n_errors == 0
    assert found.n_total_sent == found.n_total_answered > 16


def test_a_refused_call_counts_with_the_servers_words() -> None:
    import grpc

    def behave(_message: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "no model 'x' hier: für 100 %")
        raise AssertionError

    with grpc_server(behave) as port:
        found = measure(grpc_target(port), Closed(3), **QUICK)
    assert found.n_errors == found.n_total_sent > 0
    assert found.first_error == "gRPC status 5: no model 'x' hier: für 100 %"
    assert found.latency_ms is None
    assert not found.stable


def test_a_refused_request_counts_with_the_servers_words(http_server: Start) -> None:
    server = http_server(lambda number: response(b"busy", "503 Service Unavailable") if number % 4 == 0 else response())
    found = measure(http_target(server.port), Closed(2), **QUICK)
    assert found.first_error == "status 503: busy"
    assert found.n_errors == server.n_requests // 4
    assert found.n_total_answered == server.n_requests - found.n_errors
    assert sum(window.n_errors for window in found.windows) > 0


def test_a_server_that_hangs_up_costs_one_request_and_is_asked_again(http_server: Start) -> None:
    server = http_server(lambda number: None if number == 50 else response())
    found = measure(http_target(server.port), Closed(2), **QUICK | {"window_s": 0.2})
    assert found.n_errors == 1
    assert "closed the connection before its answer was complete" in found.first_error
    assert server.n_connections == 2 + 1 + 1
    assert found.n_total_answered == server.n_requests - 1 > 60


def test_a_server_that_closes_after_each_answer_fails_nothing(http_server: Start) -> None:
    server = http_server(lambda _: response(extra="Connection: close\r\n"))
    found = measure(http_target(server.port), Closed(2), **QUICK)
    assert found.n_errors == 0
    assert found.n_total_answered == server.n_requests > 10


def test_a_silent_server_fails_every_request_in_time(http_server: Start) -> None:
    async def never() -> bytes:
        await asyncio.sleep(3600)
        return b""

    server = http_server(lambda _: never())
    began = time.monotonic()
    found = measure(http_target(server.port, timeout_s=0.3), Closed(3), max_windows=10, **QUICK)
    assert time.monotonic() - began < 20
    assert found.first_error == "no answer within 0.3 s"
    assert found.n_errors == found.n_total_sent >= 6  # each connection asked again
    assert found.n_total_answered == 0


def test_nonsense_is_an_error(http_server: Start) -> None:
    server = http_server(lambda _: b"nonsense\r\n\r\n")
    found = measure(http_target(server.port), Closed(1), **QUICK)
    assert found.n_errors == found.n_total_sent > 0
    assert "expected an HTTP/1.1 response, found b'nonsense" in found.first_error


@pytest.mark.parametrize("target", [http_target, grpc_target])
def test_a_port_where_nobody_listens_is_said_at_once(target: Any, http_server: Start) -> None:
    server = http_server(lambda _: response())
    server.stop()
    with pytest.raises(UnavailableError, match="the load generator cannot connect: Connection refused"):
        measure(target(server.port), Closed(4), **QUICK)


def test_an_http_server_is_no_grpc_server(http_server: Start) -> None:
    server = http_server(lambda _: response())
    with pytest.raises(UnavailableError, match="cannot connect: the server closed the connection"):
        measure(grpc_target(server.port), Closed(1), **QUICK)


class _StallsOnce:
    """Blocks its server's only thread for a while, once."""

    def __init__(self, after_s: float, stall_s: float) -> None:
        self._begin = 0.0
        self._after_s, self._stall_s = after_s, stall_s
        self.stalled = False

    def __call__(self, _number: int) -> bytes:
        now = time.monotonic()
        self._begin = self._begin or now
        if not self.stalled and now - self._begin > self._after_s:
            self.stalled = True
            time.sleep(self._stall_s)
        return response()


def test_an_open_loop_charges_a_stall_to_all_who_would_have_come_and_a_closed_loop_hides_it(http_server: Start) -> None:
    """Coordinated omission: callers who wait for their answer do not come while the server stalls, and so do not complain."""
    quiet = {"window_s": 0.5, "max_windows": 4, "warm_up_s": 0.1, "stable_within": 0.001}
    closed_server, open_server = (http_server(_StallsOnce(after_s=0.5, stall_s=0.5)) for _ in range(2))
    closed = measure(http_target(closed_server.port), Closed(1), **quiet)
    opened = measure(http_target(open_server.port), Open(400.0, max_outstanding=400), **quiet)
    assert closed.latency_ms is not None
    assert opened.latency_ms is not None
    assert closed.latency_ms.max > 450  # one request saw it
    assert closed.latency_ms.p99 < 100
    assert opened.latency_ms.max > 450
    assert opened.latency_ms.p99 > 350  # a quarter of the requests were due while it lasted, and their waits are spread over it
    assert opened.latency_ms.p90 > 200
    assert opened.n_errors == 0
    assert opened.kept_up


def test_an_overrun_server_is_reported_as_one_that_does_not_keep_up(http_server: Start) -> None:
    async def slowly() -> bytes:
        await asyncio.sleep(0.05)
        return response()

    server = http_server(lambda _: slowly())
    found = measure(http_target(server.port), Open(400.0, max_outstanding=4), window_s=0.3, warm_up_s=0.1)  # it manages 80 a second
    assert not found.kept_up
    assert found.n_held > 100
    assert found.n_unsent > 100
    assert not found.stable
    assert found.lag_ms is not None
    assert found.lag_ms.max > 300
    assert found.latency_ms is not None
    assert found.latency_ms.max > 350  # from when they were due, not from when they were sent
    assert found.n_errors == 0
    assert found.requests_per_s < 100


def test_windows_grow_with_the_time_of_an_answer(http_server: Start) -> None:
    async def slowly() -> bytes:
        await asyncio.sleep(0.04)
        return response()

    server = http_server(lambda _: slowly())
    found = measure(http_target(server.port), Closed(2), window_s=0.1, warm_up_s=0.1)
    assert found.window_s >= 0.4
    assert found.duration_s == pytest.approx(3 * found.window_s)
    assert found.requests_per_s == pytest.approx(2 / 0.04, rel=0.15)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_s": 0.0}, "window_s: expected 0.01 to 3600"),
        ({"window_s": float("nan")}, "window_s: expected"),
        ({"max_windows": 2}, "max_windows: expected 3 to"),
        ({"stable_within": 1.0}, "stable_within: expected"),
        ({"warm_up_s": -1.0}, "warm_up_s: expected"),
        ({"processes": 0}, "processes: expected"),
    ],
)
def test_numbers_that_make_no_measurement_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        measure(http_target(1), Closed(1), **options)
