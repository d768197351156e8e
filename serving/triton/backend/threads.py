"""How many threads an operator gets on a CPU, found by measuring the model on the machine that it is to run on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

CLEARLY: Final = 0.85
"""More threads are taken where they need at most this share of one thread's time, on a row and on a batch: the server itself needs
cores, and a thread that brings little takes one from it."""

BUDGET_S: Final = 0.3
"""How long to measure; opening the file twice comes on top."""

BUSY_BUDGET_S: Final = 1.0
"""How long to go on where others use the cores and several threads have not shown what they can do."""

LONG_RUN_S: Final = 0.1
"""A model whose row takes this long is not opened twice, and run twice at most."""

BATCH_S: Final = 0.02
"""The batch that is timed takes about this long on one thread."""

PARALLEL: Final = 1.3
"""A model of long runs keeps its threads where all of them together did this many times the work of the calling one."""

DISTURBED: Final = 0.25
"""Where its threads waited for a core for this share of the time, others use the cores: then it is the calling thread's CPU time
that is compared, the part of the work that cannot be done beside it."""

UNDISTURBED_BELOW_S: Final = 2e-3
"""The best of several runs as short as this was disturbed by nobody; to wake a thread takes a good part of it."""

_LEAST_ROUNDS: Final = 2
_MOST_ROUNDS: Final = 20

_DTYPES: Final[dict[str, Any]] = {
    "tensor(bool)": np.bool_, "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64,
    **{f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A session and how it came about.

    Attributes:
        session: ONNX Runtime's session.
        threads: How many threads an operator has in it.
        evidence: What was measured, for the log.
    """

    session: Any
    threads: int
    evidence: str


class Timing(NamedTuple):
    """What a run took.

    Attributes:
        wall_s: From start to end.
        caller_s: The CPU time of the thread that called.
        all_s: The CPU time of all threads.
    """

    wall_s: float
    caller_s: float
    all_s: float


def choose(open_with: Callable[[int], Any], share: int, max_batch_size: int, dims: Mapping[str, Sequence[int]]) -> Choice:
    """Open a model with one thread, or with its share of the cores, whichever serves it better.

    A model whose row takes less than 0.1 s is run in turn with one thread and with several, a row and a batch at a time; it gets
    several where both take at most 85 % of the time. A model of longer runs is run with several threads only, and keeps them where
    they shared the work.

    Args:
        open_with: Opens a session with so many threads.
        share: The cores that there are for this instance.
        max_batch_size: The most rows in a run; 0 where the model does not batch.
        dims: By input, what the configuration says of its dims without the batch axis.

    Raises:
        ContractError: Whatever ``open_with`` raises.
    """
    if share <= 1:
        return Choice(open_with(1), 1, "there is one core for each instance")
    several = open_with(share)
    try:
        row = make_inputs(several, 1, max_batch_size, dims)
        first = _timed(several, row)
        second = _timed(several, row) if first.wall_s < 10 * LONG_RUN_S else first
    except Exception as error:  # noqa: BLE001 - a model may refuse zeros or extents of 1; that is no reason not to serve it
        del several
        return Choice(open_with(1), 1, _unmeasured(error))
    if min(first.caller_s, second.caller_s) > LONG_RUN_S:
        busy = max(timing.all_s / timing.caller_s for timing in (first, second))
        evidence = f"a row takes {second.wall_s * 1e3:.0f} ms on {share} threads, {busy:.1f} of which work at a time"
        if busy >= PARALLEL:
            return Choice(several, share, evidence)
        del several
        return Choice(open_with(1), 1, evidence)
    rows = max(1, min(max_batch_size, int(BATCH_S / second.all_s)))
    inputs = [row] if rows == 1 else [row, make_inputs(several, rows, max_batch_size, dims)]
    one = open_with(1)
    return _compare(one, several, share, inputs, (1, rows))


