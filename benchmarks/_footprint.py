"""What a server takes of the machine, sampled; and whether it grows: a line through the samples, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks._served import ServeProcess

# Of Student's t distribution, two-sided 95 %, by degrees of freedom; between two rows the smaller one's, which is wider.
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 8: 2.31, 10: 2.23, 15: 2.13, 20: 2.09, 30: 2.04, 60: 2.00}


@dataclass(frozen=True)
class Footprint:
    """What was taken at one moment.

    Attributes:
        at_s: When, on any one clock.
        server_mib: What tritonserver has allocated.
        stubs_mib: What the backend processes have.
        convoy_mib: What ``convoy serve`` itself and its guard have.
        rss_mib: The resident set size of all of them, libraries counted anew in each.
        threads: Of tritonserver.
        fds: Open descriptors of tritonserver.
        convoy_fds: Open descriptors of ``convoy serve``.
        stubs: Backend processes.
        segments: Shared-memory segments.
        segments_mib: Their size.
    """

    at_s: float
    server_mib: float
    stubs_mib: float
    convoy_mib: float
    rss_mib: float
    threads: int
    fds: int
    convoy_fds: int
    stubs: int
    segments: int
    segments_mib: float


def take(server: ServeProcess, at_s: float) -> Footprint:
    """Look at a server now."""
    stubs, segments = server.stubs(), server.segments()
    ours = [server.process.pid, server.guard_pid]
    return Footprint(
        at_s=at_s,
        server_mib=allocated_mib(server.server_pid),
        stubs_mib=sum(allocated_mib(stub.pid) for stub in stubs),
        convoy_mib=sum(map(allocated_mib, ours)),
        rss_mib=sum(_rollup_mib(pid, "Rss:") for pid in [server.server_pid, *ours, *(stub.pid for stub in stubs)]),
        threads=_count(server.server_pid, "task"),
        fds=_count(server.server_pid, "fd"),
        convoy_fds=_count(server.process.pid, "fd"),
        stubs=len(stubs),
        segments=len(segments),
        segments_mib=sum(path.stat().st_size for path in segments if path.exists()) / 2**20,
    )


def allocated_mib(pid: int) -> float:
    """A process's anonymous and shared memory in MiB, 0 where it has ended.

    Pages of files do not count: they can be dropped, and what a process's share of them is depends on its neighbours.
    """
    return _rollup_mib(pid, "Pss_Anon:", "Pss_Shmem:")


def _rollup_mib(pid: int, *names: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(names)) / 1024


def _count(pid: int, what: str) -> int:
    return len(list(Path(f"/proc/{pid}/{what}").iterdir()))


@dataclass(frozen=True)
class Slope:
    """A line's slope.

    Attributes:
        value: The best one.
        low: The lower end of its 95 % interval.
        high: The upper end.
    """

    value: float
    low: float
    high: float


def slope(xs: Sequence[float], ys: Sequence[float], blocks: int = 12) -> Slope:
    """Fit a line by least squares.

    Neighbouring samples of a process's memory are alike, so that each says little that is new: the interval is that of a line
    through the means of consecutive blocks, which are nearly independent.

    Args:
        xs: Where the samples were taken, rising.
        ys: The samples.
        blocks: Into how many blocks they are gathered.

    Raises:
        ValueError: There are fewer samples than blocks, or fewer than three blocks.
    """
    if blocks < 3 or len(xs) < blocks or len(xs) != len(ys):
        raise ValueError(
            f"expected at least 3 blocks and a sample for each, found {blocks} blocks, {len(xs)} and {len(ys)} samples"
        )
    x = np.array([part.mean() for part in np.array_split(np.asarray(xs, np.float64), blocks)])
    y = np.array([part.mean() for part in np.array_split(np.asarray(ys, np.float64), blocks)])
    dx = x - x.mean()
    value = float((dx * y).sum() / (dx * dx).sum())
    residuals = y - y.mean() - value * dx
    error = math.sqrt(float((residuals**2).sum()) / (blocks - 2) / float((dx * dx).sum()))
    half = _T95[max(degrees for degrees in _T95 if degrees <= blocks - 2)] * error
    return Slope(value, value - half, value + half)
