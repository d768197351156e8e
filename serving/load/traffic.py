"""The two kinds of load: requests in flight (closed loop) and arrivals a second (open loop)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from convoy.contract.errors import UsageError

MOST_IN_FLIGHT: Final = 16_384
"""Requests in flight that one measurement may ask for: each HTTP request in flight takes a connection."""

_BLOCK: Final = 4096


@dataclass(frozen=True)
class Closed:
    """Callers that each wait for their answer before they ask again.

    The rate follows the server: what a slow server does not answer is not asked. Use it for throughput.

    Attributes:
        concurrency: How many requests are in flight at any time.
    """

    concurrency: int

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= MOST_IN_FLIGHT:
            raise UsageError(f"concurrency: expected 1 to {MOST_IN_FLIGHT} requests in flight, found {self.concurrency}.")

    def split(self, processes: int) -> list[Closed]:
        """This load, shared out to at most ``processes`` processes; none is without a request."""
        shares = min(processes, self.concurrency)
        return [Closed(self.concurrency // shares + (i < self.concurrency % shares)) for i in range(shares)]

    def as_dict(self) -> dict[str, Any]:
        """JSON's form."""
        return {"kind": "closed", **asdict(self)}

    def __str__(self) -> str:
        return f"{self.concurrency} in flight"


@dataclass(frozen=True)
class Open:
    """Callers that come when they come, whether or not others have been answered: Poisson arrivals.

    A latency counts from the moment at which the request was due, so that a server that stalls is charged with every request that
    would have come in the meantime (no coordinated omission). Use it for latency.

    Attributes:
        rate_per_s: How many requests come each second, on average.
        max_outstanding: How many may be unanswered at once. Requests that are due beyond that wait for their turn, their latency
            counts on, and the measurement says that it did not keep up.
    """

    rate_per_s: float
    max_outstanding: int = 512

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate_per_s) and 0 < self.rate_per_s <= 1e6):
            raise UsageError(
                f"rate_per_s: expected more than 0 and at most 1,000,000 requests a second, found {self.rate_per_s:g}."
            )
        if not 1 <= self.max_outstanding <= MOST_IN_FLIGHT:
            raise UsageError(f"max_outstanding: expected 1 to {MOST_IN_FLIGHT} requests, found {self.max_outstanding}.")

    def split(self, processes: int) -> list[Open]:
        """This load, shared out to at most ``processes`` processes: Poisson processes add up to one."""
        shares = min(processes, self.max_outstanding)
        rate = self.rate_per_s / shares
        return [Open(rate, self.max_outstanding // shares + (i < self.max_outstanding % shares)) for i in range(shares)]

    def as_dict(self) -> dict[str, Any]:
        """JSON's form."""
        return {"kind": "open", **asdict(self)}

    def __str__(self) -> str:
        return f"{self.rate_per_s:g}/s"


Load: TypeAlias = "Closed | Open"


def arrivals(rate_per_s: float, seed: int) -> Iterator[int]:
    """When requests are due, in ns after the start, without end: the gaps are exponentially distributed with mean 1 / rate.

    Args:
        rate_per_s: Requests a second.
        seed: The same seed gives the same arrivals.
    """
    random = np.random.default_rng(seed)
    last = 0.0
    while True:
        due = last + np.cumsum(random.exponential(1e9 / rate_per_s, _BLOCK))
        last = float(due[-1])
        yield from due.astype(np.int64).tolist()
