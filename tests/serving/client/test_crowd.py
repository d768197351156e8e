"""Callers who wait for one model share requests, and nobody notices but for the speed."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ClientError, DeadlineExceededError, InvalidRequestError, UnavailableError
from convoy.serving.client import AsyncClient, Client, Retry
from convoy.serving.client._call import Call, Infer
from convoy.serving.client._crowd import AT_ONCE
from convoy.serving.client.testing import AsyncFakeTransport, FakeModel, FakeTransport

MERGES = {"max_batch_size": 16, "dynamic_batching": {}}


def doubled(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if (inputs["a"] < 0).any():
        raise InvalidRequestError("expected no negative numbers")
    return {"y": inputs["a"] * 2}


class Slow(FakeTransport):
    """A server that takes its time for each inference."""

    def __init__(self, config: dict[str, Any] | None = None, run: Any = doubled, datatype: str = "FP32") -> None:
        super().__init__({"m": FakeModel(run, {"a": (datatype, (-1, 2))}, MERGES if config is None else config)})
        self.takes_s = 0.005

    def send(self, call: Call[Any], timeout_s: float) -> Any:
        if isinstance(call, Infer):
            time.sleep(min(self.takes_s, timeout_s))
        return super().send(call, timeout_s)

    @property
    def rows(self) -> list[int]:
        return [call.inputs[0].shape[0] for call in self.calls if isinstance(call, Infer)]


class AsyncSlow(AsyncFakeTransport):
    """``Slow`` in a thread, so that the event loop goes on."""

    async def send(self, call: Call[Any], timeout_s: float) -> Any:
        return await asyncio.to_thread(self._fake.send, call, timeout_s)


def row(i: float) -> dict[str, np.ndarray]:
    return {"a": np.full((1, 2), i, np.float32)}


async def ask_all(server: FakeTransport, n: int, **options: Any) -> list[Any]:
    """What ``n`` callers at once are told: answers, or errors."""
    async with AsyncClient(transport=AsyncSlow(server), **options) as client:
        await client.infer("m", row(0))  # reads the metadata
        return await asyncio.gather(*(client.infer("m", row(i)) for i in range(n)), return_exceptions=True)


async def test_callers_at_once_share_requests_and_each_gets_his_own() -> None:
    server = Slow()
    answers = await ask_all(server, 200)
    assert [answer["y"].tolist() for answer in answers] == [[[2.0 * i] * 2] for i in range(200)]
    assert all(answer.model_name == "m" and answer.model_version == "1" for answer in answers)
    assert sum(server.rows) == 201
    assert len(server.rows) < 40
    assert max(server.rows) <= 16


def test_threads_share_requests_too() -> None:
    server = Slow()
    with Client(transport=server) as client, ThreadPoolExecutor(32) as pool:
        client.infer("m", row(0))
        answers = list(pool.map(lambda i: client.infer("m", row(i))["y"][0, 0], range(400)))
    assert answers == [2.0 * i for i in range(400)]
    assert sum(server.rows) == 401
    assert len(server.rows) < 200


async def test_a_few_callers_share_nothing() -> None:
    server = Slow()
    await ask_all(server, AT_ONCE)
    assert server.rows == [1] * (1 + AT_ONCE)


@pytest.mark.parametrize(
    ("config", "options"),
    [({"max_batch_size": 16}, {}), ({"max_batch_size": 0, "dynamic_batching": {}}, {}), (MERGES, {"merge": False})],
)
async def test_where_the_server_merges_nothing_neither_does_the_client(config: dict[str, Any], options: dict[str, Any]) -> None:
    server = Slow(config)
    answers = await ask_all(server, 50, **options)
    assert [answer["y"][0, 0] for answer in answers] == [2.0 * i for i in range(50)]
    assert server.rows == [1] * 51


async def test_a_callers_mistake_is_his_own() -> None:
    server = Slow()
    async with AsyncClient(transport=AsyncSlow(server)) as client:
        await client.infer("m", row(0))
        numbers = [-1 if i == 20 else i for i in range(60)]
        answers = await asyncio.gather(*(client.infer("m", row(i)) for i in numbers), return_exceptions=True)
    assert isinstance(answers[20], InvalidRequestError)
    assert [answer["y"][0, 0] for i, answer in enumerate(answers) if i != 20] == [2.0 * i for i in range(60) if i != 20]


async def test_where_nobody_answers_all_are_told_and_the_server_is_left_alone() -> None:
    server = Slow()
    async with AsyncClient(transport=AsyncSlow(server), retry=None) as client:
        await client.infer("m", row(0))
        server.failures.extend(UnavailableError("gone") for _ in range(1000))
        before = len(server.calls)
        answers = await asyncio.gather(*(client.infer("m", row(i)) for i in range(64)), return_exceptions=True)
        assert all(isinstance(answer, UnavailableError) for answer in answers)
        assert len({id(answer) for answer in answers}) == 64  # an error object of one's own
        assert len(server.calls) - before < 20


async def test_each_caller_waits_no_longer_than_his_own_deadline() -> None:
    server = Slow()
    async with AsyncClient(transport=AsyncSlow(server)) as client:
        await client.infer("m", row(0))
        server.takes_s = 0.5
        started = time.monotonic()

        async def ask(i: int) -> tuple[Any, float]:
            try:
                answer: Any = (await client.infer("m", row(i), timeout_s=0.1 if i % 2 else 20))["y"][0, 0]
            except ClientError as error:
                answer = error
            return answer, time.monotonic() - started

        answers = await asyncio.gather(*(ask(i) for i in range(AT_ONCE, AT_ONCE + 20)))
    for i, (answer, seconds) in enumerate(answers, AT_ONCE):
        if i % 2:
            assert seconds < 0.4 or not isinstance(answer, DeadlineExceededError)
        else:
            assert answer == 2.0 * i


async def test_callers_who_are_cancelled_leave_the_others_alone() -> None:
    server = Slow()
    async with AsyncClient(transport=AsyncSlow(server)) as client:
        await client.infer("m", row(0))
        for _ in range(20):
            tasks = [asyncio.ensure_future(client.infer("m", row(i))) for i in range(40)]
            await asyncio.sleep(0.002 * np.random.default_rng().random() * 8)
            for task in tasks[::3]:
                task.cancel()
            answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
            for i, answer in enumerate(answers):
                if i % 3 == 0 and isinstance(answer, asyncio.CancelledError):
                    continue
                assert answer["y"][0, 0] == 2.0 * i
        assert (await client.infer("m", row(7)))["y"][0, 0] == 14.0


async def test_who_is_cancelled_counts_no_more(fake: FakeTransport) -> None:
    server = Slow()
    async with AsyncClient(transport=AsyncSlow(server)) as client:
        await client.infer("m", row(0))
        server.takes_s = 0.2
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.infer("m", row(1)), 0.01)
        assert not client._models.of(("m", "")).under_way


async def test_an_output_without_rows_is_not_shared() -> None:
    server = Slow(run=lambda inputs: {"y": inputs["a"], "n": np.array([len(inputs["a"])], np.int32)})
    answers = await ask_all(server, 64)
    assert [answer["n"].tolist() for answer in answers] == [[1]] * 64
    assert [answer["y"][0, 0] for answer in answers] == list(range(64))


async def test_only_what_is_alike_is_shared() -> None:
    server = Slow()
    model = FakeModel(doubled, {"a": ("FP32", (-1, -1))}, MERGES)
    server.models["m"] = model
    async with AsyncClient(transport=AsyncSlow(server)) as client:
        shapes = [(1 + i % 3, 1 + i % 4) for i in range(90)]
        answers = await asyncio.gather(*(client.infer("m", {"a": np.full(shape, i, np.float32)}) for i, shape in enumerate(shapes)))
    for i, (answer, shape) in enumerate(zip(answers, shapes, strict=True)):
        assert answer["y"].shape == shape
        assert (answer["y"] == 2.0 * i).all()
    assert len(server.rows) < 90


async def test_text_is_shared_as_numbers_are() -> None:
    server = Slow(run=lambda inputs: {"y": inputs["a"]}, datatype="BYTES")
    async with AsyncClient(transport=AsyncSlow(server)) as client:
        texts = [[[f"{i}" * i, "ä"]] for i in range(64)]
        answers = await asyncio.gather(*(client.infer("m", {"a": np.array(text, object)}) for text in texts))
    assert [[[t.decode() for t in pair] for pair in answer["y"]] for answer in answers] == texts
    assert max(server.rows) > 1


async def test_classify_shares_requests(fake: FakeTransport) -> None:
    fake.models["digits"].config["dynamic_batching"] = {}
    server = Slow()
    server.models = fake.models
    async with AsyncClient(transport=AsyncSlow(server)) as client:
        await client.interface("digits")
        images = [np.full((1, 4, 4, 1), i % 3, np.uint8) for i in range(64)]
        answers = await asyncio.gather(*(client.classify("digits", image) for image in images))
    assert [prediction.index for (prediction,) in answers] == [i % 3 for i in range(64)]
    assert max(server.rows) > 1


def test_many_threads_and_many_errors_leave_nobody_waiting() -> None:
    server = Slow()
    server.takes_s = 0.0005
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            server.failures.append(UnavailableError("for a moment"))
            time.sleep(0.003)

    retry = Retry(first_pause_s=0.001, longest_pause_s=0.002, budget_share=1.0)
    with Client(transport=server, retry=retry) as client, ThreadPoolExecutor(33) as pool:
        client.infer("m", row(0))
        disturber = pool.submit(disturb)

        def ask(i: int) -> bool:
            try:
                return bool(client.infer("m", row(-1 if i % 50 == 7 else i))["y"][0, 0] == 2.0 * i)
            except InvalidRequestError:
                return i % 50 == 7
            except UnavailableError:
                return True

        assert all(pool.map(ask, range(3000)))
        stop.set()
        disturber.result(10)


async def test_what_all_want_to_know_of_a_model_is_asked_once() -> None:
    server = Slow()
    async with AsyncClient(transport=AsyncSlow(server)) as client:
        await asyncio.gather(*(client.infer("m", row(i)) for i in range(100)))
    asked = [type(call).__name__ for call in server.calls]
    assert asked.count("DescribeModel") == asked.count("ReadConfig") == 1


async def test_where_nobody_can_be_asked_all_are_told() -> None:
    server = Slow()
    server.failures.extend(UnavailableError("gone") for _ in range(1000))
    async with AsyncClient(transport=AsyncSlow(server), retry=None) as client:
        answers = await asyncio.gather(*(client.infer("m", row(i)) for i in range(100)), return_exceptions=True)
        assert all(isinstance(answer, UnavailableError) for answer in answers)
        assert len(server.calls) == 1
        server.failures.clear()
        assert (await client.infer("m", row(1)))["y"][0, 0] == 2.0
