"""What calls leave behind when they are over: no memory, no files, no sockets, no threads, no tasks, no shared memory.

Memory is compared between two plateaus: after a warm-up, when pools, arenas and caches have their size, and after thousands of
calls more. What a call would leave is seen from about 500 bytes on (5 MiB over 10,000 calls), over REST from 2.6 KB on (2,000).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ClientError, DeadlineExceededError, ModelNotFoundError, UnavailableError
from convoy.serving.client import AsyncClient, Client
from convoy.serving.client import _segment as segment_module
from convoy.serving.triton import TritonServer

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

CALLS = {"grpc": 10_000, "http": 2_000}  # REST takes several times as long a call
CALLERS = 8
ALLOWED_BYTES = 5 << 20
WIDE = 65_536  # of FP32: too much for the wire where memory can be shared
IMAGE = np.full((1, 4, 4, 1), 7, np.uint8)
IMAGES = np.full((40, 4, 4, 1), 7, np.uint8)  # in parts: the model takes eight
ROW = np.ones((1, WIDE), np.float32)
WIRES = ("grpc", "http")


@dataclass(frozen=True)
class Held:
    """What this process holds: by kind, how many."""

    files: int
    sockets: int
    python_threads: int
    threads: int
    shared: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        links = []
        for entry in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(OSError):  # the folder itself, which is open while it is listed
                links.append(str(entry.readlink()))
        return cls(
            files=len(links),
            sockets=sum(link.startswith("socket:") for link in links),
            python_threads=threading.active_count(),
            threads=len(list(Path("/proc/self/task").iterdir())),
            shared=len(list(Path("/dev/shm").glob(f"convoy-client-{os.getpid()}-*"))),
        )


def resident_bytes() -> int:
    """The memory of this process, less what the allocator keeps for itself, and less what is shared: that is counted in files."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


def holds_no_more_than(before: Held) -> bool:
    """Whether everything that was opened since is closed: threads and sockets take a moment."""
    deadline = time.monotonic() + 10
    while True:
        after = Held.now()
        if (
            after.files <= before.files
            and after.sockets <= before.sockets
            and after.python_threads <= before.python_threads
            and after.threads <= before.threads + 4  # of gRPC's own pool, whose size follows the machine's load
            and after.shared == 0
        ):
            return True
        if time.monotonic() > deadline:
            print(f"before: {before}\nafter:  {after}", file=sys.stderr)  # noqa: T201
            return False
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, write_tiny_model: Callable[..., Path]) -> Iterator[TritonServer]:
    """``tiny``, and ``wide``, whose rows are large."""
    from onnx import TensorProto, helper, save

    repository = tmp_path_factory.mktemp("leaks")
    write_tiny_model(repository)
    (repository / "wide" / "1").mkdir(parents=True)
    names = ("x", "y")
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDE])] for name in names)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "wide", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, repository / "wide" / "1" / "model.onnx")
    x, y = (f'[ {{ name: "{name}" data_type: TYPE_FP32 dims: [ {WIDE} ] }} ]' for name in names)
    (repository / "wide" / "config.pbtxt").write_text(
        f'name: "wide"\nbackend: "onnxruntime"\nmax_batch_size: 8\ninput {x}\noutput {y}\ninstance_group [ {{ kind: KIND_CPU }} ]\n'
    )
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as running:
        for url in (running.grpc_url, running.http_url):  # what is made once a process, and stays
            with Client(url) as client:
                client.infer("tiny", {"image": IMAGES})
                client.infer("wide", {"x": ROW})
            asyncio.run(_warm_up(url))
        yield running


async def _warm_up(url: str) -> None:
    async with AsyncClient(url) as client:
        await client.infer("tiny", {"image": IMAGES})


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def url_of(server: TritonServer, wire: str) -> str:
    return server.grpc_url if wire == "grpc" else server.http_url


def ask(client: Any, number: int) -> Any:
    """The call of this number, of either client: mostly a small inference, at times another."""
    if number % 97 == 0:
        return client.infer("tiny", {"image": IMAGES})
    if number % 53 == 0:
        return client.classify("tiny", IMAGE)
    if number % 41 == 0:
        return client.infer("wide", {"x": ROW})
    if number % 31 == 0:
        return client.metadata("tiny")
    return client.infer("tiny", {"image": IMAGE})


