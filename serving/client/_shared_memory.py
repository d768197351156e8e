"""Large tensors to a server on the same machine: in memory that both see, while the request itself goes over the wire.

A request of 1.2 MB and an answer of as much cost the client 10 ms of a processor over gRPC, and 1.7 ms so: docs/client_speed.md. It
is tried where the server's address is this machine's own; a server that cannot open the memory (in a container, of another user)
says so at the first try, and everything goes over the wire from then on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, Final, cast

from convoy.contract.errors import ClientError, ConvoyError, DeadlineExceededError
from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Call, Infer, Placed, R, Shared, SharedOnGpu, Tensor
from convoy.serving.client._datatype import NUMPY_DTYPES
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._segment import Segment, Segments, abandoned, unregistration
from convoy.serving.client._sharing import Exchanges, Sharing, padded
from convoy.serving.client._transport import AsyncTransport, Transport

if TYPE_CHECKING:
    from convoy.serving.client._client import Client
    from convoy.serving.client._gpu_memory import GpuMemory

_log = logging.getLogger("convoy.client")

LEAST_BYTES: Final = 128 << 10
"""Tensors of fewer bytes go over the wire, which takes no longer for them."""

CLOSE_S: Final = 1.0
_MARK: Final = 16


class SharedMemory:
    """How inferences of one client reach one server by way of shared memory. No I/O: generators of requests.

    Args:
        endpoint: Where the server is, for the log.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._segments = Segments()
        self._sharing = Sharing[Segment](endpoint, "tensors go over the wire")
        self._gpu: GpuMemory | None = None
        self._gpu_lock = threading.Lock()
        self._swept = False

    def serves(self, call: Call[Any]) -> bool:
        """Whether a call is to go this way."""
        if type(call) is not Infer:
            return False
        if not self._sharing.usable:
            return call.placed is not None
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
        if call.placed is None:
            return (yield from self._share(call))
        return (yield from self._of_gpus().carry(call, call.placed.on_gpu))

    def leave(self) -> Exchanges[None]:
        """The requests with which a client takes its leave."""
        yield from self._sharing.leave(self._segments)
        if self._gpu is not None:
            yield from self._gpu.leave()

    def _of_gpus(self) -> GpuMemory:
        with self._gpu_lock:
            if self._gpu is None:
                from convoy.serving.client._gpu_memory import GpuMemory

                self._gpu = GpuMemory(self._endpoint, self._share)
            return self._gpu

    def _share(self, call: Infer) -> Exchanges[InferResult]:
        """What a call takes whose inputs are in the host's memory, but for those that lie where the server gets them already."""
        inputs: Iterable[Tensor] = call.inputs
        if call.placed is not None:
            inputs = [tensor for tensor in call.inputs if tensor.name not in call.placed.inputs]
        outputs = [output for output in call.expects if not call.outputs or output[0] in call.outputs]
        sizes = [len(tensor.data) for tensor in inputs] + [_size(output) for output in outputs]
        segment = None
        if self._sharing.usable and (call.placed is None or sum(sizes) >= LEAST_BYTES):
            segment = self._segments.lease(sum(map(padded, sizes)))
        if segment is None:
            return (yield from _send(call))
        return (
            yield from self._sharing.carry(
                self._segments,
                segment,
                place=lambda: _placed(call, inputs, outputs, segment),
                send=_send,
                instead=lambda: _send(call),
            )
        )


def _send(call: Infer) -> Exchanges[InferResult]:
    result: InferResult = yield call
    return result


def sweep(client: Client) -> None:
    """Have a server forget the memory of clients that are gone, and give it back to the machine.

    A client does so before it shares memory itself, and ``convoy serve`` now and then.
    """
    with suppress(ConvoyError), client._begin("sweep", CLOSE_S) as talk:
        for name in abandoned():
            with suppress(ClientError):  # this server does not know it
                client._drive(talk.ask(unregistration(name)))


def _sweep(where: object) -> Exchanges[None]:
    for name in abandoned():
        try:
            yield unregistration(name)
        except ClientError as error:  # this server does not know it
            _log.debug("%s: %s", where, error)


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


def _placed(call: Infer, inputs: Iterable[Tensor], outputs: list[tuple[str, str, tuple[int, ...]]], segment: Segment) -> Infer:
    """The call with tensors in the segment: copies of inputs, and places for the outputs whose sizes are known."""
    offset = 0

    def next_place(size: int, mark: bytes = b"") -> Shared:
        nonlocal offset
        place = Shared(segment.name, offset, segment.view[offset : offset + size], mark)
        place.view[: len(mark)] = place.view[size - len(mark) :] = mark
        offset += padded(size)
        return place

    placed: dict[str, Shared | SharedOnGpu] = {} if call.placed is None else dict(call.placed.inputs)
    for tensor in inputs:
        place = placed[tensor.name] = next_place(len(tensor.data))
        place.view[:] = tensor.data
    places = {output[0]: next_place(_size(output), os.urandom(min(_MARK, _size(output)))) for output in outputs}
    return replace(call, placed=Placed(placed, places))
