"""Inferences of many callers that wait for one model, sent as one request: what the server would merge anyway, before the wire."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from convoy.contract.errors import ClientError, DeadlineExceededError, InvalidRequestError, InvalidResponseError, ServerFailureError
from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Infer
from convoy.serving.client._deadline import Deadline
from convoy.serving.client._steps import Steps, Wait

AT_ONCE: Final = 4
"""As many requests are under way before callers are held back to share the next: one is computed, one waits in the server's queue,
and two are on the wire."""

MOST_BYTES: Final = 64 << 10
"""Larger inferences are sent by themselves: what is shared is the cost of a request, not that of its bytes."""

_THE_REQUESTS_OWN: Final = (InvalidRequestError, InvalidResponseError, ServerFailureError, DeadlineExceededError)

Send: TypeAlias = Callable[[Infer], Steps[InferResult]]


@dataclass(eq=False, slots=True)
class _Ticket:
    """A caller who is held back.

    Attributes:
        call: What is asked.
        rows: How many rows it has.
        deadline: Until when an answer is of use.
        signal: Wakes the caller.
        led: Where this caller is to send: the tickets of the request, its own first.
        outcome: Where another has sent: the answer, the error, or that each is to ask alone.
        sent_as: Where another has sent: the id of the request.
    """

    call: Infer
    rows: int
    deadline: Deadline
    signal: Any
    led: list[_Ticket] = field(default_factory=list)
    outcome: InferResult | ClientError | Literal["alone"] | None = None
    sent_as: str = ""


class Crowd:
    """The callers who wait for one model, where the server merges requests of this model too. Safe under threads.

    The first few inferences are sent at once. Further ones wait until one of those is answered; then all that have the same
    outputs, and inputs of the same shapes but for the rows, are sent as one request, up to the model's batch size, and each
    caller is given his rows. Where such a request fails by what is in it, each asks alone: a caller's mistake stays his own.

    Args:
        most_rows: The model's ``max_batch_size``.
        new_signal: Makes what a caller waits for: has ``set`` and ``wait``, as ``threading.Event`` has.
    """

    def __init__(self, most_rows: int, new_signal: Callable[[], Any]) -> None:
        self._most_rows = most_rows
        self._new_signal = new_signal
        self._under_way = 0
        self._waiting: dict[Any, deque[_Ticket]] = {}
        self._apart = False  # an answer had not a row for each row of the request
        self._lock = threading.Lock()

    @property
    def n_under_way(self) -> int:
        """How many requests have no answer yet."""
        return self._under_way

    def infer(self, call: Infer, rows: int, deadline: Deadline, send: Send, merged: Callable[[str], None]) -> Steps[InferResult]:
        """Have an inference answered, alone or with others.

        Args:
            call: The inference.
            rows: Its rows.
            deadline: Until when.
            send: Sends one request.
            merged: Is told the id of the request where another caller has sent it.

        Raises:
            ClientError: The inference failed.
        """
        ticket = self._enter(call, rows, deadline)
        if ticket is None:
            try:
                return (yield from send(call))
            finally:
                self._leave()
        try:
            yield Wait(ticket.signal, max(0.0, deadline.left_s))
        except BaseException:
            self._withdraw(ticket)
            raise
        if not ticket.led and ticket.outcome is None:
            self._withdraw(ticket)
            raise deadline.passed(call.subject)
        if ticket.led:
            yield from self._lead(ticket, send)
        if ticket.sent_as and ticket.outcome != "alone":
            merged(ticket.sent_as)
        if isinstance(ticket.outcome, InferResult):
            return ticket.outcome
        if isinstance(ticket.outcome, ClientError):
            raise type(ticket.outcome)(str(ticket.outcome)) from ticket.outcome
        return (yield from send(call))

    def _enter(self, call: Infer, rows: int, deadline: Deadline) -> _Ticket | None:
        """Come in: with a ticket where the caller is held back."""
        with self._lock:
            if self._under_way < AT_ONCE or self._apart or 2 * rows > self._most_rows or _size(call) > MOST_BYTES:
                self._under_way += 1
                return None
            ticket = _Ticket(call, rows, deadline, self._new_signal())
            alike = self._waiting.setdefault(_kind_of(call), deque())
            alike.append(ticket)
            if sum(other.rows for other in alike) >= self._most_rows:  # nothing is gained by waiting longer
                self._start_next()
            return ticket

    def _leave(self) -> None:
        """A request has ended: others may be sent."""
        with self._lock:
            self._under_way -= 1
            if self._waiting:
                self._start_next()

    def _start_next(self) -> None:
        kind, alike = next(iter(self._waiting.items()))  # who came first
        batch = [alike.popleft()]
        rows = batch[0].rows
        while alike and rows + alike[0].rows <= self._most_rows:
            batch.append(alike.popleft())
            rows += batch[-1].rows
        del self._waiting[kind]
        if alike:
            self._waiting[kind] = alike  # behind the others
        leader = max(batch, key=lambda ticket: ticket.deadline.at_s)  # who still waits when all others have given up
        leader.led = [leader, *(ticket for ticket in batch if ticket is not leader)]
        self._under_way += 1
        leader.signal.set()

    def _lead(self, ticket: _Ticket, send: Send) -> Steps[None]:
        """Send the request of several callers, and give each his rows, or what became of it."""
        led = ticket.led
        outcomes: list[Any] = ["alone"] * len(led)
        try:
            if len(led) == 1:
                ticket.outcome = yield from send(ticket.call)
                return
            parts = _split((yield from send(_merge(led))), led)
            if parts is None:
                self._apart = True
            else:
                outcomes = list(parts)
        except _THE_REQUESTS_OWN:
            if len(led) == 1:
                raise
        except ClientError as error:
            outcomes = [error] * len(led)
        finally:
            if len(led) > 1:
                _give(led, outcomes)
            self._leave()

    def _withdraw(self, ticket: _Ticket) -> None:
        """The caller has gone, or waits no longer."""
        with self._lock:
            for kind, alike in list(self._waiting.items()):
                if ticket in alike:
                    alike.remove(ticket)
                    if not alike:
                        del self._waiting[kind]
        if ticket.led:  # he was just told to send
            _give(ticket.led, ["alone"] * len(ticket.led))
            self._leave()


def _kind_of(call: Infer) -> Any:
    return call.outputs, tuple((tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in call.inputs)


def _size(call: Infer) -> int:
    return sum(len(tensor.data) for tensor in call.inputs)


def _merge(led: list[_Ticket]) -> Infer:
    """One request of all rows: elements lie row behind row, whatever their datatype."""
    first = led[0].call
    inputs = []
    for i, tensor in enumerate(first.inputs):
        data = b"".join(ticket.call.inputs[i].data for ticket in led)
        inputs.append(tensor._replace(shape=(sum(ticket.rows for ticket in led), *tensor.shape[1:]), data=data))
    return replace(first, inputs=tuple(inputs))


def _split(result: InferResult, led: list[_Ticket]) -> list[InferResult] | None:
    """Each caller's rows; None where an output has not a row for each of the request."""
    rows = sum(ticket.rows for ticket in led)
    if any(output.shape[:1] != (rows,) for output in result.outputs.values()):
        return None
    parts, start = [], 0
    for ticket in led:
        stop = start + ticket.rows
        own = {name: output[start:stop].copy() for name, output in result.outputs.items()}
        parts.append(InferResult(result.model_name, result.model_version, own))
        start = stop
    return parts


def _give(led: list[_Ticket], outcomes: list[Any]) -> None:
    for ticket, outcome in zip(led, outcomes, strict=True):
        ticket.outcome = outcome
        ticket.sent_as = "" if ticket is led[0] else led[0].call.request_id
        ticket.signal.set()
