"""Ctrl-C between two steps: the first asks for the end of the step, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interrupt:
    """Whether somebody asked for the end.

    Attributes:
        requested: It is set by a signal.
    """

    requested: bool = False


@contextmanager
def deferred_interrupt(*, on: bool = True, signum: signal.Signals = signal.SIGINT) -> Iterator[Interrupt]:
    """The first such signal only sets ``requested``, for a while, so that what is half done can be finished and kept.

    Outside the main thread, which alone hears signals, and where it is ignored, nothing changes; nor where it is not ``on``.
    """
    interrupt = Interrupt()
    ignored = signal.getsignal(signum) is signal.SIG_IGN
    if not on or ignored or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def hear(_: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    before = signal.signal(signum, hear)
    try:
        yield interrupt
    finally:
        signal.signal(signum, before)
