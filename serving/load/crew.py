"""The processes that generate the load: started, told what to do, listened to, and ended without a trace."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from convoy.contract.errors import ClientError, UnavailableError
from convoy.serving.load.target import Target
from convoy.serving.load.traffic import Load, Open

_LEAD_NS: Final = 50_000_000
"""Between the start signal and the start, so that all processes begin at once."""
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True)
class Report:
    """What the processes have done up to one moment.

    Attributes:
        ends: When each request was answered that has been answered since the report before, in ns on the clock of
            ``time.perf_counter_ns``; int64.
        latencies: How long each of them took, in ns; int64.
        lags: How late each request of an open loop was sent that has been sent since the report before, in ns; int64.
        cpu_s: The processor time of each process since its start.
        n_sent: Requests sent since the start.
        n_errors: Requests that failed since the start.
        first_error: Why the first one failed; empty where none has.
        n_held: Arrivals of an open loop that had to wait for a slot since the start.
        n_unsent: Arrivals that wait for one now.
    """

    ends: npt.NDArray[np.int64]
    latencies: npt.NDArray[np.int64]
    lags: npt.NDArray[np.int64]
    cpu_s: tuple[float, ...]
    n_sent: int
    n_errors: int
    first_error: str
    n_held: int
    n_unsent: int


class Crew:
    """Processes that together make one load; a context manager.

    Args:
        target: What is asked.
        load: The load of all together.
        processes: How many processes share it, at most.
        timeout_s: How long an answer may take.
        seed: For the arrivals of an open loop.

    Raises:
        UnavailableError: The server takes no connection.
    """

    def __init__(self, target: Target, load: Load, *, processes: int, timeout_s: float, seed: int) -> None:
        self._target = target
        self._done = False
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            shares: Sequence[Load] = load.split(processes)
            for i, share in enumerate(shares):
                self._processes.append(_start(target, share, timeout_s, seed + i))
            for process in self._processes:
                said, _ = self._hear(process)
                if not said["ready"]:
                    raise UnavailableError(f"{target.url}: the load generator cannot connect: {said['problem']}.")
        except BaseException:
            self.end()
            raise

    def begin(self, warm_up_s: float, window_s: float) -> int:
        """Let them begin.

        Returns:
            When they do, in ns on the clock of ``time.perf_counter_ns``.
        """
        start_ns = time.perf_counter_ns() + _LEAD_NS
        self._tell({"start_ns": start_ns, "warm_up_ns": int(warm_up_s * 1e9), "window_ns": int(window_s * 1e9)})
        return start_ns

    def report(self) -> Report:
        """Wait for the next report: the first comes at the end of the warm-up, the others at the ends of windows."""
        return _joined([self._hear(process) for process in self._processes])

    def stop(self) -> list[Report]:
        """No more requests: wait for the answers under way. Returns the reports until then."""
        for process in self._processes:
            self._write(process, b"\n")
        heard: list[list[tuple[dict[str, Any], bytes]]] = []
        for process in self._processes:
            heard.append([])
            while not heard[-1] or not heard[-1][-1][0]["done"]:
                heard[-1].append(self._hear(process))
        last = [each[-1] for each in heard]
        earlier = [(said | {"done": False}, data) for each in heard for said, data in each[:-1]]
        return [_joined([one]) for one in earlier] + [_joined(last)]

    def end(self) -> None:
        """End every process."""
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def _tell(self, message: dict[str, Any]) -> None:
        for process in self._processes:
            self._write(process, json.dumps(message).encode() + b"\n")

    def _write(self, process: subprocess.Popen[bytes], data: bytes) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(data)
            process.stdin.flush()
        except BrokenPipeError:
            raise self._ended(process) from None

    def _hear(self, process: subprocess.Popen[bytes]) -> tuple[dict[str, Any], bytes]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise self._ended(process)
        said: dict[str, Any] = json.loads(line)
        data = process.stdout.read(said["n_bytes"])
        if len(data) < said["n_bytes"]:
            raise self._ended(process)
        return said, data

    def _ended(self, process: subprocess.Popen[bytes]) -> ClientError:
        process.wait(_PATIENCE_S)
        return ClientError(f"{self._target.url}: the load generator's process ended with status {process.returncode} by itself.")


def _start(target: Target, load: Load, timeout_s: float, seed: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "convoy.serving.load.generator"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    task: dict[str, Any] = {**target.task, "timeout_s": timeout_s, "seed": seed, "n_bytes": len(target.request)}
    if isinstance(load, Open):
        task.update(rate_per_s=load.rate_per_s, max_outstanding=load.max_outstanding)
    else:
        task.update(concurrency=load.concurrency)
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n" + target.request)
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended already, which shows when it is listened to
    return process


def _joined(heard: Sequence[tuple[dict[str, Any], bytes]]) -> Report:
    parts = [np.split(np.frombuffer(data, np.int64), [fields["n_answers"], 2 * fields["n_answers"]]) for fields, data in heard]
    said = [fields for fields, _ in heard]
    return Report(
        ends=np.concatenate([part[0] for part in parts]),
        latencies=np.concatenate([part[1] for part in parts]),
        lags=np.concatenate([part[2] for part in parts]),
        cpu_s=tuple(fields["cpu_s"] for fields in said),
        n_sent=sum(fields["n_sent"] for fields in said),
        n_errors=sum(fields["n_errors"] for fields in said),
        first_error=next((fields["first_error"] for fields in said if fields["first_error"]), ""),
        n_held=sum(fields["n_held"] for fields in said),
        n_unsent=sum(fields["n_unsent"] for fields in said),
    )
