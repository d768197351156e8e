"""Retries, their budget, hedges and several servers, by servers that fail on purpose."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ServerFailureError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client import AsyncClient, Client, Retry
from convoy.serving.client import _fleet as fleet_module
from convoy.serving.client._call import Call, Infer, LoadModel, ServerReady
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._fleet import Fleet
from convoy.serving.client._retry import RetryBudget
from convoy.serving.client._router import look_up, parse_all
from convoy.serving.client.testing import AsyncFakeTransport, FakeModel, FakeTransport

AT_ONCE = Retry(first_pause_s=0.001, longest_pause_s=0.002)
X = np.ones((1, 2), np.float32)


def new_fake() -> FakeTransport:
    return FakeTransport({"echo": FakeModel.of_tensors({"x": ("FP32", (-1, 2))}, lambda inputs: {"y": inputs["x"]})})


class Broken(FakeTransport):
    """A server that can be made to fail, to be slow, or to hang."""

    def __init__(self) -> None:
        super().__init__(new_fake().models)
        self.error: ClientError | None = None
        self.takes_s = 0.0

    def send(self, call: Call[Any], timeout_s: float) -> Any:
        if self.takes_s and isinstance(call, Infer):
            time.sleep(min(self.takes_s, timeout_s))
            if self.takes_s >= timeout_s:
                self.calls.append(call)
                raise DeadlineExceededError("silent")
        if self.error is not None:
            self.calls.append(call)
            raise self.error
        return super().send(call, timeout_s)

    @property
    def n_infers(self) -> int:
        return sum(isinstance(call, Infer) for call in self.calls)


@pytest.fixture
def servers() -> dict[str, Broken]:
    """Three servers by their URLs."""
    return {f"grpc://host-{name}:8001": Broken() for name in "abc"}


def client_of(servers: dict[str, Broken], **options: Any) -> Client:
    return Client(list(servers), transport=servers, **{"retry": AT_ONCE, **options})


async def infer_async(fake: FakeTransport, **options: Any) -> Any:
    async with AsyncClient(transport=AsyncFakeTransport(fake), **options) as client:
        return await client.infer("echo", {"x": X})


@pytest.mark.parametrize("error", [UnavailableError, OverloadedError])
def test_what_another_try_may_mend_is_tried_again(error: type[ClientError]) -> None:
    fake = new_fake()
    client = Client(transport=fake, retry=AT_ONCE)
    fake.failures.extend([error("not now"), error("not yet")])
    assert client.infer("echo", {"x": X})["y"].tolist() == X.tolist()
    fake.failures.extend([error(f"try {n}") for n in (1, 2, 3)])
    with pytest.raises(error, match="try 3"):
        client.infer("echo", {"x": X})
    assert not fake.failures


async def test_both_clients_try_again() -> None:
    fake = new_fake()
    fake.failures.append(UnavailableError("not now"))
    assert (await infer_async(fake, retry=AT_ONCE))["y"].tolist() == X.tolist()
    fake.failures.append(UnavailableError("not now"))
    with pytest.raises(UnavailableError):
        await infer_async(fake, retry=None)


def test_what_changes_a_server_is_never_sent_twice() -> None:
    fake = new_fake()
    fake.failures.append(UnavailableError("not now"))
    with pytest.raises(UnavailableError):
        Client(transport=fake, retry=AT_ONCE).load("echo")
    assert [type(call) for call in fake.calls] == [LoadModel]


def test_a_retry_never_outlives_the_deadline() -> None:
    fake = new_fake()
    client = Client(transport=fake, retry=Retry(attempts=100, first_pause_s=50, longest_pause_s=50))
    fake.failures.extend([UnavailableError("not now")] * 100)
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        client.metadata("echo", timeout_s=0.01)
    assert time.monotonic() - started < 5


def test_pauses_are_drawn_from_zero_to_twice_as_much_each_time() -> None:
    retry = Retry(first_pause_s=0.1, longest_pause_s=0.3)
    drawn = {n: [retry.pause_s(n) for _ in range(300)] for n in (1, 2, 3, 60, 1000)}
    for n, most in ((1, 0.1), (2, 0.2), (3, 0.3), (60, 0.3), (1000, 0.3)):
        assert 0.9 * most < max(drawn[n]) <= most
        assert min(drawn[n]) < 0.1 * most


def test_when_everything_fails_retries_stay_within_the_budget() -> None:
    fake = Broken()
    fake.error = OverloadedError("full")
    client = Client(transport=fake, retry=Retry(attempts=5, first_pause_s=0, longest_pause_s=0, budget_share=0.1, budget_reserve=7))

    def call(_: int) -> None:
        with pytest.raises(OverloadedError):
            client.metadata("echo")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(1000)))
    assert 1000 + 7 <= len(fake.calls) <= 1000 * 1.1 + 7


def test_a_budget_fills_up_to_its_reserve_only() -> None:
    budget = RetryBudget(Retry(budget_share=0.5, budget_reserve=2))
    for _ in range(100):
        budget.pay_in()
    assert [budget.take() for _ in range(3)] == [True, True, False]
    budget.pay_in()
    assert not budget.take()
    budget.pay_in()
    assert budget.take()


@pytest.mark.parametrize("values", [{"attempts": 0}, {"attempts": True}, {"first_pause_s": -1}, {"budget_share": float("nan")}])
def test_a_retry_that_is_none_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"retry: {next(iter(values))}: expected"):
        Retry(**values)


def test_work_is_spread_evenly_over_idle_servers(servers: dict[str, Broken]) -> None:
    client = client_of(servers)
    for _ in range(300):
        client.infer("echo", {"x": X})
    assert all(60 < server.n_infers < 140 for server in servers.values())


def test_a_slow_server_gets_less_work(servers: dict[str, Broken]) -> None:
    slow, *fast = servers.values()
    slow.takes_s = 0.05
    client = client_of(servers)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: client.infer("echo", {"x": X}), range(300)))
    assert slow.n_infers < min(server.n_infers for server in fast) / 2


@pytest.mark.parametrize("threads", [1, 32])
def test_a_server_that_is_gone_costs_no_failed_call_while_another_lives(servers: dict[str, Broken], threads: int) -> None:
    gone, gone_too, alive = servers.values()
    client = client_of(servers, retry=None)
    client.infer("echo", {"x": X})
    gone.error = gone_too.error = UnavailableError("gone")
    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(lambda _: client.infer("echo", {"x": X})["y"], range(500)))
    assert len(answers) == 500
    assert alive.n_infers >= 500
    assert gone.n_infers + gone_too.n_infers <= 2 * threads + 2  # each caller may have been on its way; then they are left alone


def test_a_server_that_fails_at_its_work_goes_out_after_some_failures(servers: dict[str, Broken]) -> None:
    sick, *_ = servers.values()
    client = client_of(servers)
    sick.error = ServerFailureError("segmentation fault")
    outcomes: Counter[bool] = Counter()
    for _ in range(200):
        try:
            client.infer("echo", {"x": X})
            outcomes[True] += 1
        except ServerFailureError:
            outcomes[False] += 1
    assert 1 <= outcomes[False] <= fleet_module.SICK_AFTER + 1


def test_a_refusal_does_not_make_a_server_sick(servers: dict[str, Broken]) -> None:
    client = client_of(servers)
    for server in servers.values():
        server.error = InvalidRequestError("wrong")
    for _ in range(20):
        with pytest.raises(InvalidRequestError):
            client.metadata("echo")
    assert not any(node.back_at_s for node in client._router.fleet.nodes)


async def test_a_server_that_comes_back_is_probed_and_used_again(
    servers: dict[str, Broken], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "FIRST_REST_S", 0.05)
    first, *_ = servers.values()
    client = client_of(servers)
    async with AsyncClient(
        list(servers), transport={url: AsyncFakeTransport(fake) for url, fake in servers.items()}, retry=AT_ONCE
    ) as aclient:
        for infer in (lambda: asyncio.to_thread(client.infer, "echo", {"x": X}), lambda: aclient.infer("echo", {"x": X})):
            first.error = UnavailableError("gone")
            for _ in range(20):
                await infer()
            first.error = None
            first.calls.clear()
            deadline = time.monotonic() + 10
            while not first.n_infers and time.monotonic() < deadline:
                await infer()
                await asyncio.sleep(0.01)
            assert first.n_infers
            assert isinstance(first.calls[0], ServerReady)  # no caller had to try it


def test_while_all_servers_are_gone_they_are_asked_all_the_same(servers: dict[str, Broken]) -> None:
    client = client_of(servers)
    client.infer("echo", {"x": X})
    for server in servers.values():
        server.error = UnavailableError("gone")
    with pytest.raises(UnavailableError):
        client.infer("echo", {"x": X})
    for server in servers.values():
        server.error = None
    assert client.infer("echo", {"x": X})["y"].tolist() == X.tolist()


def test_health_is_a_yes_where_one_of_the_servers_says_yes(servers: dict[str, Broken]) -> None:
    client = client_of(servers)
    *gone, _ = servers.values()
    for server in gone:
        server.error = UnavailableError("gone")
    for _ in range(10):
        assert client.ready()
    for server in servers.values():
        server.error = UnavailableError("gone")
    assert not client.ready()


def test_models_are_loaded_on_every_server(servers: dict[str, Broken]) -> None:
    client = client_of(servers)
    client.load("echo")
    assert all([type(call) for call in server.calls] == [LoadModel] for server in servers.values())
    first, second, third = servers.values()
    second.error = ServerFailureError("no such file")
    with pytest.raises(ServerFailureError, match="no such file"):
        client.load("echo")
    assert len(first.calls) == len(second.calls) == len(third.calls) == 2


async def test_a_hedge_cuts_a_long_wait_short(servers: dict[str, Broken]) -> None:
    slow, *fast = servers.values()
    slow.takes_s = 1.0
    with client_of(servers, hedge_after_s=0.02) as client:
        for _ in range(9):
            started = time.monotonic()
            client.infer("echo", {"x": X})
            assert time.monotonic() - started < 0.5
    assert slow.n_infers + sum(server.n_infers for server in fast) >= 9


async def test_both_clients_hedge(servers: dict[str, Broken]) -> None:
    class Slow(AsyncFakeTransport):
        async def send(self, call: Call[Any], timeout_s: float) -> Any:
            if isinstance(call, Infer):
                await asyncio.sleep(1.0)
            return await super().send(call, timeout_s)

    first, *others = servers
    transports = {first: Slow(servers[first]), **{url: AsyncFakeTransport(servers[url]) for url in others}}
    async with AsyncClient(list(servers), transport=transports, hedge_after_s=0.02) as client:
        started = time.monotonic()
        for _ in range(9):
            await client.infer("echo", {"x": X})
        assert time.monotonic() - started < 0.9


def test_hedges_stay_within_the_budget() -> None:
    fake = Broken()
    fake.takes_s = 0.03
    retry = Retry(budget_share=0.1, budget_reserve=3)
    with Client(transport=fake, hedge_after_s=0.001, retry=retry) as client:
        for _ in range(30):
            client.infer("echo", {"x": X})
        assert 30 + 3 <= fake.n_infers <= 30 * 1.2 + 4


def test_a_hedge_of_what_fails_fails() -> None:
    fake = new_fake()
    with Client(transport=fake, hedge_after_s=5.0, retry=None) as client:
        client.infer("echo", {"x": X})
        fake.failures.append(ServerFailureError("first"))
        with pytest.raises(ServerFailureError, match="first"):
            client.infer("echo", {"x": X})


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "found none"),
        (["grpc://a", "grpc://a:8001"], "each server once, found grpc://a:8001 2 times"),
        (["grpc://a", "b"], "scheme is missing"),
    ],
)
def test_urls_that_are_none_are_refused(urls: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Client(urls)


def test_each_url_needs_a_transport_where_some_are_given() -> None:
    with pytest.raises(UsageError, match="one for each URL, found none for grpc://b:8001"):
        Client(["grpc://a", "grpc://b"], transport={"grpc://a": new_fake()})


def until(condition: Callable[[], bool], client: Client) -> bool:
    """Whether a condition comes true within some seconds of calls."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        client.live(timeout_s=0.1)
        time.sleep(0.01)
    return condition()


