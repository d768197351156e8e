"""``measure``: put a load on a model until the figures are stable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

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

_ANSWERS_IN_TURN: Final = 10
_ARRIVALS: Final = 200
_LONGEST_NS: Final = 30_000_000_000


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
        window_s: How long a window is, at least. In a closed loop it is made ten times as long as an answer takes, in an open one
            long enough for 200 arrivals, whose number differs by 7 % from window to window; though not longer than 30 s.
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
            run = _Run(load, start_ns + int(warm_up_s * 1e9), int(window_s * 1e9))
            run.add(crew.report(), _statistics(client, target))
            while len(run.windows) < max_windows and not agree(run.windows, stable_within):
                window = run.add(crew.report(), _statistics(client, target))
                if window is not None and on_window is not None:
                    on_window(window)
            for report in crew.stop():
                run.add(report, None, last=True)
    return run.result(target, agree(run.windows, stable_within))


class _Run:
    """What is known of a run so far.

    The generator reports at fixed times, a period apart. A window is one period, or several where answers are slow: a batch that is
    answered just before a window's end or just after it would otherwise make windows of equal loads differ.

    Args:
        load: The load.
        start_ns: When the first period starts.
        period_ns: How long each is.
    """

    def __init__(self, load: Load, start_ns: int, period_ns: int) -> None:
        self.windows: list[Window] = []
        self._load = load
        self._start_ns, self._period_ns = start_ns, period_ns
        self._periods = 0  # a window; 0 until it is known
        self._reports: list[Report] = []
        self._statistics: list[list[dict[str, Any]] | None] = []

    def add(self, report: Report, statistics: list[dict[str, Any]] | None, *, last: bool = False) -> Window | None:
        """Take in a report, and what the server said at its time.

        Args:
            report: The report.
            statistics: What the server counted until then.
            last: Whether the measured time is over.

        Returns:
            The window that has ended with it; None where none has.
        """
        self._reports.append(report)
        self._statistics.append(statistics)
        if last:
            return None
        if not self._periods:
            self._periods = self._choose_periods()
        n = len(self._reports) - 1
        if not self._periods or n == 0 or n < (len(self.windows) + 1) * self._periods:
            return None
        return self._close_window()

    def _choose_periods(self) -> int:
        """How many periods make a window; 0 while nothing is known."""
        if not isinstance(self._load, Closed):
            wanted = min(_ARRIVALS / self._load.rate_per_s * 1e9, _LONGEST_NS)
            return max(1, math.ceil(wanted / self._period_ns))
        _, latencies = self._answers(self._reports)
        n = len(self._reports) - 1
        if not len(latencies):
            return 1 if n * self._period_ns >= _LONGEST_NS or self._reports[-1].n_errors else 0
        wanted = min(_ANSWERS_IN_TURN * float(latencies.mean()), _LONGEST_NS)
        return max(1, n, math.ceil(wanted / self._period_ns))

    def _time(self, report: int) -> int:
        return self._start_ns + report * self._period_ns

    def _close_window(self) -> Window:
        first = len(self.windows) * self._periods
        last = first + self._periods
        n_errors = self._reports[last].n_errors - self._reports[first].n_errors
        # Answers of the window's very start may stand in the report before: its process was at work when the time came.
        ends, latencies = self._answers(self._reports[first : last + 1])
        self.windows.append(window_of(ends, latencies, self._time(first), self._time(last), n_errors))
        return self.windows[-1]

    def result(self, target: Target, stable: bool) -> Measurement:
        """The whole."""
        n = STABLE_WINDOWS if stable else len(self.windows)
        first, last = (index * self._periods for index in (len(self.windows) - n, len(self.windows)))
        start, end = self._time(first), self._time(last)
        ends, latencies = self._answers(self._reports)
        answered = (ends >= start) & (ends < end)
        began = ends - latencies
        chosen = answered if isinstance(self._load, Closed) else (began >= start) & (began < end)
        duration_s = (end - start) / 1e9
        rate = int(answered.sum()) / duration_s
        final = self._reports[-1]
        cpu_s = zip(self._reports[first].cpu_s, self._reports[last].cpu_s, strict=True)
        return Measurement(
            load=self._load,
            protocol=target.protocol,
            batch_size=target.batch_size,
            n_requests=int(chosen.sum()),
            n_errors=final.n_errors,
            first_error=final.first_error,
            duration_s=duration_s,
            requests_per_s=rate,
            images_per_s=rate * target.batch_size,
            window_s=self._periods * self._period_ns / 1e9,
            windows=tuple(self.windows),
            stable=stable,
            latency_ms=Percentiles.of(latencies[chosen]),
            lag_ms=Percentiles.of(np.concatenate([report.lags for report in self._reports])),
            n_held=final.n_held,
            n_unsent=final.n_unsent,
            generator_cpu=max((after - before) / duration_s for before, after in cpu_s),
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
