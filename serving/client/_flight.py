"""What many callers want to know at once is asked once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

from convoy.contract.errors import ClientError, UnavailableError
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Steps, T, Wait


class _Flight:
    """A question that is under way.

    Attributes:
        signals: Wake those who wait for it.
        error: Why there is no answer.
    """

    def __init__(self) -> None:
        self.signals: list[Any] = []
        self.error: ClientError | None = None


class Flights:
    """Lets the first who asks a question ask it for all who come while it is under way. Safe under threads.

    Args:
        new_signal: Makes what a caller waits for: has ``set`` and ``wait``, as ``threading.Event`` has.
    """

    def __init__(self, new_signal: Callable[[], Any]) -> None:
        self._new_signal = new_signal
        self._under_way: dict[Hashable, _Flight] = {}
        self._lock = threading.Lock()

    def share(self, talk: Talk, key: Hashable, known: Callable[[], T | None], ask: Callable[[], Steps[T]]) -> Steps[T]:
        """The answer to a question that is remembered: as it is known, or asked now, by one caller.

        Args:
            talk: The call.
            key: Which question it is.
            known: What is remembered; None where nothing is.
            ask: Asks, and remembers.

        Raises:
            ClientError: Nobody answered, in time or rightly.
        """
        while True:
            answer = known()
            if answer is not None:
                return answer
            with self._lock:
                flight = self._under_way.get(key)
                if flight is None:
                    own = self._under_way[key] = _Flight()
                    break
                signal = self._new_signal()
                flight.signals.append(signal)
            yield Wait(signal, max(0.0, talk.deadline.left_s))
            if flight.error is not None:
                raise type(flight.error)(str(flight.error)) from flight.error
            if talk.deadline.left_s <= 0:
                raise talk.deadline.passed("a question that another call had asked")
        try:
            return (yield from ask())
        except UnavailableError as error:  # what holds for all; any other may be of this caller's making, or have come late
            own.error = error
            raise
        finally:
            with self._lock:
                del self._under_way[key]
            for signal in own.signals:
                signal.set()
