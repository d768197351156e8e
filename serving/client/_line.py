"""The requests of one big input: how many are under way, which is answered next. What waits for them is left to the clients."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from convoy.contract.errors import OverloadedError
from convoy.serving.client._retry import Retry
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Pause, Steps
from convoy.serving.client._window import Window

T = TypeVar("T")

_AHEAD = 2  # answers that wait for an earlier one, over requests under way


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """A part of a call's input that is sent as one request.

    Attributes:
        start: How many rows lie before it.
        rows: How many it has.
        begin: What it takes to have it answered; steps anew each time, since a server may have no room the first.
        asks: Whether that asks a server; else how long it takes says nothing of one.
    """

    start: int
    rows: int
    begin: Callable[[Talk], Steps[T]]
    asks: bool = True


class Outcome(Protocol):
    """What a thread's ``Future`` and an event loop's ``Task`` have in common."""

    def done(self) -> bool:
        """Whether there is a result or an error."""
        ...

    def result(self) -> Any:
        """The result; raises the error."""
        ...

    def exception(self) -> BaseException | None:
        """The error, if it is one."""
        ...

    def cancel(self) -> Any:
        """Nobody waits for it any more."""
        ...


@dataclass
class _Sent(Generic[T]):
    chunk: Chunk[T]
    talk: Talk
    outcome: Outcome
    refusals: int = 0


class Line(Generic[T]):
    """Takes chunks as it has room for them, and gives their answers.

    Args:
        most: The most requests under way.
        in_order: Whether answers come in the order of the chunks, or as they are there.
        talk: The talk of a chunk that is sent now.
        retry: How long to leave a server alone that has no room.
        start: Begins to carry steps out.
    """

    def __init__(
        self,
        *,
        most: int,
        in_order: bool,
        talk: Callable[[], Talk],
        retry: Retry,
        start: Callable[[Steps[tuple[T, float]]], Outcome],
    ) -> None:
        self._window = Window(most)
        self._in_order = in_order
        self._talk = talk
        self._retry = retry
        self._start = start
        self._sent: list[_Sent[T]] = []
        self._more = True
        self.n_answered = 0

    @property
    def has_room(self) -> bool:
        """Whether another chunk may be sent now."""
        limit = self._window.limit
        return self._more and len(self.running) < limit and len(self._sent) < _AHEAD * limit

    @property
    def is_done(self) -> bool:
        """Whether everything was sent and answered."""
        return not self._more and not self._sent

    def send(self, chunk: Chunk[T] | None) -> None:
        """Send a chunk; None says that there are no more."""
        if chunk is None:
            self._more = False
            return
        talk = self._talk()
        self._sent.append(_Sent(chunk, talk, self._start(_timed(chunk, talk, 0.0))))

    @property
    def running(self) -> list[Any]:
        """Those that have no answer yet."""
        return [sent.outcome for sent in self._sent if not sent.outcome.done()]

    def take(self) -> tuple[T] | None:
        """The answer of the next chunk, by itself; None where it must be waited for.

        Raises:
            Exception: What became of the chunk.
        """
        candidates = self._sent[:1] if self._in_order else self._sent
        sent = next((sent for sent in candidates if sent.outcome.done()), None)
        if sent is None:
            return None
        refusal = sent.outcome.exception()
        if isinstance(refusal, OverloadedError) and sent.talk.deadline.left_s > 0:
            self._window.refused()
            sent.refusals += 1
            pause_s = self._retry.pause_s(sent.refusals)
            if pause_s < sent.talk.deadline.left_s:
                sent.talk.observed.retried(refusal)
                sent.outcome = self._start(_timed(sent.chunk, sent.talk, pause_s))
                return None
        answer, seconds = sent.outcome.result()
        self._sent.remove(sent)
        if sent.chunk.asks:
            self._window.answered(seconds, sent.chunk.rows)
        self.n_answered += sent.chunk.rows
        return (answer,)

    def close(self) -> None:
        """Nobody wants the answers that are left."""
        for sent in self._sent:
            sent.outcome.cancel()


def _timed(chunk: Chunk[T], talk: Talk, pause_s: float) -> Steps[tuple[T, float]]:
    """A chunk's answer and how many seconds it took."""
    if pause_s:
        yield Pause(pause_s)
    started = time.monotonic()
    answer = yield from chunk.begin(talk)
    return answer, time.monotonic() - started
