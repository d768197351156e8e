"""What the logger ``convoy.client`` says of every request, at level DEBUG."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from convoy.serving.client._call import Call, Infer
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._observer import AttemptObserver, MethodCall, SilentAttempt, SilentCall, outcome_of

LOGGER: Final = logging.getLogger("convoy.client")


class RequestLog:
    """An ``Observer`` that writes a line a request."""

    def call(self, begun: MethodCall) -> SilentCall:
        """See ``Observer.call``."""
        return _LoggedCall(begun)


class _LoggedCall(SilentCall):
    def __init__(self, begun: MethodCall) -> None:
        self._begun = begun

    def attempt(self, call: Call[Any], endpoint: Endpoint, number: int) -> AttemptObserver:
        request_id = call.request_id if isinstance(call, Infer) else self._begun.request_id
        return _LoggedAttempt(call, endpoint, number, request_id)

    def merged(self, request_id: str) -> None:
        extra = {"convoy_request_id": self._begun.request_id, "convoy_model_name": self._begun.model_name}
        LOGGER.debug("request %s: answered with others by request %s", self._begun.request_id, request_id, extra=extra)


class _LoggedAttempt(SilentAttempt):
    def __init__(self, call: Call[Any], endpoint: Endpoint, number: int, request_id: str) -> None:
        self._call, self._endpoint, self._number, self._request_id = call, endpoint, number, request_id
        self._started_s = time.perf_counter()

    def end(self, error: BaseException | None) -> None:
        ms = (time.perf_counter() - self._started_s) * 1e3
        call, outcome = self._call, outcome_of(error)
        LOGGER.debug(
            "%s: request %s: %s %s, attempt %d: %s in %.3f ms",
            self._endpoint,
            self._request_id,
            call.does,
            call.subject,
            self._number,
            outcome,
            ms,
            extra={  # prefixed: a program's own record factory may set a request_id, and logging lets nobody set one twice
                "convoy_request_id": self._request_id,
                "convoy_model_name": call.model_name,
                "convoy_endpoint": str(self._endpoint),
                "convoy_attempt": self._number,
                "convoy_outcome": outcome,
                "convoy_latency_ms": ms,
            },
        )


REQUEST_LOG: Final = RequestLog()
