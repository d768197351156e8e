"""What the server says of the requests that it answered: batches, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_STAGES: Final = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class ServerShare:
    """Triton's statistics of a model over a span of time: its counters at the end less those at the start.

    Attributes:
        n_succeeded: Requests that it answered.
        n_failed: Requests that failed in it.
        n_images: Batch items that it inferred.
        n_executions: How often it ran the model.
        n_cache_hits: Requests that its response cache answered; they run no model.
        mean_batch_size: Images an execution; 0 where nothing was executed.
        queue_us: How long a request waited for its batch, in microseconds, on average.
        compute_input_us: How long its inputs took to prepare.
        compute_infer_us: How long the model took.
        compute_output_us: How long its outputs took to collect.
    """

    n_succeeded: int
    n_failed: int
    n_images: int
    n_executions: int
    n_cache_hits: int
    mean_batch_size: float
    queue_us: float
    compute_input_us: float
    compute_infer_us: float
    compute_output_us: float

    @classmethod
    def between(cls, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> ServerShare:
        """The difference of two answers of ``Client.statistics``, all versions together.

        A version that was loaded, or loaded again, in between counts from its load on.
        """
        then, now = _by_version(before), _by_version(after)
        counts: dict[str, int] = {}
        for version, totals in now.items():
            earlier = then.get(version, {})
            if any(totals[name] < earlier.get(name, 0) for name in totals):
                earlier = {}
            for name, value in totals.items():
                counts[name] = counts.get(name, 0) + value - earlier.get(name, 0)

        def mean_us(stage: str) -> float:
            n = counts.get(f"{stage} count", 0)
            return counts[f"{stage} ns"] / n / 1e3 if n else 0.0

        executions = counts.get("executions", 0)
        return cls(
            n_succeeded=counts.get("success count", 0),
            n_failed=counts.get("fail count", 0),
            n_images=counts.get("images", 0),
            n_executions=executions,
            n_cache_hits=counts.get("cache_hit count", 0),
            mean_batch_size=counts["images"] / executions if executions else 0.0,
            queue_us=mean_us("queue"),
            compute_input_us=mean_us("compute_input"),
            compute_infer_us=mean_us("compute_infer"),
            compute_output_us=mean_us("compute_output"),
        )


def _by_version(statistics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for version in statistics:
        counts = {"images": int(version.get("inference_count", 0)), "executions": int(version.get("execution_count", 0))}
        for stage in ("success", "fail", "cache_hit", *_STAGES):
            duration = version.get("inference_stats", {}).get(stage, {})
            counts[f"{stage} count"] = int(duration.get("count", 0))
            counts[f"{stage} ns"] = int(duration.get("ns", 0))
        totals[str(version.get("version", ""))] = counts
    return totals
