"""Large tensors to a server on the same machine: in memory that both see, while the request itself goes over the wire.

A request of 1.2 MB and an answer of as much cost the client 10 ms of a processor over gRPC, and 1.7 ms so: docs/client_speed.md. It
is tried where the server's address is this machine's own; a server that cannot open the memory (in a container, of another user)
says so at the first try, and everything goes over the wire from then on.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import weakref
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, Final, cast

from convoy.contract.errors import (
    ClientError,
    ConvoyError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    OverloadedError,
    ServerFailureError,
)
from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Call, Infer, Placed, R, RegisterSegment, Shared, UnregisterSegment
from convoy.serving.client._datatype import NUMPY_DTYPES
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._segment import Segment, Segments, abandoned
from convoy.serving.client._transport import AsyncTransport, Transport

if TYPE_CHECKING:
    from convoy.serving.client._client import Client

_log = logging.getLogger("convoy.client")

LEAST_BYTES: Final = 128 << 10
"""Tensors of fewer bytes go over the wire, which takes no longer for them."""

CLOSE_S: Final = 1.0
_ALIGNED: Final = 64
_MARK: Final = 16
_ENDED: Final = (InvalidRequestError, InvalidResponseError, ModelNotFoundError, OverloadedError, ServerFailureError)
"""After these the server has done with the request; after others it may still be at it."""

Exchanges = Generator[Call[Any], Any, R]


def is_here(endpoint: Endpoint) -> bool:
    """Whether a server's address is this machine's own, and the machine has memory that can be shared."""
    host = endpoint.ip or endpoint.host
    return sys.platform == "linux" and (host in ("localhost", "::1") or host.startswith("127."))


class SharedMemory:
    """How inferences of one client reach one server by way of shared memory. No I/O: generators of requests.

    Args:
        endpoint: Where the server is, for the log.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._segments = Segments()
        self._usable = True
        self._proven = False  # whether a request has succeeded so
        self._swept = False

    def serves(self, call: Call[Any]) -> bool:
        """Whether a call is to go this way."""
        if type(call) is not Infer or not self._usable:
            return False
        n_bytes = 0
        for tensor in call.inputs:
            n_bytes += len(tensor.data)
        for output in call.expects:
            n_bytes += _size(output)
        return n_bytes >= LEAST_BYTES

    def carry(self, call: Infer) -> Exchanges[InferResult]:
        """The requests that an inference takes: the memory made known to the server, if need be, and the inference itself."""
        if not self._swept:
            self._swept = True
            yield from _sweep(self._endpoint)
        outputs = [output for output in call.expects if not call.outputs or output[0] in call.outputs]
        sizes = [len(tensor.data) for tensor in call.inputs] + [_size(output) for output in outputs]
        segment = self._segments.lease(sum(map(_padded, sizes)))
        if segment is None:
            result: InferResult = yield call
            return result
        ended = False
        shared = call
        try:
            if not segment.registered:
                try:
                    yield RegisterSegment(segment=segment.name, size=segment.size)
                except _ENDED as error:
                    ended = True
                    self._usable = False
                    _log.info("%s: tensors go over the wire, since the server cannot share memory: %s", self._endpoint, error)
                    result = yield call
                    return result
                segment.registered = True
            shared = _placed(call, outputs, segment)
            try:
                result = yield shared
            except _ENDED as error:
                ended = True
                if self._proven and "shared memory" not in str(error).lower():
                    raise
                # the server was started again and knows none of it, or an output is of another size than it declares, or it
                # only seems to know shared memory
                _log.info("%s: tensors of this call go over the wire: %s", self._endpoint, error)
                self._segments.forget()
                segment.registered = False
                result = yield call
                self._usable = self._proven
                return result
            ended = self._proven = True
        finally:
            for place in () if shared.placed is None else (*shared.placed.inputs.values(), *shared.placed.outputs.values()):
                place.view.release()
            spare = self._let_go(segment, ended=ended)
        if spare is not None:
            yield from _unregister(spare, self._endpoint)
        return result

    def _let_go(self, segment: Segment, *, ended: bool) -> Segment | None:
        """Keep a segment for the next request, or later ones; give back one that is too many."""
        if not ended:
            self._segments.rest(segment)
        elif self._usable:
            return self._segments.give_back(segment)
        else:
            self._segments.drop(segment)
            segment.remove()
        return None

    def leave(self) -> Exchanges[None]:
        """The requests with which a client takes its leave."""
        idle, resting = self._segments.empty()
        for segment in idle:
            yield from _unregister(segment, self._endpoint)
        for segment in resting:  # the server may still write there: it forgets them when somebody sweeps, some minutes later
            segment.leave()


