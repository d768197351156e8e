"""``read_amounts_iter`` on a fake server: order, bounds, images that cannot be read."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.contract.errors import ImageError, UsageError
from convoy.serving.client import AsyncClient, Client
from convoy.serving.client._call import Infer
from convoy.serving.client.testing import AsyncFakeTransport, FakeModel, FakeTransport


def make_server(max_batch_size: int = 4) -> FakeTransport:
    """A fake server whose reader says the first pixel of a field, and the field's width as decimals."""

    def read(field: np.ndarray) -> list[tuple[str, float]]:
        return [(f"{field[0, 0]}.{field.shape[1]:03}", 0.75)]

    model = FakeModel.of_amounts(read, height_px=8, widths_px=(16, 32, 64), max_batch_size=max_batch_size)
    return FakeTransport({"check-reader": model})


def field(value: int, width_px: int = 20) -> np.ndarray:
    return np.full((8, width_px), value, np.uint8)


@given(
    fields=st.lists(st.tuples(st.integers(0, 255), st.integers(1, 64), st.integers(0, 9)), max_size=40),
    max_batch_size=st.integers(1, 5),
    in_order=st.booleans(),
)
def test_each_amount_comes_once_with_its_place_and_each_bad_image_is_told(
    fields: list[tuple[int, int, int]], max_batch_size: int, in_order: bool
) -> None:
    images = [field(value, width) if luck else b"no image" for value, width, luck in fields]
    told: list[int] = []
    progress: list[int] = []
    with Client(transport=make_server(max_batch_size)) as client:
        amounts = list(
            client.read_amounts_iter(
                iter(images), in_order=in_order, on_unreadable=lambda place, _: told.append(place), progress=progress.append
            )
        )
    expected = {place: f"{value}.{width:03}" for place, (value, width, luck) in enumerate(fields) if luck}
    assert {place: amount.text for place, amount in amounts} == expected
    assert len(amounts) == len(expected)
    assert sorted(told) == [place for place, (*_, luck) in enumerate(fields) if not luck]
    assert progress[-1:] == [len(images)][: len(images)]
    if in_order:
        assert [place for place, _ in amounts] == sorted(expected)
        assert told == sorted(told)


async def test_the_async_client_reads_alike_from_async_images_too() -> None:
    images = [field(i, 1 + i % 64) if i % 7 else b"" for i in range(60)]

    async def one_by_one() -> AsyncIterator[object]:
        for image in images:
            yield image

    server = make_server()
    told: list[int] = []
    with Client(transport=server) as client:
        expected = list(client.read_amounts_iter(images, on_unreadable=lambda place, _: None))
    async with AsyncClient(transport=AsyncFakeTransport(server)) as aclient:
        answers = aclient.read_amounts_iter(one_by_one(), on_unreadable=lambda place, _: told.append(place))  # type: ignore[arg-type]
        assert [answer async for answer in answers] == expected
        assert told == list(range(0, 60, 7))
        with pytest.raises(ImageError, match="image 0: "):
            _ = [answer async for answer in aclient.read_amounts_iter(images)]


@pytest.mark.parametrize("in_order", [True, False])
def test_a_source_without_end_is_read_no_further_ahead_than_a_few_requests(in_order: bool) -> None:
    read = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal read
        for read in itertools.count(1):
            yield field(read % 256, 60 if read == 3 else 10)  # the only one of its width

    with Client(transport=make_server()) as client:
        amounts = client.read_amounts_iter(images(), in_order=in_order)
        seen = list(itertools.islice(amounts, 400))
        assert read < 400 + 200
        amounts.close()
    assert 2 in {place for place, _ in seen}  # it was not held back for company for ever
    if in_order:
        assert [place for place, _ in seen] == list(range(400))


def test_a_slow_source_is_answered_at_once_in_requests_of_one() -> None:
    read = []

    def images() -> Iterator[np.ndarray]:
        for value in range(250):
            read.append(value)
            yield field(value)

    server = make_server()
    with Client(transport=server) as client:
        amounts = client.read_amounts_iter(images(), batch_size=1)
        assert next(amounts)[1].text == "0.020"
        assert len(read) < 100  # as many as may be under way, and those that are being prepared
        assert len(list(amounts)) == 249
        assert {call.inputs[0].shape[0] for call in server.inferences} == {1}
        with pytest.raises(UsageError, match="batch_size"):
            client.read_amounts_iter([], batch_size=0)


def test_what_is_wrong_is_said_before_the_first_image_is_read() -> None:
    with Client(transport=make_server()) as client:
        with pytest.raises(UsageError, match="box"):
            client.read_amounts_iter([field(1)], box=(1, 2, 3))  # type: ignore[arg-type]
        answers = client.read_amounts_iter([field(1), b"no image", field(2)])
        with pytest.raises(ImageError, match="image 1: "):
            list(answers)
        assert [amount.text for _, amount in client.read_amounts_iter([field(1)])] == ["1.020"]


def test_where_one_request_is_late_not_all_others_wait_for_it() -> None:
    late = threading.Event()

    class Late(FakeTransport):
        def send(self, call: Any, timeout_s: float) -> Any:
            if isinstance(call, Infer) and call.inputs[0].data[0] == 1:
                late.wait(30)
            return super().send(call, timeout_s)

    read = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal read
        for read in range(1, 100_000):
            yield field(1 if read == 1 else 2)
            if read == 3_000:  # it has gone far too far ahead
                late.set()

    threading.Timer(2.0, late.set).start()
    with Client(transport=Late(make_server().models)) as client:
        amounts = client.read_amounts_iter(images(), timeout_s=60)
        assert next(amounts)[1].text == "1.020"
        assert read < 1_500
        amounts.close()
