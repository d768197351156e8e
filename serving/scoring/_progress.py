"""How far a run is, and who is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from convoy.contract.errors import ClientError
from convoy.serving.scoring._backend import Backend
from convoy.serving.scoring._scorer import Rows

_LATENCIES: Final = 512
_ASK_EVERY_S: Final = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        n: Inputs in all.
        done: Inputs with a row, those of earlier runs included.
        resumed: Of these, inputs of earlier runs.
        failed: Rows with an error that this run made.
        latencies_ms: Of the latest requests.
        queue_ms: How long requests wait in the server's queue, in the mean; None where nobody tells.
        model_version: The version that answers.
    """

    n: int
    done: int
    resumed: int
    failed: int
    latencies_ms: Sequence[float]
    queue_ms: float | None
    model_version: str


class Waits:
    """Tells once when requests begin to wait for a server, and once when they wait no more. Safe under threads."""

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._waiting = False

    def note(self, error: ClientError | None) -> None:
        """A request waits because of ``error``; or one was answered."""
        if self._tell is None or self._waiting == (error is not None):
            return
        with self._lock:
            if self._waiting == (error is not None):
                return
            self._waiting = error is not None
        self._tell("" if error is None else str(error))


@dataclass
class Tally:
    """Counts batches as they come, and tells."""

    on_progress: Callable[[Progress], None] | None
    version: str
    n: int
    resumed: int
    done: int = 0
    failed: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    queue_ms: float | None = None
    asked_s: float = 0.0

    def ask(self, backend: Backend) -> None:
        """Ask for the server's queue, now and then."""
        if self.on_progress is not None and time.monotonic() - self.asked_s >= _ASK_EVERY_S:
            self.asked_s = time.monotonic()
            self.queue_ms = backend.queue_ms()

    def add(self, rows: Rows) -> None:
        """Count a batch."""
        self.done += rows.n
        self.failed += rows.n_failed
        if rows.latency_ms:
            self.latencies_ms = [*self.latencies_ms[-_LATENCIES:], rows.latency_ms]
        self.tell()

    def tell(self) -> None:
        """Tell of it."""
        if self.on_progress is not None:
            done = self.resumed + self.done
            progress = Progress(self.n, done, self.resumed, self.failed, tuple(self.latencies_ms), self.queue_ms, self.version)
            self.on_progress(progress)