def _compare(one: Any, several: Any, share: int, inputs: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> Choice:
    best, waiting = _measure((one, several), inputs, BUDGET_S)
    disturbed = best[0][0].wall_s >= UNDISTURBED_BELOW_S and waiting > DISTURBED
    if disturbed and not _is_clear(_pairs(best, disturbed)):  # the other threads may never have had a core: give them more chances
        more, _ = _measure((one, several), inputs, BUSY_BUDGET_S)
        best = [_best_of(*found) for found in zip(best, more, strict=True)]
    pairs = _pairs(best, disturbed)
    evidence = ", ".join(
        f"{n} row{'' if n == 1 else 's'} in {alone * 1e3:.3g} ms on 1 thread and {among * 1e3:.3g} ms on {share}"
        for n, (alone, among) in zip(rows, pairs, strict=False)
    )
    if disturbed:
        evidence += " (CPU time of the calling thread, as others use the cores)"
    return Choice(several, share, evidence) if _is_clear(pairs) else Choice(one, 1, evidence)


def _pairs(best: Sequence[Sequence[Timing]], disturbed: bool) -> list[tuple[float, float]]:
    """By input, the times on one thread and on several."""
    return [
        (alone.caller_s, among.caller_s) if disturbed else (alone.wall_s, among.wall_s) for alone, among in zip(*best, strict=True)
    ]


def _is_clear(pairs: Sequence[tuple[float, float]]) -> bool:
    return all(among <= CLEARLY * alone for alone, among in pairs)


def _best_of(before: Sequence[Timing], now: Sequence[Timing]) -> list[Timing]:
    return [Timing(*map(min, *timings)) for timings in zip(before, now, strict=True)]


def _unmeasured(error: Exception) -> str:
    why = " ".join(str(error).split())[:300]
    return (
        f"not measured, as the model does not take zeros with extents of 1 where the configuration leaves them open ({why}). "
        "Set intra_op_thread_count, or give the model a warm-up sample"
    )


def available_cores() -> int:
    """How many cores this process may use: those that it may run on, or fewer where its control group has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota() or cores))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The whole cores of the control group's quota, as a container that was given fewer sees them; None without one."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()[:2]
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return max(1, int(quota) // int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):
        return None  # no quota is written as "max", -1, or not at all


def make_inputs(session: Any, rows: int, max_batch_size: int, dims: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Zeros for every input of a session.

    Args:
        session: The session.
        rows: The extent of the batch axis, where there is one.
        max_batch_size: 0 where there is none.
        dims: By input, what the configuration says of its dims; what it leaves open is 1.
    """
    inputs = {}
    for node in session.get_inputs():
        shape = [extent if isinstance(extent, int) and extent >= 0 else 1 for extent in node.shape]
        skip = 1 if max_batch_size > 0 else 0
        said = dims.get(node.name, ())
        if len(said) == len(shape) - skip:
            shape[skip:] = [extent if extent >= 0 else known for extent, known in zip(said, shape[skip:], strict=True)]
        if skip and shape:
            shape[0] = rows
        strings = node.type == "tensor(string)"
        inputs[node.name] = np.full(shape, "", np.object_) if strings else np.zeros(shape, _DTYPES[node.type])
    return inputs


def _timed(session: Any, inputs: Mapping[str, Any]) -> Timing:
    wall, caller, every = time.perf_counter(), time.thread_time(), time.process_time()
    session.run(None, inputs)
    taken = time.perf_counter() - wall, time.thread_time() - caller, time.process_time() - every
    return Timing(*(max(seconds, 1e-9) for seconds in taken))


def _measure(sessions: Sequence[Any], inputs: Sequence[Mapping[str, Any]], budget_s: float) -> tuple[list[list[Timing]], float]:
    """The best times of sessions on inputs, in turn so that a disturbance meets all; the first round does not count.

    Returns:
        By session, a timing for each of ``inputs``; and for which share of the time its threads waited for a core.
    """
    best: list[list[Timing]] = []
    start, waited_s = time.perf_counter(), _waited_s()
    for n in range(_MOST_ROUNDS + 1):
        found = [[_timed(session, tensors) for tensors in inputs] for session in sessions]
        best = found if n <= 1 else [_best_of(*timings) for timings in zip(best, found, strict=True)]
        if n >= _LEAST_ROUNDS and time.perf_counter() > start + budget_s:
            break
    return best, (_waited_s() - waited_s) / max(time.perf_counter() - start, 1e-9)


def _waited_s(tasks: Path = Path("/proc/self/task")) -> float:
    """How long this process's threads have been ready to run without a core; 0 where the kernel does not count it."""
    waited_ns = 0
    for path in tasks.glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has ended, a kernel without the count
            waited_ns += int(path.read_text().split()[1])
    return waited_ns / 1e9
