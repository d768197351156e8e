"""The few values that were last needed, each made once however many threads ask for it."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

Value = TypeVar("Value")

_KEPT_AT_LEAST: Final = 2  # two threads on either side of a border would otherwise throw each other's value out


class Cache(Generic[Value]):
    """Keeps what was used last.

    Args:
        most: So many values at most.
        most_bytes: Beyond so many bytes the oldest go, down to two.
        weigh: The bytes of a value.
    """

    def __init__(self, most: int, most_bytes: int = sys.maxsize, weigh: Callable[[Value], int] = lambda _: 0) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._weigh = weigh
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Future[Value]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of ``key``, made now if it is not kept. What ``make`` raises reaches all who wait, and is not kept."""
        with self._lock:
            future = self._kept.get(key)
            if missing := future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if missing:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    if self._kept.get(key) is future:
                        del self._kept[key]
                future.set_exception(error)
                raise
            self._shrink()
        return future.result()

    def _shrink(self) -> None:
        with self._lock:
            while len(self._kept) > self._most or (len(self._kept) > _KEPT_AT_LEAST and self._bytes() > self._most_bytes):
                self._kept.popitem(last=False)

    def _bytes(self) -> int:
        return sum(self._weigh(future.result()) for future in self._kept.values() if future.done() and not future.exception())
