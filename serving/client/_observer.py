"""What a client tells of its work while it works: the one interface for traces, metrics and the log, and nobody who listens.

::

    Observer.call(begun) -> CallObserver                  a method was called
        CallObserver.attempt(...) -> AttemptObserver      a request goes out, in the thread or the task that sends it
            AttemptObserver.end(error)                    it was answered, or not; there as well
        CallObserver.retried / hedged / merged / ejected  what the client made of it
        CallObserver.end(error)                           the method returned, or raised

Attempts of one call overlap (hedges, parts of a big input), and may outlast it: a hedge that lost goes on unheard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from convoy.contract.errors import ClientError
from convoy.serving.client._call import Call, Headers
from convoy.serving.client._endpoint import Endpoint

_GIVEN_UP: Final = ("GeneratorExit", "CancelledError")  # by name: asyncio's is not imported for it


@dataclass(frozen=True)
class MethodCall:
    """One call of a client's method.

    Attributes:
        method: The method.
        model_name: The model that it is about; empty where it is about the server.
        model_version: The version that was asked for; empty for the server's choice.
        request_id: What its requests are called.
        lasting: Whether the caller does other things before it has ended, as he may between the answers of an iterator.
    """

    method: str
    model_name: str
    model_version: str
    request_id: str
    lasting: bool


class AttemptObserver(Protocol):
    """Follows one request to one server."""

    @property
    def headers(self) -> Headers:
        """What is sent with the request, for the server."""
        ...

    def end(self, error: BaseException | None) -> None:
        """It has ended.

        Args:
            error: How it failed; None where it was answered.
        """
        ...


class CallObserver(Protocol):
    """Follows one call of a method. Safe under threads."""

    def attempt(self, call: Call[Any], endpoint: Endpoint, number: int) -> AttemptObserver:
        """A request goes out.

        Args:
            call: What is asked.
            endpoint: Who is asked.
            number: The how manieth try it is, from 1.
        """
        ...

    def retried(self, error: ClientError) -> None:
        """A request will be sent again, since it failed with ``error``."""
        ...

    def hedged(self) -> None:
        """A request is sent a second time, since no answer has come for a while."""
        ...

    def merged(self, request_id: str) -> None:
        """An inference was answered with others, by the request of another call."""
        ...

    def ejected(self, endpoint: Endpoint) -> None:
        """A server is left alone from now on, since it is not there or fails too often."""
        ...

    def end(self, error: BaseException | None) -> None:
        """The method has returned.

        Args:
            error: What it raised; None where it gave a result.
        """
        ...


class Observer(Protocol):
    """Follows clients. Safe under threads."""

    def call(self, begun: MethodCall) -> CallObserver:
        """A method is called, in this thread or task."""
        ...


class SilentAttempt:
    """Nobody follows a request; what observers of attempts have in common."""

    headers: Headers = ()

    def end(self, error: BaseException | None) -> None:
        """See ``AttemptObserver.end``."""


class SilentCall:
    """Nobody follows a call; what observers of calls have in common."""

    def attempt(self, call: Call[Any], endpoint: Endpoint, number: int) -> AttemptObserver:  # noqa: ARG002
        """See ``CallObserver.attempt``."""
        return UNOBSERVED_ATTEMPT

    def retried(self, error: ClientError) -> None:
        """See ``CallObserver.retried``."""

    def hedged(self) -> None:
        """See ``CallObserver.hedged``."""

    def merged(self, request_id: str) -> None:
        """See ``CallObserver.merged``."""

    def ejected(self, endpoint: Endpoint) -> None:
        """See ``CallObserver.ejected``."""

    def end(self, error: BaseException | None) -> None:
        """See ``CallObserver.end``."""


UNOBSERVED_ATTEMPT: Final = SilentAttempt()
UNOBSERVED: Final = SilentCall()


class AttemptTogether:
    """Several follow one request; who came first ends last, so that contexts are left in the order of the nest."""

    def __init__(self, parts: Sequence[AttemptObserver]) -> None:
        self._parts = parts
        self.headers: Headers = tuple(header for part in parts for header in part.headers)

    def end(self, error: BaseException | None) -> None:
        """See ``AttemptObserver.end``."""
        for part in reversed(self._parts):
            part.end(error)


class CallTogether:
    """Several follow one call."""

    def __init__(self, parts: Sequence[CallObserver]) -> None:
        self._parts = parts

    def attempt(self, call: Call[Any], endpoint: Endpoint, number: int) -> AttemptObserver:
        """See ``CallObserver.attempt``."""
        return AttemptTogether([part.attempt(call, endpoint, number) for part in self._parts])

    def retried(self, error: ClientError) -> None:
        """See ``CallObserver.retried``."""
        for part in self._parts:
            part.retried(error)

    def hedged(self) -> None:
        """See ``CallObserver.hedged``."""
        for part in self._parts:
            part.hedged()

    def merged(self, request_id: str) -> None:
        """See ``CallObserver.merged``."""
        for part in self._parts:
            part.merged(request_id)

    def ejected(self, endpoint: Endpoint) -> None:
        """See ``CallObserver.ejected``."""
        for part in self._parts:
            part.ejected(endpoint)

    def end(self, error: BaseException | None) -> None:
        """See ``CallObserver.end``."""
        for part in reversed(self._parts):
            part.end(error)


def outcome_of(error: BaseException | None) -> str:
    """How a call or a request ended: ``ok``, ``cancelled`` where nobody wants the answer any more, else the error's name."""
    if error is None:
        return "ok"
    name = type(error).__name__
    return "cancelled" if name in _GIVEN_UP else name
