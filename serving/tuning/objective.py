"""What better means: throughput at several numbers of callers, within a latency budget where there is one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convoy.contract.errors import UsageError


@dataclass(frozen=True)
class Point:
    """What was measured of a setting at one number of callers.

    Attributes:
        images_per_s: Throughput.
        p50_ms: Median latency.
        p99_ms: 99th percentile of the latency.
        mean_batch_size: Images an execution, as the server counted; 0 where it did not.
        stable: Whether the last three windows agreed.
    """

    images_per_s: float
    p50_ms: float
    p99_ms: float
    mean_batch_size: float
    stable: bool


@dataclass(frozen=True)
class Objective:
    """What a setting is judged by.

    Without a budget: the geometric mean of the throughputs at all numbers of callers. At one caller throughput is the inverse of
    latency, so a setting that makes few callers wait for the sake of many has to gain as much as it loses.

    With a budget: the largest throughput whose 99th percentile of latency lies within it, at any of the numbers of callers; 0 where
    none does.

    Attributes:
        concurrencies: The numbers of callers.
        latency_budget_ms: The budget; None for none.
    """

    concurrencies: tuple[int, ...]
    latency_budget_ms: float | None = None

    def __post_init__(self) -> None:
        if not self.concurrencies or min(self.concurrencies) < 1:
            raise UsageError(f"--concurrency: expected numbers from 1, found {list(self.concurrencies)}.")
        if self.latency_budget_ms is not None and not (math.isfinite(self.latency_budget_ms) and self.latency_budget_ms > 0):
            raise UsageError(f"--latency-budget-ms: expected more than 0, found {self.latency_budget_ms:g}.")

    def score(self, points: Mapping[int, Point]) -> float:
        """How good a setting is, in images a second.

        Args:
            points: What was measured at each number of callers.
        """
        if self.latency_budget_ms is not None:
            within = [point.images_per_s for point in points.values() if point.p99_ms <= self.latency_budget_ms]
            return max(within, default=0.0)
        rates = [points[concurrency].images_per_s for concurrency in self.concurrencies]
        return math.exp(sum(map(math.log, rates)) / len(rates)) if min(rates) > 0 else 0.0

    def __str__(self) -> str:
        callers = ", ".join(map(str, self.concurrencies))
        if self.latency_budget_ms is not None:
            return f"the most images/s with a p99 of at most {self.latency_budget_ms:g} ms, at {callers} callers"
        return f"images/s, the geometric mean over {callers} callers"


@dataclass(frozen=True)
class Comparison:
    """Two settings measured in turns.

    Attributes:
        ratios: Of each round, the candidate's score over the incumbent's; infinite where only the candidate keeps the budget.
    """

    ratios: tuple[float, ...]

    @classmethod
    def of(cls, candidate: Sequence[float], incumbent: Sequence[float]) -> Comparison:
        """The comparison of two settings' scores, round by round."""
        return cls(tuple(_ratio(ours, theirs) for ours, theirs in zip(candidate, incumbent, strict=True)))

    @property
    def value(self) -> float:
        """The median ratio."""
        ranked = sorted(self.ratios)
        middle = len(ranked) // 2
        if len(ranked) % 2 or math.isinf(ranked[middle]):
            return ranked[middle]
        return (ranked[middle - 1] + ranked[middle]) / 2

    @property
    def low(self) -> float:
        """The least ratio of all rounds: with ``n`` rounds the true median lies below it with a chance of 2 ** -n."""
        return min(self.ratios)

    @property
    def high(self) -> float:
        """The largest ratio of all rounds."""
        return max(self.ratios)


def _ratio(candidate: float, incumbent: float) -> float:
    if incumbent > 0:
        return candidate / incumbent
    return math.inf if candidate > 0 else 1.0
