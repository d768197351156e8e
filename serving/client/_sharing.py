"""How one inference goes by way of memory that client and server both see, whatever memory: made known, kept, or given up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Final, Generic

from convoy.contract.errors import (
    ClientError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    OverloadedError,
    ServerFailureError,
)
from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Call, Infer, R
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._segment import PREFIX, P, Piece, Pool, unregistration

_log = logging.getLogger("convoy.client")

_ALIGNED: Final = 256
"""As CUDA aligns its memory; more than any processor asks for."""

_ENDED: Final = (InvalidRequestError, InvalidResponseError, ModelNotFoundError, OverloadedError, ServerFailureError)
"""After these the server has done with the request; after others it may still be at it."""

Exchanges = Generator[Call[Any], Any, R]


def padded(size: int) -> int:
    """How much room a tensor of ``size`` bytes takes beside others."""
    return -(-size // _ALIGNED) * _ALIGNED


class Sharing(Generic[P]):
    """What is known of one kind of memory between one client and one server. No I/O: generators of requests.

    Args:
        endpoint: Where the server is, for the log.
        otherwise: How tensors go where this memory is of no use, for the log: "tensors go over the wire".

    Attributes:
        usable: Whether there is any use in trying.
    """

    def __init__(self, endpoint: Endpoint, otherwise: str) -> None:
        self._endpoint = endpoint
        self._otherwise = otherwise
        self.usable = True
        self._proven = False  # whether a request has succeeded so

    def carry(
        self,
        pool: Pool[P],
        piece: P,
        *,
        place: Callable[[], Infer | None],
        send: Callable[[Infer], Exchanges[InferResult]],
        instead: Callable[[], Exchanges[InferResult]],
    ) -> Exchanges[InferResult]:
        """The requests that an inference takes: the memory made known to the server, if need be, and the inference itself.

        Args:
            pool: Where the piece is lent from.
            piece: The memory.
            place: The inference with its tensors in the piece, put there now; None where they cannot be.
            send: Sends that.
            instead: Sends the inference without the piece.
        """
        try:
            result = yield from self._carry(pool, piece, place, send, instead)
        except BaseException as error:  # it is no time for another request
            if not self.usable and not piece.was_registered:
                pool.drop(piece)
                piece.remove()
            elif not isinstance(error, _ENDED):
                pool.rest(piece)
            elif (spare := self._let_go(pool, piece)) is not None:
                spare.lose()
            raise
        spare = self._let_go(pool, piece)
        if spare is not None:
            yield from unregister(spare, self._endpoint)
        return result

    def _carry(
        self,
        pool: Pool[P],
        piece: P,
        place: Callable[[], Infer | None],
        send: Callable[[Infer], Exchanges[InferResult]],
        instead: Callable[[], Exchanges[InferResult]],
    ) -> Exchanges[InferResult]:
        if not piece.registered:
            try:
                yield from _register(piece)
            except _ENDED as error:
                self.give_up(f"the server cannot share memory: {error}")
                return (yield from instead())
        shared = place()
        if shared is None or shared.placed is None:
            return (yield from instead())
        try:
            result = yield from send(shared)
        except _ENDED as error:
            words = str(error)
            if PREFIX in words and piece.name not in words:  # it is about other memory of this request
                raise
            if self._proven and "shared memory" not in words.lower():
                raise
            # the server was started again and knows none of it, or an output is of another size than it declares, or it only
            # seems to know shared memory
            _log.info("%s: of this call %s: %s", self._endpoint, self._otherwise, error)
        else:
            self._proven = True
            return result
        finally:
            shared.placed.release()
        pool.forget()
        piece.registered = False
        result = yield from instead()
        self.usable = self._proven
        return result

    def give_up(self, why: str) -> None:
        """This memory is of no use; said once, in the log."""
        if self.usable:
            _log.info("%s: %s, since %s", self._endpoint, self._otherwise, why)
        self.usable = False

    def leave(self, pool: Pool[P]) -> Exchanges[None]:
        """The requests with which a client takes its leave."""
        idle, resting = pool.empty()
        for piece in idle:
            yield from unregister(piece, self._endpoint)
        for piece in resting:  # the server may still use them: it forgets them when somebody sweeps, some minutes later
            piece.leave()

    def _let_go(self, pool: Pool[P], piece: P) -> P | None:
        """Keep a piece for later requests; what is returned is one too many."""
        if self.usable:
            return pool.give_back(piece)
        pool.drop(piece)
        return piece


def _register(piece: Piece) -> Exchanges[None]:
    if piece.was_registered:  # the server may know it still, and would take no second of its name
        with suppress(ClientError):
            yield unregistration(piece.name)
    piece.was_registered = True
    try:
        yield piece.registration()
    except _ENDED:
        piece.was_registered = False
        raise
    piece.registered = True


def unregister(piece: Piece, endpoint: Endpoint) -> Exchanges[None]:
    """The request after which a server knows a piece no more, which is removed then."""
    try:
        if piece.was_registered:
            yield unregistration(piece.name)
    except _ENDED as error:  # the server does not know it
        _log.debug("%s: %s", endpoint, error)
    except ClientError as error:
        _log.debug("%s: %s", endpoint, error)
        piece.lose()
        return
    except BaseException:
        piece.lose()
        raise
    piece.remove()