@pytest.mark.parametrize("wire", WIRES)
def test_thousands_of_calls_of_threads_leave_nothing(wire: str, server: TritonServer) -> None:
    before = Held.now()
    with (
        ThreadPoolExecutor(CALLERS) as pool,
        Client(url_of(server, wire)) as merging,
        Client(url_of(server, wire), merge=False) as plain,
    ):

        def calls(client: Client, n: int) -> None:
            numbers = iter(range(n))

            def caller(_: int) -> None:
                for number in numbers:
                    ask(client, number)

            list(pool.map(caller, range(CALLERS)))

        everybody = threading.Barrier(CALLERS)
        list(pool.map(lambda _: everybody.wait(), range(CALLERS)))  # a pool starts no thread while another has nothing to do
        calls(merging, 1000)
        calls(plain, 1000)
        warm, warm_held = resident_bytes(), Held.now()
        calls(merging, CALLS[wire] // 2)
        calls(plain, CALLS[wire] // 2)
        grown = resident_bytes() - warm
        held = Held.now()

    assert grown < ALLOWED_BYTES
    assert held.sockets <= warm_held.sockets + CALLERS
    assert held.python_threads <= warm_held.python_threads + CALLERS  # a client's pool starts its threads as they are needed
    assert held.shared <= 2 * CALLERS
    assert holds_no_more_than(before)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run in an event loop of its own, which must have nothing to complain of and no task left."""
    complaints: list[Any] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await main()
        await asyncio.sleep(0.05)
        gc.collect()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert left == set()

    asyncio.run(watched())
    assert complaints == []


@pytest.mark.parametrize("wire", WIRES)
def test_thousands_of_calls_of_tasks_leave_nothing(wire: str, server: TritonServer) -> None:
    before = Held.now()
    grown = -1

    async def calls(client: AsyncClient, n: int) -> None:
        numbers = iter(range(n))

        async def caller() -> None:
            for number in numbers:
                await ask(client, number)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def main() -> None:
        nonlocal grown
        async with AsyncClient(url_of(server, wire)) as merging, AsyncClient(url_of(server, wire), merge=False) as plain:
            await calls(merging, 1000)
            await calls(plain, 1000)
            n_tasks = len(asyncio.all_tasks())
            warm, warm_held = resident_bytes(), Held.now()
            await calls(merging, CALLS[wire] // 2)
            await calls(plain, CALLS[wire] // 2)
            grown = resident_bytes() - warm
            held = Held.now()
            assert len(asyncio.all_tasks()) == n_tasks
            assert held.sockets <= warm_held.sockets + CALLERS
            assert held.shared <= 2 * CALLERS

    run(main)
    assert grown < ALLOWED_BYTES
    assert holds_no_more_than(before)


@pytest.mark.parametrize("wire", WIRES)
def test_two_hundred_clients_that_are_opened_and_closed_leave_nothing(wire: str, server: TritonServer) -> None:
    url = url_of(server, wire)

    def open_and_close(n: int) -> None:
        for _ in range(n):
            with Client(url) as client:
                client.infer("tiny", {"image": IMAGE})
                client.infer("tiny", {"image": IMAGES})  # by threads of the client's own
            with Client([url, url.replace("127.0.0.1", "localhost")], hedge_after_s=0.5) as client:
                client.infer("tiny", {"image": IMAGE})  # and by others

    async def main() -> None:
        for _ in range(50):
            async with AsyncClient(url) as client:
                await client.infer("tiny", {"image": IMAGES})

    before = Held.now()
    open_and_close(20)
    run(main)
    warm = resident_bytes()
    open_and_close(50)
    run(main)
    run(main)
    assert resident_bytes() - warm < ALLOWED_BYTES
    assert holds_no_more_than(before)


@pytest.mark.parametrize("wire", WIRES)
def test_calls_that_fail_leave_nothing(wire: str, server: TritonServer, closed_port: int) -> None:
    failures = Counting()

    def fail(client: Client, alone: Client) -> None:
        for error, call in (
            (ModelNotFoundError, lambda: client.infer("nobody", {"image": IMAGE})),
            (ModelNotFoundError, lambda: client.metadata("tiny", "9")),
            (ClientError, lambda: client.infer("tiny", {"image": IMAGE.astype(np.float32)})),
            (UnavailableError, lambda: alone.infer("tiny", {"image": IMAGE})),
        ):
            failures.expect(error, call)

    async def fail_async(client: AsyncClient, alone: AsyncClient) -> None:
        await failures.expect_async(ModelNotFoundError, client.infer("nobody", {"image": IMAGE}))
        await failures.expect_async(ModelNotFoundError, client.metadata("tiny", "9"))
        await failures.expect_async(UnavailableError, alone.infer("tiny", {"image": IMAGE}))

    nobody = f"{wire}://127.0.0.1:{closed_port}"
    before = Held.now()
    with Client(url_of(server, wire)) as client, Client(nobody, retry=None) as alone:
        for _ in range(100):
            fail(client, alone)
        warm = resident_bytes()
        for _ in range(500):
            fail(client, alone)
        assert resident_bytes() - warm < ALLOWED_BYTES

    async def main() -> None:
        async with AsyncClient(url_of(server, wire)) as client, AsyncClient(nobody, retry=None) as alone:
            for _ in range(100):
                await fail_async(client, alone)
            warm = resident_bytes()
            for _ in range(500):
                await fail_async(client, alone)
            assert resident_bytes() - warm < ALLOWED_BYTES

    run(main)
    assert failures.n == 600 * 7
    assert holds_no_more_than(before)


@pytest.mark.parametrize("wire", WIRES)
def test_calls_that_miss_their_deadlines_or_are_cancelled_leave_nothing(
    wire: str, server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(server, wire)
    outcomes = Counting()
    times = itertools.cycle((1e-4, 3e-4, 1e-3))

    def call(client: Client, x: dict[str, np.ndarray], timeout_s: float) -> None:
        outcomes.may_be(DeadlineExceededError, lambda: client.infer("wide" if "x" in x else "tiny", x, timeout_s=timeout_s))

    before = Held.now()
    with Client(url) as client, ThreadPoolExecutor(CALLERS) as pool:
        warm = 0
        for n in (300, 900):
            list(pool.map(lambda t: call(client, {"image": IMAGE}, t), itertools.islice(times, n)))
            list(pool.map(lambda t: call(client, {"x": ROW}, t), itertools.islice(times, 40)))
            client.infer("wide", {"x": ROW})
            time.sleep(0.3)  # what was given up ends
            warm = warm or resident_bytes()
        assert resident_bytes() - warm < ALLOWED_BYTES

    async def main() -> None:
        async with AsyncClient(url) as client:
            for n in (300, 900):
                tasks = [asyncio.ensure_future(client.infer("tiny", {"image": IMAGE}, timeout_s=next(times))) for _ in range(n)]
                cancelled = [asyncio.ensure_future(client.infer("tiny", {"image": IMAGE})) for _ in range(n // 10)]
                await asyncio.sleep(0.001)
                for task in cancelled:
                    task.cancel()
                for outcome in await asyncio.gather(*tasks, *cancelled, return_exceptions=True):
                    outcomes.n += isinstance(outcome, (DeadlineExceededError, asyncio.CancelledError))
                await client.infer("tiny", {"image": IMAGE})

    run(main)
    assert outcomes.n > 500
    # The server may still write to the memory of requests that were given up: the next client that shares some sweeps it up later.
    monkeypatch.setattr(segment_module, "REST_S", 0.0)
    with Client(server.grpc_url) as client:
        client.infer("wide", {"x": ROW})
    assert holds_no_more_than(before)


@pytest.mark.parametrize("wire", WIRES)
def test_calls_that_are_cancelled_at_any_moment_leave_no_connection(wire: str, server: TritonServer) -> None:
    async def main() -> None:
        async with AsyncClient(url_of(server, wire)) as client:
            before = Held.now()
            for n_turns in range(60):  # of the event loop: the connection is made in one of the first
                for _ in range(5):
                    task = asyncio.ensure_future(client.metadata("tiny"))
                    for _ in range(n_turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            await client.metadata("tiny")
            await asyncio.sleep(0.05)
            assert Held.now().sockets <= before.sockets + 3  # idle ones, to be used again

    run(main)


class Counting:
    """Counts calls that end with the error that was expected, and keeps none of these."""

    def __init__(self) -> None:
        self.n = 0

    def expect(self, error: type[Exception], call: Callable[[], Any]) -> None:
        with pytest.raises(error):
            call()
        self.n += 1

    async def expect_async(self, error: type[Exception], call: Any) -> None:
        with pytest.raises(error):
            await call
        self.n += 1

    def may_be(self, error: type[Exception], call: Callable[[], Any]) -> None:
        try:
            call()
        except error:
            self.n += 1
