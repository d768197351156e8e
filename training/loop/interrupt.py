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
def deferred_interrupt(*, on: bool) -> Iterator[Interrupt]:
    """The first SIGINT only sets ``requested``, for a while, so that what is half done can be finished and kept.

    Outside the main thread, which alone hears signals, and where SIGINT is ignored, nothing changes; nor where it is not ``on``.
    """
    interrupt = Interrupt()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not on or ignored or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def hear(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
