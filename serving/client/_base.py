"""What ``Client`` and ``AsyncClient`` are made of, whatever drives the I/O."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convoy.contract.errors import ImageError, UsageError
from convoy.serving.client._amounts import Amounts
from convoy.serving.client._audience import Audience
from convoy.serving.client._deadline import Deadline, check_timeout
from convoy.serving.client._deployed import Deployments
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._express import Express, ExpressWay
from convoy.serving.client._images import Images
from convoy.serving.client._inference import Inferences
from convoy.serving.client._models import Models
from convoy.serving.client._request_id import RequestIds, check_request_id
from convoy.serving.client._retry import NEVER, Retry
from convoy.serving.client._router import Router, Talk, look_up, parse_all
from convoy.serving.client._tensors import Tensors
from convoy.serving.client._transport import Options, Tls, check_headers

if TYPE_CHECKING:
    from convoy.serving.client.metrics import ClientMetrics

Progress = Callable[[int], None]
"""Is told how many rows (images) are answered so far."""


OnUnreadable = Callable[[int, ImageError], None]
"""Is told the place of an image that cannot be read, from 0, and why."""


def tell(progress: Progress | None, n: int) -> None:
    """Tell of progress, where anybody wants to know."""
    if progress is not None:
        progress(n)


class BaseClient:
    """The servers, the options and the memory of a client. The arguments are those of ``Client``.

    Args:
        open_transport: Opens the connections to one server.
        new_signal: Makes what a caller waits for; see ``Crowd``.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None,
        tls: Tls | None,
        retry: Retry | None,
        hedge_after_s: float | None,
        max_in_flight: int,
        merge: bool,
        shared_memory: bool,
        compression: str | None,
        metrics: ClientMetrics | None,
        transport: Any,
        open_transport: Callable[[Endpoint, Options], Any],
        new_signal: Callable[[], Any],
    ) -> None:
        self._endpoints = parse_all(url)
        self._timeout_s = check_timeout(timeout_s)
        if hedge_after_s is not None:
            hedge_after_s = check_timeout(hedge_after_s, "hedge_after_s")
        if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or max_in_flight < 1:
            raise UsageError(f"max_in_flight: expected a whole number of requests from 1, found {max_in_flight!r}.")
        if compression not in (None, "gzip"):
            raise UsageError(f"compression: expected 'gzip', or None for none, found {compression!r}.")
        if retry is not None and not isinstance(retry, Retry):
            raise UsageError(f"retry: expected a convoy.serving.client.Retry, or None for no retry, found {type(retry).__name__}.")
        if metrics is not None:
            from convoy.serving.client.metrics import ClientMetrics

            if not isinstance(metrics, ClientMetrics):
                raise UsageError(f"metrics: expected a ClientMetrics, or None for none, found {type(metrics).__name__}.")
        options = Options(check_headers(headers), tls or Tls(), shared_memory, compression)
        given = _by_url(transport, self._endpoints)
        self._max_in_flight = max_in_flight
        self._retry = retry or NEVER
        where = ", ".join(map(str, self._endpoints))
        self._models = Models(new_signal, merge=merge)
        self._inferences = Inferences(where, self._models)
        shares = given is None and shared_memory
        self._tensors = Tensors(where, self._models, self._inferences, lambda: _least_on_gpu(self._endpoints) if shares else None)
        self._express_way = ExpressWay(self._models, self._inferences)
        deployments = Deployments(where, self._models)
        self._images = Images(where, deployments, self._inferences)
        self._amounts = Amounts(where, deployments, self._inferences)
        self._closed = False
        self._audience = Audience(metrics)
        self._request_ids = RequestIds()

        def new_router() -> Router:
            return Router(
                self._endpoints,
                (lambda endpoint: open_transport(endpoint, options)) if given is None else given.__getitem__,
                retry=self._retry,
                hedge_after_s=hedge_after_s,
                look_up=look_up if given is None else None,
            )

        self._new_router = new_router
        self._router = new_router()
        self._pid = os.getpid()

    @property
    def url(self) -> str:
        """Where the server is, the port written out; several are apart by commas."""
        return ", ".join(map(str, self._endpoints))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _begin(
        self,
        method: str,
        timeout_s: float | None,
        model_name: str | None = None,
        model_version: str = "",
        request_id: str = "",
        *,
        lasting: bool = False,
    ) -> Talk:
        """A call of a method begins; it ends with the ``with`` block of the talk.

        Args:
            method: The method.
            timeout_s: How long it may take.
            model_name: The model that it is about; None where it is about the server.
            model_version: The version that was asked for.
            request_id: What the caller calls its requests.
            lasting: Whether the caller does other things before it has ended.
        """
        self._check_open()
        timeout_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        deadline = Deadline(timeout_s, time.monotonic() + timeout_s)
        request_id = self._request_ids.new() if request_id == "" else check_request_id(request_id)
        observed = self._audience.begin(method, model_name or "", model_version, request_id, lasting=lasting)
        return Talk(self._router, deadline, request_id, observed)

    def _express(
        self,
        model_name: str,
        inputs: Mapping[str, Any],
        outputs: tuple[str, ...],
        model_version: str,
        timeout_s: float | None,
        request_id: str,
    ) -> Express | None:
        """An inference on the short way; None where it has to take the long one."""
        if self._closed or self._pid != os.getpid() or not self._audience.is_empty():
            return None
        timeout_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        request_id = self._request_ids.new() if request_id == "" else check_request_id(request_id)
        return self._express_way.enter(self._router, model_name, inputs, outputs, model_version, timeout_s, request_id)

    def _talk_of(self, express: Express) -> Talk:
        """An inference that has left the short way."""
        return Talk(self._router, Deadline(express.timeout_s, express.at_s), express.call.request_id)

    def _go_on(self, talk: Talk, timeout_s: float | None) -> Talk:
        """The next request of a call whose requests each have a deadline of their own."""
        self._check_open()
        deadline = Deadline.after(self._timeout_s if timeout_s is None else timeout_s)
        return Talk(self._router, deadline, talk.request_id, talk.observed)

    def _check_open(self) -> None:
        """Make sure that calls can be made: not after ``close``; in a child process over connections of its own."""
        if self._closed:
            raise UsageError(f"{self.url}: the client is closed; make a new one.")
        if self._pid != os.getpid():
            self._leave_parent()

    def _leave_parent(self) -> None:
        """This is a child process: what the parent connected, and what its threads may have locked, is not ours."""
        self._pid = os.getpid()
        self._inherited = self._router  # kept, since to let go of it would say good-bye on the parent's connections
        self._router = self._new_router()
        self._models.leave_parent()
        self._request_ids = RequestIds()