def test_a_name_with_many_addresses_is_many_servers(monkeypatch: pytest.MonkeyPatch, served: Any) -> None:
    addresses = ["127.0.0.1", "127.0.0.2"]
    monkeypatch.setattr("convoy.serving.client._base.look_up", lambda _: list(addresses))
    monkeypatch.setattr("convoy.serving.client._router.LOOK_UP_S", 0.0)
    # the double listens on 127.0.0.1 alone: the other address refuses, which costs nobody a failed call
    with Client(f"{served.url.split(':')[0]}://triton.invalid:{served.port}", timeout_s=20) as client:
        fleet = client._router.fleet
        assert until(lambda: {node.endpoint.ip for node in fleet.nodes} == set(addresses), client)
        for _ in range(20):
            assert client.infer("echo", {"x": X})["y"].tolist() == X.tolist()
        addresses[:] = ["127.0.0.1", "127.0.0.3"]
        assert until(lambda: {node.endpoint.ip for node in fleet.nodes} == set(addresses), client)
        assert until(lambda: client._router.discarded == [], client)  # closed once they are idle


def test_names_are_looked_up_and_addresses_and_this_machine_are_not() -> None:
    assert look_up(Endpoint("grpc", "localhost", 8001)) == ["127.0.0.1"]
    endpoints = parse_all(["grpc://localhost", "grpc://10.0.0.1", "grpc://[::1]"])
    fleet = Fleet(endpoints, lambda _: None)
    assert [str(node.endpoint) for node in fleet.nodes] == ["grpc://localhost:8001", "grpc://10.0.0.1:8001", "grpc://[::1]:8001"]
    with Client(["grpc://localhost", "grpc://10.0.0.1", "grpc://[::1]"]) as client:
        assert client._router._names == ()


