"""``measure``: put a load on a model until the figures are stable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ClientError, UsageError
from convoy.serving.client import Client
from convoy.serving.load.crew import Crew, Report
from convoy.serving.load.latency import Percentiles
from convoy.serving.load.measurement import STABLE_WINDOWS, Measurement, Window, agree, window_of
from convoy.serving.load.server_share import ServerShare
from convoy.serving.load.target import Target
from convoy.serving.load.traffic import Closed, Load


def measure(
    target: Target,
    load: Load,
    *,
    window_s: float = 1.0,
    max_windows: int = 10,
    stable_within: float = 0.10,
    warm_up_s: float = 0.5,
    seed: int = 0,
    processes: int = 1,
    on_window: Callable[[Window], None] | None = None,
) -> Measurement:
    """Put a load on a model, window after window, until the last three agree or ``max_windows`` have passed.

    The load comes from processes of its own. Every latency is kept, at 16 bytes a request.

    Args:
        target: Whom it is put on.
        load: ``Closed`` or ``Open``.
        window_s: How long a window is.
        max_windows: After how many windows it ends at the latest.
        stable_within: How far rate and mean latency of the last three windows may be from their mean, as a share of it.
        warm_up_s: How long the load runs before the first window.
        seed: For the arrivals of an open loop.
        processes: How many processes share the load. One is enough until its share of a core comes near 1.
        on_window: Is told each window as it ends.

    Raises:
        UsageError: A number is out of its range.
        UnavailableError: The server takes no connection.
        ClientError: The generator's process died.
    """
    _check(window_s, max_windows, stable_within, warm_up_s, processes)
    with Client(target.url, timeout_s=target.timeout_s) as client:
        crew = Crew(target, load, processes=processes, timeout_s=target.timeout_s, seed=seed)
        with crew:
            start_ns = crew.begin(warm_up_s, window_s)
            run = _Run(start_ns + int(warm_up_s * 1e9), int(window_s * 1e9))
            run.add(crew.report(), _statistics(client, target))
            while len(run.windows) < max_windows and not agree(run.windows, stable_within):
                run.add(crew.report(), _statistics(client, target))
                window = run.close_window()
                if on_window is not None:
                    on_window(window)
            for report in crew.stop():
                run.add(report, None)
    return run.result(target, load, agree(run.windows, stable_within))


class _Run:
    """What is known of a run so far.

    Args:
        start_ns: When the first window starts.
        window_ns: How long each is.
    """

    def __init__(self, start_ns: int, window_ns: int) -> None:
        self.windows: list[Window] = []
        self._start_ns, self._window_ns = start_ns, window_ns
        self._reports: list[Report] = []
        self._statistics: list[list[dict[str, Any]] | None] = []

    def add(self, report: Report, statistics: list[dict[str, Any]] | None) -> None:
        """Take in a report, and what the server said at its time."""
        self._reports.append(report)
        self._statistics.append(statistics)

    def close_window(self) -> Window:
        """The window that has just ended."""
        start = self._start_ns + len(self.windows) * self._window_ns
        n_errors = self._reports[-1].n_errors - self._reports[-2].n_errors
        # Answers of the window's very start may stand in the report before: its process was at work when the time came.
        ends, latencies = self._answers(self._reports[-2:])
        self.windows.append(window_of(ends, latencies, start, start + self._window_ns, n_errors))
        return self.windows[-1]

    def result(self, target: Target, load: Load, stable: bool) -> Measurement:
        """The whole."""
        n = STABLE_WINDOWS if stable else len(self.windows)
        first, last = len(self.windows) - n, len(self.windows)
        start, end = (self._start_ns + index * self._window_ns for index in (first, last))
        ends, latencies = self._answers(self._reports)
        answered = (ends >= start) & (ends < end)
        began = ends - latencies
        chosen = answered if isinstance(load, Closed) else (began >= start) & (began < end)
        duration_s = (end - start) / 1e9
        rate = int(answered.sum()) / duration_s
        final = self._reports[-1]
        return Measurement(
            load=load,
            protocol=target.protocol,
            batch_size=target.batch_size,
            n_requests=int(chosen.sum()),
            n_errors=final.n_errors,
            first_error=final.first_error,
            duration_s=duration_s,
            requests_per_s=rate,
            images_per_s=rate * target.batch_size,
            windows=tuple(self.windows),
            stable=stable,
            latency_ms=Percentiles.of(latencies[chosen]),
            n_held=final.n_held,
            n_unsent=final.n_unsent,
            generator_cpu=max(
                (after - before) / duration_s
                for before, after in zip(self._reports[first].cpu_s, self._reports[last].cpu_s, strict=True)
            ),
            n_processes=len(final.cpu_s),
            server=_share(self._statistics[first], self._statistics[last]),
            n_total_sent=final.n_sent,
            n_total_answered=len(ends),
        )

    @staticmethod
    def _answers(reports: Sequence[Report]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return np.concatenate([report.ends for report in reports]), np.concatenate([report.latencies for report in reports])


def _statistics(client: Client, target: Target) -> list[dict[str, Any]] | None:
    """What the server counts; None where it does not, or is too busy to say."""
    try:
        return client.statistics(target.model_name, target.model_version)
    except ClientError:
        return None


def _share(before: list[dict[str, Any]] | None, after: list[dict[str, Any]] | None) -> ServerShare | None:
    return None if before is None or after is None else ServerShare.between(before, after)


def _check(window_s: float, max_windows: int, stable_within: float, warm_up_s: float, processes: int) -> None:
    """Refuse numbers that make no measurement."""
    expected: Mapping[str, tuple[float, bool, str]] = {
        "window_s": (window_s, 0.01 <= window_s <= 3600, "0.01 to 3600 seconds"),
        "max_windows": (max_windows, STABLE_WINDOWS <= max_windows <= 10_000, f"{STABLE_WINDOWS} to 10,000 windows"),
        "stable_within": (stable_within, 0 < stable_within < 1, "a share between 0 and 1"),
        "warm_up_s": (warm_up_s, 0 <= warm_up_s <= 3600, "0 to 3600 seconds"),
        "processes": (processes, 1 <= processes <= 256, "1 to 256 processes"),
    }
    for name, (value, holds, wanted) in expected.items():
        if not (math.isfinite(value) and holds):
            raise UsageError(f"{name}: expected {wanted}, found {value:g}.")