def _least_on_gpu(endpoints: Sequence[Endpoint]) -> int | None:
    """From how many bytes on servers may be sent tensors that stay on a GPU; None where not each of them is on this machine."""
    if not all(endpoint.uses_grpc and endpoint.shares_memory for endpoint in endpoints):
        return None
    from convoy.serving.client._shared_memory import LEAST_BYTES

    return LEAST_BYTES


def check_transport(transport: Any, *, is_async: bool) -> None:
    """Make sure that a caller's own transport is of the client's kind.

    Raises:
        UsageError: It is not.
    """
    for one in transport.values() if isinstance(transport, Mapping) else () if transport is None else (transport,):
        send = getattr(one, "send", None)
        if not callable(send) or inspect.iscoroutinefunction(send) != is_async:
            kind = "an AsyncTransport (such as AsyncFakeTransport)" if is_async else "a Transport (such as FakeTransport)"
            raise UsageError(f"transport: expected {kind}, found {type(one).__name__}.")


def _by_url(transport: Any, endpoints: Sequence[Endpoint]) -> dict[Endpoint, Any] | None:
    """The transport of each server where a caller brought them along."""
    if transport is None:
        return None
    if not isinstance(transport, Mapping):
        return dict.fromkeys(endpoints, transport)
    by_endpoint = {Endpoint.parse(url): one for url, one in transport.items()}
    for endpoint in endpoints:
        if endpoint not in by_endpoint:
            raise UsageError(f"transport: expected one for each URL, found none for {endpoint}.")
    return by_endpoint