def sweep(client: Client) -> None:
    """Have a server forget the memory of clients that are gone, and give it back to the machine.

    A client does so before it shares memory itself, and ``convoy serve`` now and then.
    """
    with suppress(ConvoyError), client._begin("sweep", CLOSE_S) as talk:
        for name in abandoned():
            with suppress(ClientError):  # this server does not know it
                client._drive(talk.ask(UnregisterSegment(segment=name)))


def _sweep(where: object) -> Exchanges[None]:
    for name in abandoned():
        try:
            yield UnregisterSegment(segment=name)
        except ClientError as error:  # this server does not know it
            _log.debug("%s: %s", where, error)


def _unregister(segment: Segment, endpoint: Endpoint) -> Exchanges[None]:
    try:
        if segment.registered:
            yield UnregisterSegment(segment=segment.name)
    except ClientError as error:
        _log.debug("%s: %s", endpoint, error)
    finally:
        segment.remove()


class SharedMemoryTransport:
    """A ``Transport`` that takes large tensors by way of shared memory."""

    def __init__(self, endpoint: Endpoint, transport: Transport) -> None:
        self._transport = transport
        self._memory = SharedMemory(endpoint)
        # also where nobody closes the client: at the end of the process, or when nobody holds it any more
        self._leave = weakref.finalize(self, _take_leave, transport, self._memory, os.getpid())

    def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        small = isinstance(call, Infer) and not call.expects and len(call.inputs) == 1 and len(call.inputs[0].data) < LEAST_BYTES
        if small or not self._memory.serves(call):  # the first at a glance: most calls are
            return self._transport.send(call, timeout_s)
        return _drive(self._transport, cast("Exchanges[R]", self._memory.carry(cast(Infer, call))), timeout_s)

    def close(self) -> None:
        """See ``Transport.close``."""
        self._leave()
        self._transport.close()


def _take_leave(transport: Transport, memory: SharedMemory, pid: int) -> None:
    if os.getpid() == pid:  # what the parent of a forked process shares is the parent's
        with suppress(ConvoyError):
            _drive(transport, memory.leave(), CLOSE_S)


def _drive(transport: Transport, exchanges: Exchanges[R], timeout_s: float) -> R:
    until_s = time.monotonic() + timeout_s
    try:
        call = next(exchanges)
        while True:
            try:
                answer = transport.send(call, _left_s(until_s, call))
            except ClientError as error:
                call = exchanges.throw(error)
            else:
                call = exchanges.send(answer)
    except StopIteration as done:
        result: R = done.value
        return result
    finally:
        exchanges.close()


class AsyncSharedMemoryTransport:
    """``SharedMemoryTransport`` for coroutines."""

    def __init__(self, endpoint: Endpoint, transport: AsyncTransport) -> None:
        self._transport = transport
        self._memory = SharedMemory(endpoint)

    async def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        if not self._memory.serves(call):
            return await self._transport.send(call, timeout_s)
        return await self._drive(cast("Exchanges[R]", self._memory.carry(cast(Infer, call))), timeout_s)

    async def close(self) -> None:
        """See ``Transport.close``."""
        await self._drive(self._memory.leave(), CLOSE_S)
        await self._transport.close()

    async def _drive(self, exchanges: Exchanges[R], timeout_s: float) -> R:
        until_s = time.monotonic() + timeout_s
        try:
            call = next(exchanges)
            while True:
                try:
                    answer = await self._transport.send(call, _left_s(until_s, call))
                except ClientError as error:
                    call = exchanges.throw(error)
                else:
                    call = exchanges.send(answer)
        except StopIteration as done:
            result: R = done.value
            return result
        finally:
            exchanges.close()


def _left_s(until_s: float, call: Call[Any]) -> float:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceededError(f"{call.subject}: the requests before it took all the time.")
    return left_s


def _size(output: tuple[str, str, tuple[int, ...]]) -> int:
    _, datatype, shape = output
    return prod(shape) * NUMPY_DTYPES[datatype].itemsize


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _placed(call: Infer, outputs: list[tuple[str, str, tuple[int, ...]]], segment: Segment) -> Infer:
    """The call with its tensors in the segment: inputs copied there, and places for the outputs whose sizes are known."""
    offset = 0

    def next_place(size: int, mark: bytes = b"") -> Shared:
        nonlocal offset
        place = Shared(segment.name, offset, segment.view[offset : offset + size], mark)
        place.view[: len(mark)] = place.view[size - len(mark) :] = mark
        offset += _padded(size)
        return place

    inputs = {}
    for tensor in call.inputs:
        inputs[tensor.name] = next_place(len(tensor.data))
        inputs[tensor.name].view[:] = tensor.data
    places = {output[0]: next_place(_size(output), os.urandom(min(_MARK, _size(output)))) for output in outputs}
    return replace(call, placed=Placed(inputs, places))
