"""Both clients on both wires while the network does its worst: the right answer or an error, in time, whatever happens.

What is promised where:

==================================  ===================================================================================
what befalls the connection         what a call ends with
==================================  ===================================================================================
late, cut, reset, stalled, refused  the right answer, or a ``ClientError`` within its deadline
the same, over TLS; flipped,        the same: TLS finds every byte that is not the sender's
doubled or lost bytes, over TLS
flipped, doubled or lost bytes,     an answer or a ``ClientError`` within the deadline, and nothing else. Whether a number
over plain TCP                      in a tensor was changed on the way no client can tell: neither HTTP/1.1 nor HTTP/2 has a
                                    checksum. (What can be told, shapes, names, sizes, is tested in ``test_garbage.py``.)
==================================  ===================================================================================
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from convoy.contract.errors import ClientError, ServerFailureError
from convoy.serving.client import AsyncClient, Client, Retry, Tls
from convoy.serving.client.testing import FakeTransport
from tests.serving.client.chaos import CUTTING, DISHONEST, HONEST, ChaosProxy, Harm, behind_tls, write_certificate

pytestmark = pytest.mark.alone  # calls have to end in time

TIMEOUT_S = 0.4
SLACK_S = 1.0  # two busy cores
CALLERS = 12
PAUSE_S = 0.05  # after an error: while a connection is refused, calls fail faster than it can be mended


@dataclass(frozen=True)
class Question:
    """A call, and whether an answer to it is right."""

    method: str
    arguments: tuple[Any, ...]
    is_right: Callable[[Any], bool]

    @classmethod
    def number(cls, i: int) -> Question:
        if i % 8 == 5:
            return cls("metadata", ("echo",), lambda answer: [tensor.name for tensor in answer.inputs] == ["x"])
        if i % 8 == 6:
            pixels = np.full((1, 4, 4, 1), i % 251, np.uint8)
            label = ("zero", "one", "two")[i % 251 % 3]
            return cls("classify", ("digits", pixels), lambda answer: [prediction.label for prediction in answer] == [label])
        if i % 8 == 7:
            return cls("models", (), lambda answer: sorted(model.name for model in answer) == ["digits", "echo"])
        x = np.random.default_rng(i).normal(size=(1 + i % 3, 2)).astype(np.float32)
        return cls("infer", ("echo", {"x": x}), lambda answer: np.array_equal(answer["y"], x) and answer.model_name == "echo")


@dataclass
class Tally:
    """How calls ended."""

    right: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    amiss: list[str] = field(default_factory=list)

    def note(self, question: Question, outcome: Any, seconds: float, timeout_s: float) -> None:
        if seconds > timeout_s + SLACK_S:
            self.amiss.append(f"{question.method} took {seconds:.2f} s: {outcome!r}")
        elif isinstance(outcome, ClientError):
            self.errors[type(outcome).__name__] += 1
        elif not isinstance(outcome, BaseException) and question.is_right(outcome):
            self.right += 1
        else:
            self.amiss.append(f"{question.method}: {outcome!r}")


def ask_in_threads(client: Client, questions: Sequence[Question], timeout_s: float = TIMEOUT_S, callers: int = CALLERS) -> Tally:
    tally = Tally()

    def ask(question: Question) -> tuple[Question, Any, float]:
        started = time.monotonic()
        try:
            outcome = getattr(client, question.method)(*question.arguments, timeout_s=timeout_s)
        except BaseException as error:
            outcome = error
        seconds = time.monotonic() - started
        if isinstance(outcome, ClientError):
            time.sleep(PAUSE_S)
        return question, outcome, seconds

    with ThreadPoolExecutor(callers) as pool:
        for question, outcome, seconds in pool.map(ask, questions, timeout=60):
            tally.note(question, outcome, seconds, timeout_s)
    return tally


async def ask_in_tasks(
    client: AsyncClient, questions: Sequence[Question], timeout_s: float = TIMEOUT_S, callers: int = CALLERS
) -> Tally:
    tally = Tally()
    left = iter(questions)

    async def ask() -> None:
        for question in left:
            started = time.monotonic()
            try:
                outcome = await getattr(client, question.method)(*question.arguments, timeout_s=timeout_s)
            except BaseException as error:
                outcome = error
            tally.note(question, outcome, time.monotonic() - started, timeout_s)
            if isinstance(outcome, ClientError):
                await asyncio.sleep(PAUSE_S)

    await asyncio.wait_for(asyncio.gather(*(ask() for _ in range(callers))), 60)
    return tally


async def ask_all(kind: type[Any], url: str | list[str], questions: Sequence[Question], **options: Any) -> Tally:
    """Ask with a client of this kind; the calls of both have ended when it returns."""
    how = (options.pop("timeout_s", TIMEOUT_S), options.pop("callers", CALLERS))
    if inspect.iscoroutinefunction(kind.infer):
        async with AsyncClient(url, **options) as aclient:
            return await ask_in_tasks(aclient, questions, *how)
    with Client(url, **options) as client:
        return await asyncio.to_thread(ask_in_threads, client, questions, *how)


@pytest.fixture(autouse=True)
def merging(fake: FakeTransport) -> None:
    """Both models take requests of several callers in one."""
    for model in fake.models.values():
        model.config.update(max_batch_size=4, dynamic_batching={})


@pytest.fixture
def real(served: Any) -> Any:
    """A server behind the proxy, and its scheme."""
    answer_at_once(served)
    return served


@pytest.fixture
def real_twice(served_twice: list[Any]) -> list[Any]:
    """Two servers, and their scheme."""
    for one in served_twice:
        answer_at_once(one)
    return served_twice


def answer_at_once(server: Any) -> None:
    """Have a REST double send its few packets without waiting for each other: else each answer takes the 40 ms of a delayed ACK."""
    handler = getattr(server._server, "RequestHandlerClass", None)
    if handler is not None:
        handler.disable_nagle_algorithm = True


def url_of(server: Any, port: int, secure: str = "") -> str:
    return f"{server.url.split(':')[0]}{secure}://127.0.0.1:{port}"


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both
async def test_what_comes_late_or_never_or_is_cut_is_the_right_answer_or_an_error_in_time(kind: type[Any], real: Any) -> None:
    questions = [Question.number(i) for i in range(150)]
    with ChaosProxy(real.port, HONEST, seed=1, every_bytes=1500, lasts_s=0.5) as proxy:
        tally = await ask_all(kind, url_of(real, proxy.port), questions)

    assert tally.amiss == []
    assert tally.right > 10
    assert sum(tally.errors.values()) > 5
    assert set(tally.errors) <= {"DeadlineExceededError", "UnavailableError"}
    assert sum(proxy.done.values()) >= 5, "not much has happened"


# Python's own `wrap_socket` leaves a socket open whose peer has gone with bytes unread: it has no remote address any more
@pytest.mark.filterwarnings(r"ignore:unclosed <ssl.SSLSocket fd=\d+, family=2, type=1, proto=0, laddr=\S+ \d+\)>:ResourceWarning")
@both
async def test_over_tls_no_damage_makes_a_wrong_answer(kind: type[Any], real: Any, tmp_path: Path) -> None:
    questions = [Question.number(i) for i in range(150)]
    tls = Tls(ca_file=tmp_path / "ca.pem")
    with (
        behind_tls(real.port, write_certificate(tmp_path)) as tls_port,
        ChaosProxy(tls_port, [*HONEST, *DISHONEST, *DISHONEST], seed=2, every_bytes=2500, lasts_s=0.5) as proxy,
    ):
        tally = await ask_all(kind, url_of(real, proxy.port, "s"), questions, tls=tls)

    assert tally.amiss == []
    assert tally.right > 10
    assert sum(tally.errors.values()) > 5
    assert proxy.done.keys() & set(DISHONEST), "nothing was damaged"


@both
async def test_over_plain_tcp_damage_ends_calls_in_time_and_with_nothing_but_answers_and_errors(kind: type[Any], real: Any) -> None:
    questions = [replace(Question.number(i), is_right=lambda _: True) for i in range(150)]
    with ChaosProxy(real.port, DISHONEST, seed=3, every_bytes=1500, lasts_s=0.5) as proxy:
        tally = await ask_all(kind, url_of(real, proxy.port), questions)

    assert tally.amiss == []
    assert tally.right > 10
    assert sum(tally.errors.values()) > 5
    assert len(proxy.done) >= 2, "not much was damaged"


@both
async def test_where_another_server_is_well_no_call_fails_that_was_cut_or_refused(kind: type[Any], real_twice: list[Any]) -> None:
    bad, good = real_twice
    with ChaosProxy(bad.port, CUTTING, seed=4, every_bytes=600, at_once=5) as proxy:
        urls = [url_of(bad, proxy.port), url_of(good, good.port)]
        # A client leaves the bad one alone after the first harm; three clients see some.
        tallies = [await ask_all(kind, urls, [Question.number(i) for i in range(130)], timeout_s=5.0) for _ in range(3)]

    assert [tally.amiss for tally in tallies] == [[], [], []]
    assert [tally.right for tally in tallies] == [130, 130, 130]
    assert sum(proxy.done.values()) >= 2


@both
async def test_where_another_server_is_well_a_hedge_makes_up_for_one_that_stalls(kind: type[Any], real_twice: list[Any]) -> None:
    bad, good = real_twice
    with ChaosProxy(bad.port, [Harm.STALL], seed=5, every_bytes=600, at_once=3) as proxy:
        urls = [url_of(bad, proxy.port), url_of(good, good.port)]
        infers = [question for question in map(Question.number, range(400)) if question.method == "infer"]
        tally = await ask_all(kind, urls, infers, timeout_s=2.0, hedge_after_s=0.05, retry=Retry(budget_share=1.0))

    assert tally.amiss == []
    assert tally.right >= 0.99 * len(infers)
    assert proxy.done[Harm.STALL] >= 1


@both
@pytest.mark.parametrize("hedge_after_s", [None, 0.05])
async def test_where_another_server_is_well_one_that_hangs_is_left_alone_by_callers_in_a_hurry_too(
    kind: type[Any], hedge_after_s: float | None, real_twice: list[Any]
) -> None:
    bad, good = real_twice
    infers = [question for question in map(Question.number, range(160)) if question.method == "infer"]
    with ChaosProxy(bad.port, [Harm.STALL], seed=8, at_once=10) as proxy:
        urls = [url_of(bad, proxy.port), url_of(good, good.port)]
        tally = await ask_all(kind, urls, infers, callers=1, hedge_after_s=hedge_after_s, merge=False)

    assert tally.amiss == []
    assert set(tally.errors) <= {"DeadlineExceededError"}
    assert sum(tally.errors.values()) <= 8  # of a hundred, half of which would have been sent there
    assert proxy.done[Harm.STALL] >= 1


@both
async def test_a_port_that_refuses_for_a_while_is_found_again(kind: type[Any], real: Any) -> None:
    questions = [Question.number(i) for i in range(40)]
    with ChaosProxy(real.port, (), seed=6) as proxy:
        url = url_of(real, proxy.port)
        assert (await ask_all(kind, url, questions, timeout_s=5.0)).right == 40
        proxy.refuse()
        while_refused = await ask_all(kind, url, questions[:12])
        proxy.accept()
        after = await ask_all(kind, url, questions, timeout_s=5.0)

    assert while_refused.errors == {"UnavailableError": 12}
    assert while_refused.amiss == []
    assert after.right == 40


@both
async def test_a_server_that_failed_once_gets_work_again(kind: type[Any], real_twice: list[Any]) -> None:
    one, other = real_twice
    behave, failed, asked = one.behave, threading.Event(), Counter[str]()

    def fail_once(*request: Any) -> Any:
        if len(request) == 3 and request[0] == "ModelInfer" and not failed.is_set():
            failed.set()
            request[2].abort(grpc.StatusCode.INTERNAL, "once")
        if len(request) == 4 and request[1].endswith("/infer") and not failed.is_set():
            failed.set()
            return 500, {}, b"once"
        asked["one"] += 1
        return behave(*request)

    one.behave = fail_once
    x = {"x": np.ones((1, 2), np.float32)}
    async with AsyncExitStack() as stack:
        if kind is AsyncClient:
            aclient = await stack.enter_async_context(AsyncClient([one.url, other.url]))
        else:
            client = stack.enter_context(Client([one.url, other.url]))

        async def infer() -> None:
            await (aclient.infer("echo", x) if kind is AsyncClient else asyncio.to_thread(client.infer, "echo", x))

        while not failed.is_set():
            with suppress(ServerFailureError):
                await infer()
        asked.clear()
        until = time.monotonic() + 10
        while not asked["one"] and time.monotonic() < until:
            await infer()
    assert asked["one"]
