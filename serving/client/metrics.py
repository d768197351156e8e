"""Counters and latencies of clients for Prometheus.

Example:
    >>> from convoy import Client
    >>> from convoy.serving.client.metrics import ClientMetrics
    >>> metrics = ClientMetrics()                    # in prometheus_client's own registry; one for all clients of a process
    >>> client = Client("grpc://localhost:8001", metrics=metrics)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from convoy.contract.errors import ClientError, MissingDependencyError, UsageError
from convoy.serving.client._call import Call
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._observer import AttemptObserver, MethodCall, SilentAttempt, SilentCall, outcome_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From a small network on the same machine to a call of thousands of images."""

OTHER: Final = "_other"
"""The model's name where there are too many."""


class ClientMetrics:
    """What clients did, for Prometheus; all numbers add up over clients, processes and machines.

    =====================================  =========  =======================  ===================================================
    name                                   kind       labels                   counts
    =====================================  =========  =======================  ===================================================
    ``convoy_client_requests_total``       counter    model, method, outcome   calls of methods that ended: ``ok``, ``cancelled`` or
                                                                               the name of the error's class
    ``convoy_client_request_seconds``      histogram  model, method            how long they took, retries and all
    ``convoy_client_in_flight``            gauge      model, method            calls under way
    ``convoy_client_attempts_total``       counter    endpoint, outcome        requests on the wire that ended
    ``convoy_client_retries_total``        counter    reason                   requests that were sent again, by the error's class
    ``convoy_client_hedges_total``         counter                             requests that were sent beside a slow one
    ``convoy_client_merges_total``         counter                             inferences that went in another caller's request
    ``convoy_client_ejections_total``      counter    endpoint                 servers that were left alone for a while
    =====================================  =========  =======================  ===================================================

    Labels stay few: neither versions, ids nor the addresses behind a name are any, and of models no more than ``most_models``.
    One object may serve any number of clients, and must where they share a registry. Safe under threads. Works with
    prometheus_client's multiprocess mode: set ``PROMETHEUS_MULTIPROC_DIR`` before prometheus_client is first imported.

    Args:
        registry: Where they are registered; None: prometheus_client's own.
        buckets_s: The histogram's upper bounds, seconds, ascending. Alike everywhere, or histograms do not add up.
        most_models: How many models are told apart; further ones are ``_other``: names may be what strangers typed.

    Raises:
        MissingDependencyError: prometheus_client is not installed.
        UsageError: The registry has a client's metrics already.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, *, buckets_s: Sequence[float] = BUCKETS_S, most_models: int = 100
    ) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingDependencyError(
                "ClientMetrics needs prometheus_client: pip install prometheus-client (Convoy's extra `observe`)."
            ) from error
        place = REGISTRY if registry is None else registry
        try:
            self._seconds = Histogram(  # the first, since it may be refused: nothing is registered by halves
                "convoy_client_request_seconds",
                "How long calls of client methods took.",
                ("model", "method"),
                buckets=tuple(buckets_s),
                registry=place,
            )
            self._requests = Counter(
                "convoy_client_requests", "Calls of client methods that ended.", ("model", "method", "outcome"), registry=place
            )
            self._in_flight = Gauge(
                "convoy_client_in_flight",
                "Calls of client methods under way.",
                ("model", "method"),
                multiprocess_mode="livesum",
                registry=place,
            )
            self._attempts = Counter(
                "convoy_client_attempts", "Requests on the wire that ended.", ("endpoint", "outcome"), registry=place
            )
            self._retries = Counter("convoy_client_retries", "Requests that were sent again.", ("reason",), registry=place)
            self._hedges = Counter("convoy_client_hedges", "Requests that were sent beside a slow one.", registry=place)
            self._merges = Counter("convoy_client_merges", "Inferences that went in another caller's request.", registry=place)
            self._ejections = Counter(
                "convoy_client_ejections", "Servers that were left alone for a while.", ("endpoint",), registry=place
            )
        except ValueError as error:
            raise UsageError(
                f"metrics: {error}. Give all clients of a registry the same ClientMetrics, and a histogram ascending buckets."
            ) from error
        self._most_models = most_models
        self._models: set[str] = set()
        # what labels() gave: it costs more than the counting
        self._children: dict[tuple[str, str], tuple[Gauge, Histogram]] = {}
        self._ended: dict[tuple[str, str, str], Counter] = {}
        self._answered: dict[tuple[str, str], Counter] = {}

    def call(self, begun: MethodCall) -> SilentCall:
        """See ``Observer.call``."""
        return _CountedCall(self, self._known(begun.model_name), begun.method)

    def _known(self, model_name: object) -> str:
        model = str(model_name)
        if model in self._models:
            return model
        if len(self._models) >= self._most_models and model:
            return OTHER
        self._models.add(model)
        return model

    def _of(self, model: str, method: str) -> tuple[Gauge, Histogram]:
        found = self._children.get((model, method))
        if found is None:
            found = self._in_flight.labels(model, method), self._seconds.labels(model, method)
            self._children[(model, method)] = found
        return found

    def _count_call(self, model: str, method: str, outcome: str) -> None:
        key = (model, method, outcome)
        if key not in self._ended:
            self._ended[key] = self._requests.labels(*key)
        self._ended[key].inc()

    def _count_attempt(self, endpoint: str, outcome: str) -> None:
        key = (endpoint, outcome)
        if key not in self._answered:
            self._answered[key] = self._attempts.labels(*key)
        self._answered[key].inc()


class _CountedCall(SilentCall):
    def __init__(self, metrics: ClientMetrics, model: str, method: str) -> None:
        self._metrics, self._model, self._method = metrics, model, method
        self._under_way, self._seconds = metrics._of(model, method)
        self._under_way.inc()
        self._started_s = time.perf_counter()

    def attempt(self, call: Call[Any], endpoint: Endpoint, number: int) -> AttemptObserver:  # noqa: ARG002
        return _CountedAttempt(self._metrics, endpoint.name)

    def retried(self, error: ClientError) -> None:
        self._metrics._retries.labels(type(error).__name__).inc()

    def hedged(self) -> None:
        self._metrics._hedges.inc()

    def merged(self, request_id: str) -> None:  # noqa: ARG002
        self._metrics._merges.inc()

    def ejected(self, endpoint: Endpoint) -> None:
        self._metrics._ejections.labels(endpoint.name).inc()

    def end(self, error: BaseException | None) -> None:
        self._seconds.observe(time.perf_counter() - self._started_s)
        self._under_way.dec()
        self._metrics._count_call(self._model, self._method, outcome_of(error))


class _CountedAttempt(SilentAttempt):
    def __init__(self, metrics: ClientMetrics, endpoint: str) -> None:
        self._metrics, self._endpoint = metrics, endpoint

    def end(self, error: BaseException | None) -> None:
        self._metrics._count_attempt(self._endpoint, outcome_of(error))
