"""The client against real Tritons that are killed, stopped and started again, and behind a proxy that delays, cuts and stalls."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import Self

from convoy.contract.errors import ClientError
from convoy.serving.client import AsyncClient, Client
from convoy.serving.triton import TritonServer
from tests.serving.client.chaos import HONEST, ChaosProxy

pytestmark = [pytest.mark.integration, pytest.mark.alone]

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 1, 4, 4, 1), dtype=np.uint8)
WIRES = ("grpc_url", "http_url")
CALLERS = 3  # of each kind of client, on each wire


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, write_tiny_model: Callable[..., Path]) -> Iterator[list[TritonServer]]:
    """Two Tritons with the same model, which a test may harm; it leaves both running."""
    servers = []
    for name in ("one", "other"):
        repository = tmp_path_factory.mktemp(name)
        write_tiny_model(repository)
        servers.append(TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0, stop_timeout_s=3))
    with servers[0], servers[1]:
        yield servers


@pytest.fixture(scope="module")
def logits(triton: TritonServer) -> np.ndarray:
    """The right answer to each image."""
    with Client(triton.grpc_url) as client:
        return np.stack([client.infer("tiny", {"image": image})["logits"] for image in IMAGES])


class Load:
    """Callers of every kind, who call as long as the ``with`` block lasts: threads and tasks, over gRPC and over REST.

    Args:
        servers: Whom they call.
        logits: The right answers.
        options: Of the clients.

    Attributes:
        right: How many calls have been answered rightly, by the kind of caller.
        wrong: What else became of calls.
        missed: When calls failed, with their errors.
        slowest_s: The longest that a call took.
    """

    def __init__(self, servers: list[TritonServer], logits: np.ndarray, **options: Any) -> None:
        self.right: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.missed: list[tuple[float, ClientError]] = []
        self.slowest_s = 0.0
        self._servers = servers
        self._logits = logits
        self._options = options
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call_in_threads, args=(wire,)) for wire in WIRES]
        self._threads += [threading.Thread(target=lambda wire=wire: asyncio.run(self._call_in_tasks(wire))) for wire in WIRES]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.right) == 2 * len(WIRES) * CALLERS, "answer to each caller")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call has not ended"

    def goes_on(self) -> None:
        """Wait until each caller has had some more answers."""
        before = Counter(self.right)
        until(lambda: all(self.right[caller] > before[caller] + 5 for caller in before), "more answers for each caller")

    def _urls(self, wire: str) -> list[str]:
        return [getattr(server, wire) for server in self._servers]

    def _call_in_threads(self, wire: str) -> None:
        with Client(self._urls(wire), **self._options) as client:

            def call(caller: str) -> None:
                number = 0
                while not self._stop.is_set():
                    number += 1
                    started = time.monotonic()
                    try:
                        outcome: Any = client.infer("tiny", {"image": IMAGES[number % len(IMAGES)]})
                    except Exception as error:
                        outcome = error
                    self._note(caller, number, started, outcome)

            threads = [threading.Thread(target=call, args=(f"thread {i} {wire}",)) for i in range(CALLERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    async def _call_in_tasks(self, wire: str) -> None:
        async with AsyncClient(self._urls(wire), **self._options) as client:

            async def call(caller: str) -> None:
                number = 0
                while not self._stop.is_set():
                    number += 1
                    started = time.monotonic()
                    try:
                        outcome: Any = await client.infer("tiny", {"image": IMAGES[number % len(IMAGES)]})
                    except Exception as error:
                        outcome = error
                    self._note(caller, number, started, outcome)

            await asyncio.gather(*(call(f"task {i} {wire}") for i in range(CALLERS)))

    def _note(self, caller: str, number: int, started: float, outcome: Any) -> None:
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        if isinstance(outcome, ClientError):
            self.missed.append((time.monotonic(), outcome))
        elif isinstance(outcome, Exception):
            self.wrong.append(f"{caller}: {outcome!r}")
        elif np.allclose(outcome["logits"], self._logits[number % len(IMAGES)], atol=1e-5):
            self.right[caller] += 1
        else:
            self.wrong.append(f"{caller}: {outcome['logits']}")


def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.01)


def n_requests(server: TritonServer) -> int:
    """How many requests a server's model has answered."""
    with Client(server.grpc_url) as client:
        (version,) = client.statistics("tiny")
        return int(version["inference_stats"]["success"]["count"])


