"""Callers of a server, each in its own thread, who write down how every call ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convoy.contract.errors import ConvoyError, InvalidRequestError
from convoy.serving.client import Client

CALL_TIMEOUT_S = 30.0
"""A call that takes this long hangs."""


@dataclass(frozen=True)
class Ended:
    """How one call ended.

    Attributes:
        began: When it began, on ``time.monotonic``'s clock.
        ended: When it ended.
        error: The name of the error's class; empty where it was answered.
        words: The error's words.
    """

    began: float
    ended: float
    error: str = ""
    words: str = ""

    @property
    def latency_s(self) -> float:
        """How long it took."""
        return self.ended - self.began


@dataclass
class Calls:
    """What the callers wrote down.

    Attributes:
        n_good: How many calls were answered.
        failed: The calls that were not.
        slowest_s: The longest time that a good answer took.
    """

    n_good: int = 0
    failed: list[Ended] = field(default_factory=list)
    slowest_s: float = 0.0


@contextmanager
def arriving(url: str, model_name: str, every_s: float) -> Iterator[list[Ended]]:
    """Let a new caller arrive at regular intervals until the block ends, whatever became of those before him.

    Callers who wait for their answers all wait at once where a server stands still; only new ones tell how long it does.
    """
    calls: list[Ended] = []
    stop = threading.Event()

    with Client(url, timeout_s=CALL_TIMEOUT_S) as client, ThreadPoolExecutor(128) as pool:
        (tensor,) = client.metadata(model_name).inputs
        inputs = {tensor.name: np.zeros([1, *tensor.shape[1:]], np.uint8)}

        def call() -> None:
            began = time.monotonic()
            try:
                client.infer(model_name, inputs)
            except ConvoyError as error:
                calls.append(Ended(began, time.monotonic(), type(error).__name__, str(error)))
            else:
                calls.append(Ended(began, time.monotonic()))

        def arrive() -> None:
            while not stop.wait(every_s):
                pool.submit(call)

        thread = threading.Thread(target=arrive, name="arrivals")
        thread.start()
        try:
            yield calls
        finally:
            stop.set()
            thread.join()


@contextmanager
def calling(urls: Sequence[str], model_name: str, *, callers: int, pause_s: float = 0.0, mixed: bool = False) -> Iterator[Calls]:
    """Let callers call until the block ends.

    Args:
        urls: Caller i calls ``urls[i % len(urls)]``.
        model_name: A model of one input.
        callers: How many call at a time.
        pause_s: How long a caller waits between calls.
        mixed: Send batches of 1 to 8, now and then a request that the server must refuse, and connect anew now and then.
    """
    calls, stop, lock = Calls(), threading.Event(), threading.Lock()

    def call(i: int) -> None:
        rng = np.random.default_rng(i)
        client = Client(urls[i % len(urls)], timeout_s=CALL_TIMEOUT_S)
        (tensor,) = client.metadata(model_name).inputs
        dims = tuple(extent if extent > 0 else 1 for extent in tensor.shape[1:])
        n = 0
        while not stop.is_set():
            n += 1
            size = int(rng.integers(1, 9)) if mixed else 1
            inputs: dict[str, Any] = {tensor.name: np.zeros((size, *dims), np.uint8)}
            if mixed and n % 97 == 0:
                inputs = {tensor.name: np.zeros((1000, *dims), np.uint8)}  # more than the largest batch
            if mixed and n % 499 == 0:
                client.close()
                client = Client(urls[i % len(urls)], timeout_s=CALL_TIMEOUT_S)
            began = time.monotonic()
            try:
                client.infer(model_name, inputs)
            except ConvoyError as error:
                ended = time.monotonic()
                if not (isinstance(error, InvalidRequestError) and mixed and n % 97 == 0):
                    with lock:
                        calls.failed.append(Ended(began, ended, type(error).__name__, str(error)))
                stop.wait(0.01)  # who calls again at once only keeps the machine from mending
            else:
                ended = time.monotonic()
                with lock:
                    calls.n_good += 1
                    calls.slowest_s = max(calls.slowest_s, ended - began)
            if pause_s:
                stop.wait(pause_s)
        client.close()

    threads = [threading.Thread(target=call, args=(i,), name=f"caller-{i}") for i in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield calls
    finally:
        stop.set()
        for thread in threads:
            thread.join()
