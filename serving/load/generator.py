"""``python -m convoy.serving.load.generator``: one process that sends requests and notes how long each took.

It is a process of its own so that neither the caller's threads nor its garbage disturb the times. It reads its task from stdin (a
line of JSON, then the request's bytes), answers lines of JSON on stdout, each with as many bytes behind it as it says, and ends
with its stdin: see ``convoy.serving.load.crew``, which starts it.
"""

from __future__ import annotations

import ctypes
import gc
import heapq
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from convoy.serving.load.connection import Connection
from convoy.serving.load.grpc_connection import GrpcConnection
from convoy.serving.load.http_connection import HttpConnection
from convoy.serving.load.traffic import Closed, Load, Open, arrivals

clock = time.perf_counter_ns

_PR_SET_TIMERSLACK: Final = 29
_TICK_NS: Final = 100_000_000
_REST_NS: Final = 100_000_000
"""How long a connection that broke waits before it asks again: a server that is down is not stormed."""


class Generator:
    """Sends requests as a load says, until told to stop.

    Args:
        load: The load.
        connections: What carries it; together they have a slot for each request that may be in flight.
        timeout_s: How long an answer may take.
        seed: For the arrivals of an open loop.
    """

    def __init__(self, load: Load, connections: list[Connection], timeout_s: float, seed: int) -> None:
        self.ends = array("q")
        self.latencies = array("q")
        self.lags = array("q")
        self.n_sent = self.n_errors = self.n_held = 0
        self.first_error = ""
        self._connections = connections
        self._timeout_ns = int(timeout_s * 1e9)
        self._selector = selectors.DefaultSelector()
        self._resting: list[tuple[int, int]] = []
        self._stopped = False
        self._closed = isinstance(load, Closed)
        self._free: list[Connection] = []
        self._due: deque[int] = deque()  # arrivals that no slot is free for
        self._arrivals: Iterator[int] = iter(())
        self._start_ns = 0
        self._next: int | None = None
        if isinstance(load, Open):
            self._arrivals = arrivals(load.rate_per_s, seed)
            self._free = [connection for connection in reversed(connections) for _ in range(connection.slots)]

    def connect(self, timeout_s: float) -> str:
        """Open the connections that are needed at once.

        Returns:
            Why it cannot be done; empty where it was done.
        """
        first = self._connections if self._closed else self._connections[:1]
        deadline = time.monotonic() + timeout_s
        for connection in first:
            self._open(connection)
        while not all(connection.established for connection in first):
            for connection in first:
                if connection.lost:
                    return connection.lost
            if time.monotonic() > deadline:
                return f"no connection within {timeout_s:g} s"
            for key, mask in self._selector.select(0.1):
                if mask & selectors.EVENT_READ and key.data.connected:
                    key.data.read([], [])
                key.data.flush()
                self._watch(key.data)
        return ""

    def run(self, start_ns: int, boundaries: Iterator[int], control: int, flush: Any) -> None:
        """Send requests from ``start_ns`` on until a byte comes on ``control``; then wait for the answers under way.

        Args:
            start_ns: On the clock of ``time.perf_counter_ns``.
            boundaries: When to call ``flush``, in order.
            control: The descriptor that ends the run.
            flush: Is called after each boundary.
        """
        self._selector.register(control, selectors.EVENT_READ)
        self._start_ns = start_ns
        while (now := clock()) < start_ns:
            time.sleep(max(0, start_ns - now) / 1e9)
        if self._closed:
            for connection in self._connections:
                self._start(connection, connection.slots, clock())
        else:
            self._next = start_ns + next(self._arrivals)
        boundary = next(boundaries)
        tick = start_ns + _TICK_NS
        drained_by: int | None = None
        while True:
            now = clock()
            if now >= boundary:
                flush()
                boundary = next(boundaries)
            if now >= tick:
                self._check(now)
                tick = now + _TICK_NS
                if drained_by is not None and now > drained_by:
                    break
            if self._next is not None and self._next <= now:
                self._admit(now)
            elif self._due and self._free and not self._stopped:
                self._pour()
            if self._resting:
                self._wake(now)
            if drained_by is not None and not any(connection.in_flight for connection in self._connections):
                break
            until = min(boundary, tick)
            if self._next is not None:
                until = min(until, self._next)
            if self._resting:
                until = min(until, self._resting[0][0])
            for key, mask in self._wait(until):
                if key.data is None:
                    if not os.read(control, 1):
                        return  # whoever started this process is gone
                    self._selector.unregister(control)
                    drained_by = self._stop()
                elif key.data.is_open:  # an event before may have closed it
                    self._serve(key.data, mask)
        for connection in self._connections:
            self._drop(connection)

    @property
    def n_unsent(self) -> int:
        """Arrivals that were due and never sent."""
        return len(self._due)

    def _wait(self, until: int) -> list[tuple[selectors.SelectorKey, int]]:
        """Events, or none once the time has come. The selector rounds to milliseconds: arrivals need a finer wait."""
        left_s = (until - clock()) / 1e9
        if left_s <= 0:
            return self._selector.select(0)
        if self._next is None or not hasattr(self._selector, "fileno"):
            return self._selector.select(left_s)
        ready, _, _ = select.select([self._selector.fileno()], [], [], left_s)
        return self._selector.select(0) if ready else []

    def _serve(self, connection: Connection, mask: int) -> None:
        finished: list[int] = []
        failed: list[str] = []
        if mask & selectors.EVENT_READ and connection.connected:
            connection.read(finished, failed)
        now = clock()
        for began in finished:
            self.ends.append(now)
            self.latencies.append(now - began)
        for reason in failed:
            self._failed(reason)
        n = len(finished) + len(failed)
        if connection.lost:
            self._lose(connection, now, n)
            return
        if n:
            self._freed(connection, n, now)
        if connection.is_open and (connection.pending or connection.watched & selectors.EVENT_WRITE):
            self._push(connection)

    def _freed(self, connection: Connection, n: int, now: int) -> None:
        """Slots are free again: use them."""
        if self._stopped:
            return
        if self._closed:
            self._start(connection, n, now)
        else:
            self._free += [connection] * n
            self._pour()

    def _start(self, connection: Connection, n: int, now: int) -> None:
        for _ in range(n):
            connection.start(now)
        self.n_sent += n
        self._push(connection)

    def _push(self, connection: Connection) -> None:
        connection.flush()
        if connection.lost:
            self._lose(connection, clock(), 0)
        elif connection.pending or connection.watched & selectors.EVENT_WRITE:
            self._watch(connection)

    def _admit(self, now: int) -> None:
        """Take up the arrivals that are due."""
        assert self._next is not None
        n = 0
        while self._next <= now:
            self._due.append(self._next)
            self._next = self._start_ns + next(self._arrivals)
            n += 1
        self._pour()
        self.n_held += min(n, len(self._due))

    def _pour(self) -> None:
        """Send what is due as far as slots are free. The slot that was freed last goes first: its connection is open."""
        while self._due and self._free:
            connection = self._free.pop()
            if not connection.is_open:
                self._open(connection)
            due = self._due.popleft()
            connection.start(due)
            self.lags.append(clock() - due)
            self.n_sent += 1
            self._push(connection)

    def _open(self, connection: Connection) -> None:
        connection.open()
        connection.watched = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.register(connection, connection.watched, connection)

    def _watch(self, connection: Connection) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.pending else 0)
        if wanted != connection.watched:
            connection.watched = wanted
            self._selector.modify(connection, wanted, connection)

    def _lose(self, connection: Connection, now: int, freed: int) -> None:
        """A connection broke: what it carried has failed. Where it carried something it rests before it is used again."""
        reason = connection.lost
        dropped = self._drop(connection)
        for _ in range(dropped):
            self._failed(reason)
        if self._closed:
            heapq.heappush(self._resting, (now + (_REST_NS if dropped else 0), self._connections.index(connection)))
        else:  # the rate of the arrivals bounds how often it is tried
            self._free += [connection] * (dropped + freed)

    def _drop(self, connection: Connection) -> int:
        if connection.is_open:
            self._selector.unregister(connection)
        return connection.close()

    def _check(self, now: int) -> None:
        """Give up on answers that are overdue."""
        for connection in self._connections:
            oldest = connection.oldest()
            if oldest is not None and now - oldest > self._timeout_ns and connection.is_open:
                connection.lost = f"no answer within {self._timeout_ns / 1e9:g} s"
                self._lose(connection, now, 0)

    def _wake(self, now: int) -> None:
        """Use the connections again that have rested."""
        while self._resting and self._resting[0][0] <= now and not self._stopped:
            connection = self._connections[heapq.heappop(self._resting)[1]]
            self._open(connection)
            self._start(connection, connection.slots, now)

    def _stop(self) -> int:
        """No more requests. Returns when the wait for answers under way ends."""
        self._stopped, self._next = True, None
        return clock() + self._timeout_ns

    def _failed(self, reason: str) -> None:
        self.n_errors += 1
        self.first_error = self.first_error or reason


