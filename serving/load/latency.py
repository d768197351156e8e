"""Percentiles of latencies, in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_POINTS = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Percentiles:
    """How latencies are spread, in ms.

    Attributes:
        mean: Their mean.
        p50: The median; half of the requests were answered within this time.
        p90: 90 % were.
        p95: 95 % were.
        p99: 99 % were.
        p999: 99.9 % were.
        max: All were.
    """

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, latencies_ns: npt.NDArray[np.int64]) -> Percentiles | None:
        """The percentiles of latencies in ns, interpolated linearly as numpy does; None where there is no latency."""
        if not len(latencies_ns):
            return None
        points = np.percentile(latencies_ns, _POINTS) / 1e6
        p50, p90, p95, p99, p999 = (float(point) for point in points)
        return cls(float(latencies_ns.mean()) / 1e6, p50, p90, p95, p99, p999, float(latencies_ns.max()) / 1e6)
