"""Whether a REST server takes tensors in binary, or as JSON alone. No I/O: steps, which the transports carry out.

The protocol's REST form is JSON. Binary tensors are an extension, ``binary_tensor_data``, which a server lists in its metadata
(``GET /v2``). The server is asked before the first inference, and the answer is remembered as long as the server can be the same:

- Where it could not be reached, refused the credentials or did not know the model, another one may answer next time: forgotten.
- Where it refused an inference (4xx), or failed at it (5xx), after it had been asked by an earlier call, it is asked again. Only
  where its answer is another one by now is the inference sent once more, in the form that it takes: it cannot have run what it
  could not read.
- An input that JSON cannot carry (NaN) is treated as a refusal: the server is asked again before the caller is told off.

A server that refuses to describe itself (4xx) is sent JSON, which every server of the protocol takes: it is slower, but means the
same. One that fails to (5xx, nonsense, silence) is not spoken to on a guess: the call fails as that question did.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, cast

from convoy.contract.errors import (
    AuthenticationError,
    ClientError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerFailureError,
    UnavailableError,
)
from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Call, DescribeServer, Headers, Infer, R

BINARY: Final = "binary_tensor_data"
"""The extension's name in a server's metadata."""

_TELLS_NOTHING: Final = (AuthenticationError, InvalidRequestError, ModelNotFoundError)  # 4xx
_ANOTHER_NEXT: Final = (AuthenticationError, ModelNotFoundError, UnavailableError)


@dataclass(frozen=True)
class Exchange(Generic[R]):
    """One request and its response.

    Attributes:
        call: What is asked.
        binary: Whether tensors go in binary.
    """

    call: Call[R]
    binary: bool = False


Exchanges: TypeAlias = "Generator[Exchange[Any], Any, R]"


class Dialect:
    """What one server was heard to take. Safe under threads; those that come first together may each ask."""

    def __init__(self) -> None:
        self._binary: bool | None = None  # None: not asked yet, or not since another server may have come

    def exchanges(self, call: Call[R]) -> Exchanges[R]:
        """What has to be sent to have ``call`` answered."""
        if isinstance(call, Infer):
            return cast(R, (yield from self._infer(call)))
        return (yield from _once(Exchange(call)))

    def _infer(self, call: Infer) -> Exchanges[InferResult]:
        remembered = self._binary
        binary = (yield from self._ask(call.headers)) if remembered is None else remembered
        try:
            return (yield from _once(Exchange(call, binary)))
        except _ANOTHER_NEXT:
            self._binary = None
            raise
        except (InvalidRequestError, ServerFailureError):
            if remembered is None:
                raise
            self._binary = None
            try:
                renewed = yield from self._ask(call.headers)
            except ClientError:
                renewed = binary  # nobody can tell now: the refusal stands
            if renewed == binary:
                raise
        return (yield from _once(Exchange(call, renewed)))

    def _ask(self, headers: Headers) -> Exchanges[bool]:
        try:
            server = yield from _once(Exchange(DescribeServer(headers=headers)))
        except _TELLS_NOTHING:
            binary = False
        else:
            binary = BINARY in server.extensions
        self._binary = binary
        return binary


def _once(exchange: Exchange[R]) -> Exchanges[R]:
    """One exchange as steps of its own, so that its answer keeps its type."""
    answer: R = yield exchange
    return answer