def refusing(status: grpc.StatusCode, n: int) -> tuple[Callable[[str, bytes, Any], bytes], list[str]]:
    asked: list[str] = []
    lock = threading.Lock()

    def behave(method: str, _: bytes, context: Any) -> bytes:
        with lock:
            asked.append(method)
            refuse = len(asked) <= n
        if refuse:
            context.abort(status, "not now")
        return b""

    return behave, asked


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_a_grpc_server_that_refuses_is_asked_again(grpc_double: Any, status: grpc.StatusCode) -> None:
    behave, asked = refusing(status, 2)
    with Client(grpc_double(behave).url, retry=AT_ONCE) as client:
        assert client.models() == []
    assert asked == ["RepositoryIndex"] * 3
    behave, asked = refusing(status, 2)
    async with AsyncClient(grpc_double(behave).url, retry=AT_ONCE) as aclient:
        assert await aclient.models() == []
    assert asked == ["RepositoryIndex"] * 3


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_a_rest_server_that_refuses_is_asked_again(http_double: Any, status: int) -> None:
    asked: list[str] = []

    def behave(_: str, path: str, __: Any, ___: bytes) -> tuple[int, dict[str, str], bytes]:
        asked.append(path)
        return (status, {}, b"not now") if len(asked) % 3 else (200, {}, b"[]")

    url = http_double(behave).url
    with Client(url, retry=AT_ONCE) as client:
        assert client.models() == []
    async with AsyncClient(url, retry=AT_ONCE) as aclient:
        assert await aclient.models() == []
    assert asked == ["/v2/repository/index"] * 6


def test_a_server_killed_under_load_costs_no_failed_call_while_another_lives(served_twice: Any) -> None:
    one, other = served_twice
    failed: list[BaseException] = []
    done = Counter[int]()
    stop = threading.Event()

    with Client([one.url, other.url], retry=None, timeout_s=20) as client:

        def call(i: int) -> None:
            while not stop.is_set():
                try:
                    client.infer("echo", {"x": X})
                    done[i] += 1
                except ClientError as error:
                    failed.append(error)

        with ThreadPoolExecutor(8) as pool:
            callers = [pool.submit(call, i) for i in range(8)]
            time.sleep(0.3)
            one.stop()
            time.sleep(0.5)
            before = dict(done)
            time.sleep(0.3)
            stop.set()
            for caller in callers:
                caller.result(20)
    assert failed == []
    assert all(done[i] > before[i] for i in range(8))  # nobody waits for the one that is gone
