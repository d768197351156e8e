"""Who listens to a client, call by call: a log level, or a tracer provider, may be set long after the client was made."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from convoy.serving.client._observer import UNOBSERVED, CallObserver, CallTogether, MethodCall, Observer
from convoy.serving.client._request_log import LOGGER, REQUEST_LOG

if TYPE_CHECKING:
    from convoy.serving.client._tracing import Tracing


class Audience:
    """Those who are told of a client's calls: the application's tracer provider, its metrics, its log.

    Args:
        metrics: Who counts; None: nobody.
    """

    def __init__(self, metrics: Observer | None = None) -> None:
        self._metrics = metrics
        self._tracing: Tracing | None = None

    def is_empty(self) -> bool:
        """Whether nobody would be told of a call that begins now."""
        if self._metrics is not None or LOGGER.isEnabledFor(logging.DEBUG):
            return False
        return sys.modules.get("opentelemetry.trace") is None or _tracer_provider() is None

    def begin(self, method: str, model_name: str, model_version: str, request_id: str, *, lasting: bool) -> CallObserver:
        """A call of a method begins; the arguments are those of ``MethodCall``."""
        provider = _tracer_provider()
        logs = LOGGER.isEnabledFor(logging.DEBUG)
        if provider is None and self._metrics is None and not logs:
            return UNOBSERVED
        observers: list[Observer] = [] if provider is None else [self._traced_by(provider)]
        if self._metrics is not None:
            observers.append(self._metrics)
        if logs:
            observers.append(REQUEST_LOG)
        begun = MethodCall(method, model_name, model_version, request_id, lasting)
        if len(observers) == 1:
            return observers[0].call(begun)
        return CallTogether([observer.call(begun) for observer in observers])

    def _traced_by(self, provider: Any) -> Tracing:
        tracing = self._tracing
        if tracing is None or tracing.provider is not provider:
            from convoy.serving.client._tracing import Tracing

            tracing = self._tracing = Tracing(provider)
        return tracing


def _tracer_provider() -> Any:
    """The application's tracer provider; None where it has set none up, which it cannot do without importing OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    get = getattr(trace, "get_tracer_provider", None)
    if get is None:  # another thread is about to import it
        return None
    provider = get()
    return None if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)) else provider
