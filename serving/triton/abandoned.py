"""The backend processes that Triton forgets: instances of a model one of whose processes died while it worked on a request.

Triton never lets go of a request that was under way in a process that died, and so never ends the model's other instances when the
model is unloaded. They answer what had come to them, and then idle for ever, each with the model in its memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from convoy.serving.triton.stub import Stub

ABANDONED_S = 30.0
"""How long Triton may take to end them itself: about a second an instance."""

IDLE_S = 2.0
"""A process that has computed nothing this long answers nobody."""

_IDLE_TICKS = 1


@dataclass
class _Abandoned:
    since: float
    ticks: int
    idle_since: float


class AbandonedStubs:
    """Ends the processes of unloaded models that Triton does not end."""

    def __init__(self) -> None:
        self._known: dict[Stub, _Abandoned] = {}

    def add(self, stubs: Iterable[Stub], now: float) -> None:
        """Note processes whose model was unloaded now."""
        for stub in stubs:
            self._known.setdefault(stub, _Abandoned(now, 0, now))

    def rest(self, stubs: Iterable[Stub]) -> list[Stub]:
        """Those of ``stubs`` that are not abandoned."""
        return [stub for stub in stubs if stub not in self._known]

    def clear(self, alive: Iterable[Stub], now: float) -> list[Stub]:
        """End those that have been abandoned for ``ABANDONED_S`` and compute nothing.

        Args:
            alive: The server's living processes.
            now: Seconds of a monotonic clock.

        Returns:
            Those that were ended.
        """
        living = set(alive)
        self._known = {stub: known for stub, known in self._known.items() if stub in living}
        ended = []
        for stub, known in self._known.items():
            ticks = cpu_ticks(stub.pid)
            if ticks > known.ticks + _IDLE_TICKS:
                known.ticks, known.idle_since = ticks, now
            if now - known.since >= ABANDONED_S and now - known.idle_since >= IDLE_S:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stub.pid, signal.SIGKILL)
                ended.append(stub)
        return ended


def cpu_ticks(pid: int) -> int:
    """The processor time that a process has had, in the kernel's ticks; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
