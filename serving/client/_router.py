"""How a call finds its answer: which server is asked, when another is, when the same again. No I/O: steps, see ``_steps``."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, cast

from typing_extensions import Self

from convoy.contract.errors import ClientError, ConvoyError, DeadlineExceededError, UnavailableError, UsageError
from convoy.serving.client._call import (
    Call,
    DescribeModel,
    Infer,
    LoadModel,
    ModelReady,
    R,
    ReadConfig,
    ServerLive,
    ServerReady,
    UnloadModel,
)
from convoy.serving.client._deadline import Deadline
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._fleet import Fleet, Node
from convoy.serving.client._observer import UNOBSERVED, CallObserver
from convoy.serving.client._retry import RETRIED, Retry, RetryBudget
from convoy.serving.client._steps import Aside, Attempt, Close, Pause, Race, Steps, work

_log = logging.getLogger("convoy.client")

PROBE_S: Final = 2.0
"""How long a server that rests may take to say that it is ready again."""
LOOK_UP_S: Final = 30.0
"""How often the addresses behind a name are looked up."""

_FAIR_S: Final = 1.0
"""A server that answers nothing for so long, to one request or several, may be sick; one that does not for less need not be."""

_HEALTH: Final = (ServerLive, ServerReady, ModelReady)
_EVERYWHERE: Final = (LoadModel, UnloadModel)
_HEDGED: Final = (Infer, DescribeModel, ReadConfig)
"""Inferences, and what they ask first: all callers of a model wait for the one who asks that."""


class Talk:
    """One call of a client's method: all requests that it makes, until its deadline. It ends with its ``with`` block.

    Attributes:
        deadline: The end of them all.
        request_id: What they are called.
        observed: Who follows them.
    """

    __slots__ = ("_router", "deadline", "observed", "request_id")

    def __init__(self, router: Router, deadline: Deadline, request_id: str = "", observed: CallObserver = UNOBSERVED) -> None:
        self._router = router
        self.deadline = deadline
        self.request_id = request_id
        self.observed = observed

    def ask(self, call: Call[R]) -> Steps[R]:
        """The steps that end with an answer, or with the error that no other try could mend.

        Raises:
            ClientError: The call failed.
        """
        return self._router.route(call, self)

    def straight(self, call: Call[R]) -> Attempt[R] | None:
        """The one request that ``ask`` mostly is, where there is nothing to choose from; where it fails, ``resume`` goes on.

        On the way of every call, where each generator between the caller and the wire is felt.
        """
        return self._router.straight(call, self)

    def resume(self, attempt: Attempt[R], error: ClientError) -> Steps[R]:
        """What ``ask`` does after a failed request."""
        return self._router.resume(attempt, self, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.observed.end(error)


class Router:
    """Carries calls to servers: spreads them, tries again, hedges. Safe under threads.

    Args:
        endpoints: Where the servers are.
        open_transport: Opens the connections to one.
        retry: When a request is sent again.
        hedge_after_s: After how long without an answer an inference, or what it asks first, is sent a second time; None: never.
        look_up: The addresses behind a name; None: names are left to the wire.

    Attributes:
        fleet: The servers.
        discarded: Servers that DNS names no more, until they are idle.
        only_node: The server, where there is nothing to choose from, and nothing to hedge; None where there is.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        open_transport: Callable[[Endpoint], Any],
        *,
        retry: Retry,
        hedge_after_s: float | None = None,
        look_up: Callable[[Endpoint], Sequence[str]] | None = None,
    ) -> None:
        self.fleet = Fleet(endpoints, open_transport)
        self.discarded: list[Node] = []  # servers that DNS names no more, until they are idle
        self._retry = retry
        self._budget = RetryBudget(retry)
        self._hedge_after_s = hedge_after_s
        self._look_up = look_up
        self._names = tuple(endpoint for endpoint in endpoints if look_up is not None and _is_name(endpoint.host))
        self._looked_up_s = float("-inf")
        is_simple = len(endpoints) == 1 and not self._names and hedge_after_s is None
        self.only_node = self.fleet.nodes[0] if is_simple else None

    def route(self, call: Call[R], talk: Talk) -> Steps[R]:
        """See ``Talk.ask``."""
        if self._names and time.monotonic() - self._looked_up_s >= LOOK_UP_S:
            self._looked_up_s = time.monotonic()
            yield Aside(self._resolve())
        if (node := self.fleet.due()) is not None:
            yield Aside(self._probe(node))
        if isinstance(call, _EVERYWHERE):
            return (yield from self._ask_all(cast("Call[R]", call), talk))
        is_hedged = isinstance(call, _HEDGED)
        if self._hedge_after_s is not None and is_hedged:
            asked: list[Node] = []
            first = self._try(call, talk, asked)
            answer: R = yield Race(first, lambda: self._hedge(call, talk, asked), self._hedge_after_s)
            return answer
        return (yield from self._try(call, talk, []))

    def straight(self, call: Call[R], talk: Talk) -> Attempt[R] | None:
        """See ``Talk.straight``."""
        left_s = talk.deadline.at_s - time.monotonic()
        if self.only_node is None or left_s <= 0 or talk.observed is not UNOBSERVED:
            return None
        self._budget.pay_in()
        return Attempt(self.only_node, call, left_s)

    def count(self) -> None:
        """A request goes to the only node."""
        self._budget.pay_in()

    def resume(self, attempt: Attempt[R], talk: Talk, error: ClientError) -> Steps[R]:
        """See ``Talk.resume``."""
        if isinstance(error, DeadlineExceededError):
            raise talk.deadline.missed(error) from (error.__cause__ or error)
        if not isinstance(error, RETRIED):
            raise error
        yield from self._rest(attempt.node, attempt.call, talk, error, n=1)
        return (yield from self._try(attempt.call, talk, [], n=1))

    def _try(self, call: Call[R], talk: Talk, asked: list[Node], n: int = 0) -> Steps[R]:
        """Ask until there is an answer, or nothing that another try could mend.

        Args:
            call: The question.
            talk: What it is part of.
            asked: Servers that are not the first choice; those that this asks are added.
            n: How often it was asked before.
        """
        if n == 0:
            self._budget.pay_in()
        tried = list(asked)
        while True:
            node = self.fleet.pick(tried)
            asked.append(node)
            try:
                return (yield from self._attempt(node, call, talk, len(asked)))
            except RETRIED as error:
                tried.append(node)
                n += 1
                if isinstance(error, UnavailableError) and self.fleet.has_other(tried):
                    _log.info("%s: request %s: asking another server: %s", node.endpoint, talk.request_id, error)
                    talk.observed.retried(error)
                    continue  # it brings nobody more work than was to come: each server is asked once
                yield from self._rest(node, call, talk, error, n)

    def _rest(self, node: Node, call: Call[Any], talk: Talk, error: ClientError, n: int) -> Steps[None]:
        """Wait before the ``n``-th retry; raise the error where there is to be none."""
        if isinstance(call, _HEALTH) or n >= self._retry.attempts or not self._budget.take():
            raise self._of_all(error)
        pause_s = self._retry.pause_s(n)
        if pause_s >= talk.deadline.left_s:
            raise self._of_all(error)
        _log.info("%s: request %s: trying again in %.3f s: %s", node.endpoint, talk.request_id, pause_s, error)
        talk.observed.retried(error)
        yield Pause(pause_s)

    def _attempt(self, node: Node, call: Call[R], talk: Talk, number: int) -> Steps[R]:
        left_s = talk.deadline.left_s
        if left_s <= 0:
            raise talk.deadline.passed(f"{node.endpoint}: {call.subject}")
        self.fleet.begin(node)
        observed = talk.observed.attempt(call, node.endpoint, number)
        outcome: BaseException | None = None
        try:
            answer: R = yield Attempt(node, call.having(observed.headers), left_s)
        except ClientError as error:
            outcome = error
            if not isinstance(error, DeadlineExceededError) or self._was_silent(node, left_s):
                self._failed(node, error, talk)
            if isinstance(error, DeadlineExceededError):
                raise talk.deadline.missed(error) from (error.__cause__ or error)
            raise
        except BaseException as error:
            outcome = error
            waited_s = left_s - talk.deadline.left_s
            # What was given up, by a quicker hedge or by the caller, has waited for nothing as well.
            if not isinstance(error, Exception) and self._was_silent(node, waited_s):
                self._failed(node, DeadlineExceededError(f"{node.endpoint}: silent for {waited_s:.3g} s"), talk)
            raise
        else:
            self.fleet.succeeded(node)
            return answer
        finally:
            observed.end(outcome)
            self.fleet.end(node)

    def _was_silent(self, node: Node, waited_s: float) -> bool:
        """Whether a request that waited so long for nothing says something of the server."""
        return waited_s >= _FAIR_S or self.fleet.waited(node, waited_s) >= _FAIR_S

    def _failed(self, node: Node, error: ClientError, talk: Talk) -> None:
        if self.fleet.failed(node, error):
            _log.info("%s: leaving this server alone for a while: %s", node.endpoint, error)
            talk.observed.ejected(node.endpoint)

    def _of_all(self, error: ClientError) -> ClientError:
        """An error that no server could mend, with how many there are."""
        n = len(self.fleet.nodes)
        if n == 1 or not isinstance(error, UnavailableError):
            return error
        told = type(error)(f"{error} None of the {n} servers answered.")
        told.__cause__ = error
        return told

    def _hedge(self, call: Call[R], talk: Talk, asked: list[Node]) -> Steps[R] | None:
        if not self._budget.take():
            return None
        talk.observed.hedged()
        return self._try(call, talk, list(asked))

    def _ask_all(self, call: Call[R], talk: Talk) -> Steps[R]:
        """What changes a server is asked of each, once; the first error is raised when all were asked."""
        answers: list[R] = []
        errors: list[ClientError] = []
        for node in self.fleet.nodes:
            try:
                answers.append((yield from self._attempt(node, call, talk, 1)))
            except ClientError as error:
                errors.append(error)
        if errors:
            n = len(self.fleet.nodes)
            raise type(errors[0])(f"{errors[0]} {n - len(errors)} of {n} servers did it.") if n > 1 else errors[0]
        return answers[0]

    def _probe(self, node: Node) -> Steps[None]:
        """Ask a server that rests whether it is ready; the answer ends or prolongs its rest."""
        try:
            ready = yield from self._attempt(node, ServerReady(), Talk(self, Deadline.after(PROBE_S)), 1)
            if not ready:
                self.fleet.failed(node, UnavailableError(f"{node.endpoint}: not ready."))
            else:
                _log.info("%s: the server is back", node.endpoint)
        except ConvoyError:
            pass  # what it means was noted already

    def _resolve(self) -> Steps[None]:
        """Look the addresses behind names up, and spread requests over them where there are several."""
        assert self._look_up is not None
        idle = [node for node in self.discarded if not node.busy]  # discarded a while ago: nobody is about to ask them
        for node in idle:
            self.discarded.remove(node)
            yield Close(node)
        for endpoint in self._names:
            look_up = self._look_up
            try:
                addresses = yield from work(lambda: look_up(endpoint))  # noqa: B023  # runs before the next turn
            except OSError as error:
                _log.info("%s: its addresses cannot be looked up (%s); those that are known stay", endpoint, error)
                continue
            by = [endpoint.at(address) for address in addresses] if len(addresses) > 1 else [endpoint]
            self.discarded += self.fleet.replace(endpoint, by)


def look_up(endpoint: Endpoint) -> list[str]:
    """The addresses behind a name, of one family: IPv4 where there are some, since most servers listen there.

    Raises:
        OSError: The name is not known, or nobody can be asked.
    """
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    by_family = {
        family: [str(place[0]) for kind, *_, place in found if kind == family] for family in (socket.AF_INET, socket.AF_INET6)
    }
    return sorted(set(by_family[socket.AF_INET] or by_family[socket.AF_INET6]))


def parse_all(urls: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """The endpoints of one URL or several.

    Raises:
        UsageError: One is none, two are the same, or there is none.
    """
    texts = list(urls) if isinstance(urls, Sequence) and not isinstance(urls, str) else [urls]
    if not texts:
        raise UsageError("url: expected the URL of a server, or several, found none.")
    endpoints = tuple(Endpoint.parse(text) for text in texts)
    for endpoint in endpoints:
        if endpoints.count(endpoint) > 1:
            raise UsageError(f"url: expected each server once, found {endpoint} {endpoints.count(endpoint)} times.")
    return endpoints


def _is_name(host: str) -> bool:
    """Whether a host is a name that may stand for several servers; this machine is one."""
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False
