"""What a client does, step by step, without the I/O: generators that yield steps and are sent what the steps gave.

``Client`` and ``AsyncClient`` drive the same generators; only how a step is carried out differs between them::

    steps = tensors.infer(talk, "lenet5", {"image": array}, ...)      # yields steps, is sent what each gave, returns the result
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from convoy.serving.client._call import Call, R

if TYPE_CHECKING:
    from convoy.serving.client._fleet import Node

T = TypeVar("T")


@dataclass(slots=True)
class Work(Generic[T]):
    """Something that keeps a processor busy (decoding images): an event loop gives it to a thread."""

    run: Callable[[], T]


@dataclass(slots=True)
class Attempt(Generic[R]):
    """One request to one server."""

    node: Node
    call: Call[R]
    timeout_s: float

    def send(self) -> Any:
        """Send it: the answer, or in an ``AsyncClient`` what is awaited for it."""
        return self.node.transport.send(self.call, self.timeout_s)


@dataclass(slots=True)
class Close:
    """Let go of a server's connections."""

    node: Node


@dataclass(slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(slots=True)
class Wait:
    """Wait until somebody else sets the signal, or the time is over.

    Attributes:
        signal: Of the client's own kind; has ``wait``.
        seconds: How long, at the most.
    """

    signal: Any
    seconds: float


@dataclass(slots=True)
class Race(Generic[T]):
    """Start ``first``; where it has not ended after ``after_s``, start what ``later`` gives beside it.

    What succeeds first is the step's result, and the other goes on unheard; where all fail, the last error is raised. ``later``
    may give nothing; it is asked once at the most, and not at all where ``first`` has failed before.
    """

    first: Steps[T]
    later: Callable[[], Steps[T] | None]
    after_s: float


@dataclass(slots=True)
class Aside:
    """Start these steps and go on; what becomes of them nobody waits for, and their errors are nobody's."""

    steps: Steps[Any]


Step: TypeAlias = "Work[Any] | Attempt[Any] | Close | Pause | Wait | Race[Any] | Aside"
Steps: TypeAlias = Generator[Step, Any, T]


def work(run: Callable[[], T]) -> Steps[T]:
    """One piece of work as steps of their own, so that its result keeps its type."""
    result: T = yield Work(run)
    return result