def _connections(task: dict[str, Any], request: bytes, load: Load) -> list[Connection]:
    family, _, _, _, address = socket.getaddrinfo(task["host"], task["port"], type=socket.SOCK_STREAM)[0]
    n = load.concurrency if isinstance(load, Closed) else load.max_outstanding
    if task["protocol"] == "http":
        return [HttpConnection((family, address), request) for _ in range(n)]
    shares = -(-n // task["streams"])
    return [
        GrpcConnection((family, address), task["authority"], task["method"], request, n // shares + (i < n % shares))
        for i in range(shares)
    ]


def _boundaries(start_ns: int, warm_up_ns: int, window_ns: int) -> Iterator[int]:
    boundary = start_ns + warm_up_ns
    while True:
        yield boundary
        boundary += window_ns


def _wake_on_time() -> None:
    """Have this process woken when its time has come: Linux bundles wake-ups within 50 microseconds unless told otherwise."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def main() -> None:
    """Do one task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to whoever started this process, who ends its stdin
    task = json.loads(sys.stdin.buffer.readline())
    request = sys.stdin.buffer.read(task["n_bytes"])
    load: Load = Closed(task["concurrency"]) if "concurrency" in task else Open(task["rate_per_s"], task["max_outstanding"])

    def say(*blobs: bytes, **fields: Any) -> None:
        fields.update(n_bytes=sum(map(len, blobs)), cpu_s=time.process_time())
        sys.stdout.buffer.write(b"".join([json.dumps(fields).encode(), b"\n", *blobs]))
        sys.stdout.buffer.flush()

    try:
        generator = Generator(load, _connections(task, request, load), task["timeout_s"], task["seed"])
        problem = generator.connect(min(10.0, task["timeout_s"]))
    except OSError as error:
        problem = error.strerror or str(error)
    say(ready=not problem, problem=problem)
    line = sys.stdin.buffer.readline()
    if problem or not line:
        return
    go = json.loads(line)
    gc.disable()
    gc.freeze()
    _wake_on_time()

    def flush(*, done: bool = False) -> None:
        said = {name: getattr(generator, name) for name in ("n_sent", "n_errors", "first_error", "n_held", "n_unsent")}
        arrays = (generator.ends, generator.latencies, generator.lags)
        say(*(each.tobytes() for each in arrays), done=done, n_answers=len(generator.ends), **said)
        for each in arrays:
            del each[:]

    boundaries = _boundaries(go["start_ns"], go["warm_up_ns"], go["window_ns"])
    generator.run(go["start_ns"], boundaries, sys.stdin.fileno(), flush)
    flush(done=True)


if __name__ == "__main__":
    main()
