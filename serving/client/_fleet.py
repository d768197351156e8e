"""The servers of one client: which of them a request goes to, which are sick, and when a sick one is tried again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidResponseError,
    ServerFailureError,
    UnavailableError,
)
from convoy.serving.client._endpoint import Endpoint

SICK_AFTER: Final = 3
"""So many requests in a row that a server fails at, by silence or nonsense, take it out; one that is not there goes out at once."""
FIRST_REST_S: Final = 0.5
"""How long a server is left alone the first time; twice as long each further time without a success between."""
LONGEST_REST_S: Final = 30.0

_SYMPTOMS: Final[tuple[type[ClientError], ...]] = (DeadlineExceededError, InvalidResponseError, ServerFailureError)


class Node:
    """One server, or one of the addresses behind a name.

    Attributes:
        endpoint: Where it is.
        transport: Who carries calls to it; opened with the first.
        busy: Requests under way.
        failures: Failed requests since the last that succeeded.
        failed_at_s: When the last of them failed, on the monotonic clock.
        silent_s: How long requests that got no answer have waited since then; those that waited together count once.
        silent_until_s: When the last of them ended, on the monotonic clock.
        rests: How often it was taken out since then.
        back_at_s: Until when it is left alone, on the monotonic clock; 0 where it is in.
    """

    def __init__(self, endpoint: Endpoint, open_transport: Callable[[Endpoint], Any]) -> None:
        self.endpoint = endpoint
        self._open = open_transport
        self._transport: Any = None
        self._lock = threading.Lock()
        self.busy = 0
        self.failures = 0
        self.failed_at_s = 0.0
        self.silent_s = 0.0
        self.silent_until_s = 0.0
        self.rests = 0
        self.back_at_s = 0.0

    @property
    def transport(self) -> Any:
        """Who carries calls to it: a ``Transport``, or an ``AsyncTransport`` in an ``AsyncClient``."""
        if self._transport is None:
            with self._lock:
                if self._transport is None:
                    self._transport = self._open(self.endpoint)
        return self._transport

    @property
    def opened(self) -> Any:
        """The transport where there is one yet."""
        return self._transport


class Fleet:
    """Spreads requests over servers: the less busy of two that are drawn ("the power of two choices", Mitzenmacher 2001).

    A server that is not there, or that fails at several requests in a row, rests; then a probe asks it whether it is ready, so that
    no caller has to try it. Where all rest, the one whose rest ends first is asked all the same. Safe under threads.

    Args:
        endpoints: Where the servers are.
        open_transport: Opens the connections to one, on its first request.
    """

    def __init__(self, endpoints: Sequence[Endpoint], open_transport: Callable[[Endpoint], Any]) -> None:
        self._open = open_transport
        self._nodes: tuple[Node, ...] = tuple(Node(endpoint, open_transport) for endpoint in endpoints)
        self._gone: list[Node] = []
        self._lock = threading.Lock()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All servers, those that rest included."""
        return self._nodes

    def pick(self, tried: Collection[Node] = ()) -> Node:
        """The server for a request.

        Args:
            tried: Servers that have failed at it; they are asked again only where there is no other.
        """
        nodes = self._nodes
        if len(nodes) == 1:
            return nodes[0]
        fit = [node for node in nodes if not node.back_at_s and node not in tried]
        if not fit:
            untried = [node for node in nodes if node not in tried]
            return min(untried or nodes, key=lambda node: (node.back_at_s, node.busy))
        if len(fit) == 1:
            return fit[0]
        one, other = random.sample(fit, 2)
        return other if _load(other) < _load(one) else one

    def has_other(self, tried: Collection[Node]) -> bool:
        """Whether there is a server in its senses that has not been tried."""
        return any(node not in tried and not node.back_at_s for node in self._nodes)

    def due(self) -> Node | None:
        """A server whose rest is over and that nobody probes yet; its rest goes on until the probe has told."""
        if len(self._nodes) == 1:
            return None
        now = time.monotonic()
        for node in self._nodes:
            if node.back_at_s and node.back_at_s <= now:
                with self._lock:
                    if node.back_at_s <= now:
                        node.back_at_s = now + LONGEST_REST_S
                        return node
        return None

    def begin(self, node: Node) -> None:
        """A request goes out."""
        with self._lock:
            node.busy += 1

    def end(self, node: Node) -> None:
        """It has ended, however."""
        with self._lock:
            node.busy -= 1

    def succeeded(self, node: Node) -> None:
        """It was answered, if only by a refusal: the server is well."""
        if node.failures or node.silent_s or node.back_at_s:
            with self._lock:
                node.failures = node.rests = 0
                node.silent_s = node.back_at_s = 0.0

    def waited(self, node: Node, seconds: float) -> float:
        """A request has waited so long for nothing, until now.

        Returns:
            How long the server has been silent, ``Node.silent_s``.
        """
        with self._lock:
            now = time.monotonic()
            node.silent_s += max(0.0, min(seconds, now - node.silent_until_s))
            node.silent_until_s = now
            return node.silent_s

    def failed(self, node: Node, error: ClientError) -> bool:
        """It failed; whether that says something about the server depends on the error.

        Returns:
            Whether the server, one of several, is left alone from now on.
        """
        absent = isinstance(error, UnavailableError)
        if not absent and not isinstance(error, _SYMPTOMS):
            self.succeeded(node)
            return False
        with self._lock:
            node.failures += 1
            node.failed_at_s = time.monotonic()
            if not absent and node.failures < SICK_AFTER:
                return False
            was_in = not node.back_at_s
            node.back_at_s = time.monotonic() + min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(node.rests, 16))
            node.rests += 1
            return was_in and len(self._nodes) > 1

    def replace(self, endpoint: Endpoint, by: Sequence[Endpoint]) -> list[Node]:
        """Put the addresses behind a name in the place of the servers that stood for it.

        Args:
            endpoint: The name.
            by: Its addresses; those that were known stay as they are.

        Returns:
            Servers that are not asked any more: their transports are to be closed when they are idle.
        """
        with self._lock:
            known = {node.endpoint: node for node in self._nodes if node.endpoint.name == endpoint.name}
            new = [known.get(address) or Node(address, self._open) for address in by]
            others = [node for node in self._nodes if node.endpoint.name != endpoint.name]
            gone = [node for node in known.values() if node not in new]
            self._nodes = (*others, *new)
            return gone


def _load(node: Node) -> int:
    """How busy a server is; one that fails fast looks idle and must not draw all requests. A while later it is given a chance."""
    if node.failures and time.monotonic() - node.failed_at_s < FIRST_REST_S:
        return node.busy + 4 * node.failures
    return node.busy
