"""The requests of one big input: how many are under way, which is answered next. What waits for them is left to the clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
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
    """

    start: int
    rows: int
    begin: Callable[[Talk], Steps[T]]


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
    """Takes chunks as there is room for them, and gives their answers.

    Args:
        chunks: The parts of the input, read as they can be sent.
        most: The most requests under way.
        in_order: Whether answers come in the order of the chunks, or as they are there.
        talk: The talk of a chunk that is sent now.
        retry: How long to leave a server alone that has no room.
        start: Begins to carry steps out.
    """

    def __init__(
        self,
        chunks: Iterator[Chunk[T]],
        *,
        most: int,
        in_order: bool,
        talk: Callable[[], Talk],
        retry: Retry,
        start: Callable[[Steps[tuple[T, float]]], Outcome],
    ) -> None:
        self._chunks = chunks
        self._window = Window(most)
        self._in_order = in_order
        self._talk = talk
        self._retry = retry
        self._start = start
        self._sent: list[_Sent[T]] = []
        self._more = True
        self.n_answered = 0

    def fill(self) -> bool:
        """Send what there is room for; False where everything was sent and answered."""
        limit = self._window.limit
        while self._more and len(self.running) < limit and len(self._sent) < _AHEAD * limit:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._more = False
                break
            talk = self._talk()
            self._sent.append(_Sent(chunk, talk, self._start(_timed(chunk, talk, 0.0))))
        return bool(self._sent)

    @property
    def running(self) -> list[Any]:
        """Those that have no answer yet."""
        return [sent.outcome for sent in self._sent if not sent.outcome.done()]

    def take(self) -> tuple[int, T] | None:
        """The place and the answer of the next chunk; None where it must be waited for.

        Raises:
            Exception: What became of the chunk.
        """
        candidates = self._sent[:1] if self._in_order else self._sent
        sent = next((sent for sent in candidates if sent.outcome.done()), None)
        if sent is None:
            return None
        if isinstance(sent.outcome.exception(), OverloadedError) and sent.talk.deadline.left_s > 0:
            self._window.refused()
            sent.refusals += 1
            pause_s = self._retry.pause_s(sent.refusals)
            if pause_s < sent.talk.deadline.left_s:
                sent.outcome = self._start(_timed(sent.chunk, sent.talk, pause_s))
                return None
        answer, seconds = sent.outcome.result()
        self._sent.remove(sent)
        self._window.answered(seconds, sent.chunk.rows)
        self.n_answered += sent.chunk.rows
        return sent.chunk.start, answer

    def close(self) -> None:
        """Nobody wants the answers that are left."""
        for sent in self._sent:
            sent.outcome.cancel()


def look_ahead(chunks: Iterator[Chunk[T]]) -> tuple[Chunk[T] | None, Iterator[Chunk[T]]]:
    """The only chunk, where there is just one and no line is needed, and all chunks as they were."""
    first = list(islice(chunks, 2))
    return (first[0] if len(first) == 1 else None), chain(first, chunks)


def _timed(chunk: Chunk[T], talk: Talk, pause_s: float) -> Steps[tuple[T, float]]:
    """A chunk's answer and how many seconds it took."""
    if pause_s:
        yield Pause(pause_s)
    started = time.monotonic()
    answer = yield from chunk.begin(talk)
    return answer, time.monotonic() - started