def is_used_again(server: TritonServer) -> None:
    """Wait until a server gets requests."""
    before = n_requests(server)
    until(lambda: n_requests(server) > before + 20, "requests for the server that is back")


def test_a_triton_that_is_killed_under_load_costs_no_call_and_is_used_again_when_it_is_back(
    pair: list[TritonServer], logits: np.ndarray
) -> None:
    victim, _ = pair
    pid = victim.pid()
    assert pid is not None
    with Load(pair, logits, timeout_s=10.0) as load:
        os.kill(pid, signal.SIGKILL)
        assert victim.ends_within(10)
        load.goes_on()
        victim.restart(["tiny"])
        is_used_again(victim)
        load.goes_on()

    assert load.missed == []
    assert load.wrong == []


def test_where_a_triton_hangs_hedges_make_up_for_it_and_it_is_used_again_when_it_goes_on(
    pair: list[TritonServer], logits: np.ndarray
) -> None:
    victim, _ = pair
    pid = victim.pid()
    assert pid is not None
    with Load(pair, logits, timeout_s=5.0, hedge_after_s=0.1) as load:
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                load.goes_on()
        finally:
            os.kill(pid, signal.SIGCONT)
        is_used_again(victim)

    assert load.missed == []
    assert load.wrong == []


def test_a_triton_that_hangs_costs_a_few_calls_their_deadline_and_is_left_alone_until_it_goes_on(
    pair: list[TritonServer], logits: np.ndarray
) -> None:
    victim, _ = pair
    pid = victim.pid()
    assert pid is not None
    with Load(pair, logits, timeout_s=0.5) as load:
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            until(lambda: time.monotonic() - max([stopped, *(at for at, _ in load.missed)]) > 1.2, "moment without a late call")
            load.goes_on()
        finally:
            os.kill(pid, signal.SIGCONT)
        is_used_again(victim)

    assert load.wrong == []
    assert {type(error).__name__ for _, error in load.missed} == {"DeadlineExceededError"}
    assert len(load.missed) < 100
    assert load.slowest_s < 2.0


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_what_triton_answers_through_a_bad_proxy_is_right_or_an_error_in_time(
    kind: type[Any], wire: str, triton: TritonServer, logits: np.ndarray
) -> None:
    outcomes: list[tuple[int, Any, float]] = []
    scheme, port = getattr(triton, wire).split(":")[0], triton.ports[wire[:4]]
    with ChaosProxy(port, HONEST, seed=7, every_bytes=4000, lasts_s=1.0) as proxy:
        url = f"{scheme}://127.0.0.1:{proxy.port}"
        with Client(url, timeout_s=0.4) as client:
            async with AsyncClient(url, timeout_s=0.4) as aclient:

                async def ask(method: str, *arguments: Any) -> Any:
                    try:
                        if kind is AsyncClient:
                            return await getattr(aclient, method)(*arguments)
                        return await asyncio.to_thread(getattr(client, method), *arguments)
                    except Exception as error:
                        return error

                async def call(first: int) -> None:
                    for number in range(first, 150, 6):
                        image, started = IMAGES[number % len(IMAGES)], time.monotonic()
                        outcome = await (ask("infer", "tiny", {"image": image}) if number % 4 else ask("classify", "tiny", image))
                        outcomes.append((number, outcome, time.monotonic() - started))

                await asyncio.wait_for(asyncio.gather(*(call(first) for first in range(6))), 60)

    right = 0
    for number, outcome, seconds in outcomes:
        assert seconds < 1.4, outcome
        expected = logits[number % len(IMAGES)]
        if isinstance(outcome, Exception):
            assert isinstance(outcome, ClientError), repr(outcome)
            continue
        if number % 4:
            assert np.allclose(outcome["logits"], expected, atol=1e-5)
        else:
            assert [prediction.index for prediction in outcome] == [expected.argmax()]
        right += 1
    assert len(outcomes) == 150
    assert 10 < right < 150
