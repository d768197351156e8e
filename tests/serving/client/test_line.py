"""Big inputs: split, several requests under way, answered in order or as they come, with bounded memory."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.contract.errors import ClientError, OverloadedError, ServerFailureError, UsageError
from convoy.serving.client import AsyncClient, Client, Retry, _images, _tensors
from convoy.serving.client._call import Call, Infer
from convoy.serving.client._window import Window
from convoy.serving.client.testing import AsyncFakeTransport, FakeModel, FakeTransport


class Gauge(FakeTransport):
    """A server that counts the requests under way and takes its time for each."""

    def __init__(self, models: dict[str, FakeModel], *, takes_s: Any = lambda: 0.0) -> None:
        super().__init__(models)
        self.takes_s = takes_s
        self.under_way = self.most = 0
        self.refusals = 0
        self._count = threading.Lock()

    def send(self, call: Call[Any], timeout_s: float) -> Any:
        if not isinstance(call, Infer):
            return super().send(call, timeout_s)
        with self._count:
            if self.refusals:
                self.refusals -= 1
                raise OverloadedError("full")
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            time.sleep(self.takes_s())
            return super().send(call, timeout_s)
        finally:
            with self._count:
                self.under_way -= 1


class AsyncGauge(AsyncFakeTransport):
    """``Gauge`` in a thread, so that requests overlap in an event loop too."""

    async def send(self, call: Call[Any], timeout_s: float) -> Any:
        return await asyncio.to_thread(self._fake.send, call, timeout_s)


@pytest.fixture
def gauge(fake: FakeTransport) -> Gauge:
    """``digits`` takes batches of 4; ``plus`` batches of 3, and has two inputs."""
    plus = FakeModel(
        lambda inputs: {"sum": inputs["a"] + inputs["b"], "n": np.full((len(inputs["a"]), 1), len(inputs["a"]), np.int32)},
        {"a": ("FP32", (-1, 2)), "b": ("FP32", (-1, 2))},
        {"max_batch_size": 3},
    )
    return Gauge({**fake.models, "plus": plus}, takes_s=lambda: random.uniform(0, 0.004))


def pixels_of(classes: np.ndarray) -> np.ndarray:
    return np.asarray(classes, np.uint8).repeat(16).reshape(-1, 4, 4, 1)


async def test_predictions_come_in_order_however_answers_do(gauge: Gauge) -> None:
    classes = np.random.default_rng(0).integers(0, 3, 203)
    told: list[int] = []
    with Client(transport=gauge) as client:
        assert [p.index for p in client.classify("digits", pixels_of(classes), progress=told.append)] == classes.tolist()
        assert told == [*range(4, 203, 4), 203]
        assert [(i, p.index) for i, p in client.classify_iter("digits", pixels_of(classes))] == list(enumerate(classes))
    async with AsyncClient(transport=AsyncGauge(gauge)) as aclient:
        assert [p.index for p in await aclient.classify("digits", pixels_of(classes))] == classes.tolist()
        assert [(i, p.index) async for i, p in aclient.classify_iter("digits", pixels_of(classes))] == list(enumerate(classes))
    assert gauge.most > 1


async def test_predictions_as_they_are_answered_say_whose_they_are(gauge: Gauge) -> None:
    classes = np.random.default_rng(0).integers(0, 3, 203)
    slow_start = iter([0.3] + [0.0] * 1000)
    gauge.takes_s = lambda: next(slow_start)
    with Client(transport=gauge) as client:
        found = [(i, p.index) for i, p in client.classify_iter("digits", pixels_of(classes), in_order=False)]
    assert sorted(found) == list(enumerate(classes))
    assert found[0][0] != 0  # the first batch was the slow one
    async with AsyncClient(transport=AsyncGauge(gauge)) as aclient:
        answers = aclient.classify_iter("digits", pixels_of(classes), in_order=False)
        assert sorted([(i, p.index) async for i, p in answers]) == list(enumerate(classes))


@given(n=st.integers(0, 20), columns=st.integers(1, 2))
def test_tensors_are_split_and_joined(n: int, columns: int) -> None:
    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert len(inputs["a"]) <= 3
        return {"y": inputs["a"] * 2, "text": np.array([[str(v).encode()] for v in inputs["a"][:, 0]], object).reshape(-1, 1)}

    model = FakeModel(run, {"a": ("INT64", (-1, columns))}, {"max_batch_size": 3})
    a = np.arange(n * columns).reshape(n, columns)
    with Client(transport=FakeTransport({"m": model})) as client:
        result = client.infer("m", {"a": a})
    assert result["y"].dtype == np.int64
    assert result["y"].tolist() == (a * 2).tolist()
    assert result["text"].tolist() == [[str(v).encode()] for v in a[:, 0]]


async def test_both_clients_split_tensors_with_several_inputs(gauge: Gauge) -> None:
    a, b = (np.random.default_rng(seed).normal(size=(100, 2)).astype(np.float32) for seed in (0, 1))
    told: list[int] = []
    with Client(transport=gauge) as client:
        result = client.infer("plus", {"a": a, "b": b}, outputs=["sum", "n"], progress=told.append)
    assert np.array_equal(result["sum"], a + b)
    assert result["n"].ravel().tolist() == [3] * 99 + [1]
    assert told[-1] == 100
    async with AsyncClient(transport=AsyncGauge(gauge)) as aclient:
        assert np.array_equal((await aclient.infer("plus", {"a": a, "b": b}))["sum"], a + b)


def test_requests_are_bounded_by_their_bytes_too(gauge: Gauge, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_images, _tensors):
        monkeypatch.setattr(module, "MOST_BYTES", 33)  # two rows of two inputs of two floats, and one of one image and some
    with Client(transport=gauge) as client:
        client.infer("plus", {"a": np.zeros((7, 2), np.float32), "b": np.zeros((7, 2), np.float32)})
        client.classify("digits", pixels_of(np.zeros(5)))
    rows = [call.inputs[0].shape[0] for call in gauge.calls if isinstance(call, Infer)]
    assert sorted(rows, reverse=True) == [2, 2, 2, 2, 2, 1, 1]


def test_a_model_without_batches_gets_what_was_given(gauge: Gauge) -> None:
    with Client(transport=gauge) as client:
        client.infer("echo", {"x": np.zeros((1000, 2), np.float32)})
    assert sum(isinstance(call, Infer) for call in gauge.calls) == 1


def test_a_batch_is_answered_by_one_version(gauge: Gauge) -> None:
    answered = 0

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        nonlocal answered
        answered += 1
        if answered == 5:  # a new version comes while the batch is under way
            gauge.models["m"] = FakeModel(lambda inputs: {"y": inputs["a"] + 10}, inputs_of, config, version="2")
        return {"y": inputs["a"]}

    inputs_of, config = {"a": ("FP32", (-1, 1))}, {"max_batch_size": 1}
    gauge.models["m"] = FakeModel(run, inputs_of, config, version="1")
    with Client(transport=gauge, max_in_flight=2) as client:
        result = client.infer("m", {"a": np.zeros((20, 1), np.float32)})
    assert result.model_version == "2"
    assert result["y"].ravel().tolist() == [10.0] * 20


async def test_a_generator_without_end_is_read_as_it_is_used(gauge: Gauge) -> None:
    read = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield pixels_of(np.array([read % 3]))[0]

    with Client(transport=gauge, max_in_flight=3) as client:
        for i, prediction in client.classify_iter("digits", images()):
            assert prediction.index == (i + 1) % 3
            if i == 100:
                break
    assert read <= 100 + 4 * (2 * 3 + 1)
    read = 0
    async with AsyncClient(transport=AsyncGauge(gauge), max_in_flight=3) as aclient:
        async for i, _ in aclient.classify_iter("digits", images()):
            if i == 100:
                break
    assert read <= 100 + 4 * (2 * 3 + 1)


def test_memory_does_not_grow_with_the_number_of_images(gauge: Gauge) -> None:
    gauge.takes_s = lambda: 0.0
    gauge.models["digits"] = FakeModel.classifier(
        Client(transport=gauge).interface("digits"), lambda pixels: np.full((len(pixels), 3), 1 / 3), max_batch_size=64
    )
    image = np.zeros((4, 4, 1), np.uint8)

    def peak(n: int) -> int:
        tracemalloc.start()
        with Client(transport=gauge, max_in_flight=4) as client:
            for _ in client.classify_iter("digits", (image.copy() for _ in range(n))):
                gauge.calls.clear()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(500)
    assert peak(20_000) < 1.5 * peak(2_000) + 100_000


def test_an_error_ends_the_call_and_nothing_more_is_read(gauge: Gauge) -> None:
    read = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield pixels_of(np.array([0]))[0]

    with Client(transport=gauge) as client:
        client.interface("digits")
        answers = client.classify_iter("digits", images())
        next(answers)
        gauge.failures.append(ServerFailureError("segmentation fault"))
        with pytest.raises(ServerFailureError):
            list(answers)
    assert read < 300


def test_a_server_that_sheds_load_gets_less_and_the_call_goes_on(gauge: Gauge) -> None:
    classes = np.random.default_rng(0).integers(0, 3, 400)
    gauge.refusals = 60
    retry = Retry(attempts=1, first_pause_s=0.001, longest_pause_s=0.01)
    with Client(transport=gauge, retry=retry) as client:
        assert [p.index for p in client.classify("digits", pixels_of(classes))] == classes.tolist()
        gauge.refusals = 10**9
        with pytest.raises(ClientError):
            client.classify("digits", pixels_of(classes), timeout_s=0.2)


def test_no_more_requests_are_under_way_than_allowed(gauge: Gauge) -> None:
    gauge.takes_s = lambda: 0.002
    with Client(transport=gauge, max_in_flight=5) as client:
        client.classify("digits", pixels_of(np.zeros(800)))
    assert 2 < gauge.most <= 5
    with pytest.raises(UsageError, match="max_in_flight: expected a whole number"):
        Client(transport=gauge, max_in_flight=0)


def served_by(workers: int, window: Window, *, requests: int = 3000, takes_s: float = 0.01) -> list[int]:
    """The window's limits while ``workers`` serve its requests in the order in which they come."""
    limits, now, free = [], 0.0, [0.0] * workers
    under_way: list[tuple[float, float]] = []
    for _ in range(requests):
        while len(under_way) < window.limit:
            worker = min(range(workers), key=free.__getitem__)
            free[worker] = max(now, free[worker]) + takes_s
            under_way.append((free[worker], now))
        under_way.sort()
        ended, began = under_way.pop(0)
        now = max(now, ended)
        window.answered(ended - began, rows=8)
        limits.append(window.limit)
    return limits


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_as_many_requests_are_under_way_as_keep_the_server_busy(workers: int) -> None:
    window = Window(64)
    for takes_s in (0.01, 0.1, 0.01):  # the server becomes slower, and quick again
        settled = served_by(workers, window, takes_s=takes_s)[1500:]
        enough = [limit > workers for limit in settled]
        assert np.mean(enough) > 0.9  # but for the moments in which it looks how short the shortest time is
        assert max(settled) <= workers + 8


def test_a_window_stays_within_its_bounds() -> None:
    assert max(served_by(100, Window(6))) == 6
    window = Window(1)
    assert window.limit == 1
    window.refused()
    assert window.limit == 1
    window = Window(64)
    served_by(32, window)
    before = window._limit
    window.refused()
    assert window._limit == before / 2
