"""``Measurement``: what a load found out, window by window and as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from convoy.serving.load.latency import Percentiles
from convoy.serving.load.server_share import ServerShare
from convoy.serving.load.traffic import Load

STABLE_WINDOWS: Final = 3
"""How many windows must agree, as NVIDIA's perf_analyzer has it."""


@dataclass(frozen=True)
class Window:
    """What happened in a window: the requests that were answered in it.

    Attributes:
        requests_per_s: How many were answered a second.
        latency_ms: Their latencies; None where none was answered.
        n_errors: How many failed.
    """

    requests_per_s: float
    latency_ms: Percentiles | None
    n_errors: int


@dataclass(frozen=True)
class Measurement:
    """One model under one load.

    The figures are those of the last three windows where these agree (``stable``), and of all windows where they never did. Counts
    named ``total`` are of the whole run, from the first request to the last answer.

    Attributes:
        load: The load.
        protocol: ``http`` or ``grpc``.
        batch_size: Images a request.
        n_requests: Requests whose latencies are in ``latency_ms``. Closed loop: those answered in the measured time; open loop:
            those that were due in it, though some were answered later.
        n_errors: Requests that failed, at any time of the run.
        first_error: Why the first one did; empty where none did.
        duration_s: The measured time.
        requests_per_s: Requests answered a second of the measured time.
        images_per_s: The same in images.
        window_s: How long each window was.
        windows: Every window of the run, in order.
        stable: Whether the last three windows agreed.
        latency_ms: From the start of a request (closed loop) or from the moment at which it was due (open loop) to its answer; None
            where no request was answered.
        lag_ms: Open loop: how late requests were sent, which their latencies hold too: what the generator and this machine's
            scheduler put on top, and the wait of those that were held. None for a closed loop.
        n_held: Open loop: requests that found ``max_outstanding`` others unanswered when they were due, and had to wait.
        n_unsent: Open loop: requests that were due and never sent, since it ended before their turn came. Their latencies are not
            in ``latency_ms``, which is too small then.
        generator_cpu: The processor time that the generator's busiest process took, as a share of one core.
        n_processes: Processes that generated the load.
        server: What the server counted in the measured time; None where it keeps no statistics.
        n_total_sent: Requests sent in the whole run.
        n_total_answered: Those of them that were answered well.
    """

    load: Load
    protocol: str
    batch_size: int
    n_requests: int
    n_errors: int
    first_error: str
    duration_s: float
    requests_per_s: float
    images_per_s: float
    window_s: float
    windows: tuple[Window, ...]
    stable: bool
    latency_ms: Percentiles | None
    lag_ms: Percentiles | None
    n_held: int
    n_unsent: int
    generator_cpu: float
    n_processes: int
    server: ServerShare | None
    n_total_sent: int
    n_total_answered: int

    @property
    def kept_up(self) -> bool:
        """Whether every request was sent when it was due; a closed loop always keeps up."""
        return not (self.n_held or self.n_unsent)

    @property
    def generator_was_the_limit(self) -> bool:
        """Whether the generator had so little time left that a quicker one might have measured more."""
        return self.generator_cpu > 0.9

    def as_dict(self) -> dict[str, Any]:
        """JSON's form."""
        return {
            **asdict(self),
            "load": self.load.as_dict(),
            "kept_up": self.kept_up,
            "generator_was_the_limit": self.generator_was_the_limit,
        }


def agree(windows: Sequence[Window], within: float) -> bool:
    """Whether the last three windows agree: rate and mean latency of each lie within a share of the mean of the three.

    Args:
        windows: In order.
        within: The share, 0.1 for example.
    """
    last = windows[-STABLE_WINDOWS:]
    if len(last) < STABLE_WINDOWS:
        return False
    rates = [window.requests_per_s for window in last]
    latencies = [window.latency_ms.mean for window in last if window.latency_ms is not None]
    return len(latencies) == len(last) and _close(rates, within) and _close(latencies, within)


def _close(values: Sequence[float], within: float) -> bool:
    mean = sum(values) / len(values)
    return all(abs(value - mean) <= within * mean for value in values)


def window_of(ends: npt.NDArray[np.int64], latencies: npt.NDArray[np.int64], start_ns: int, end_ns: int, n_errors: int) -> Window:
    """The window from ``start_ns`` to before ``end_ns``.

    Args:
        ends: When requests were answered, in ns; shape (n,).
        latencies: How long they took, in ns; shape (n,).
        start_ns: The window's start, on the clock of ``ends``.
        end_ns: Its end.
        n_errors: How many requests failed in it.
    """
    inside = latencies[(ends >= start_ns) & (ends < end_ns)]
    return Window(len(inside) / (end_ns - start_ns) * 1e9, Percentiles.of(inside), n_errors)
