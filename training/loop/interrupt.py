"""Ctrl-C between two steps: the first asks for the end of the step, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final


@dataclass
class Interrupt:
    """Whether somebody asked for the end.

    Attributes:
        requested: It is set by a signal.
    """

    requested: bool = False


_deferring: Final[list[Interrupt]] = []
"""Of the main thread, the innermost last; a process has one set of signals."""


def ask_for_the_end() -> None:
    """Do what Ctrl-C does at this moment, for a handler of another signal; also where Ctrl-C itself is ignored.

    Raises:
        KeyboardInterrupt: At once, since nothing is half done, or it was asked for before.
    """
    if not _deferring or _deferring[-1].requested:
        raise KeyboardInterrupt
    _deferring[-1].requested = True


@contextmanager
def deferred_interrupt(*, on: bool = True, signum: signal.Signals = signal.SIGINT) -> Iterator[Interrupt]:
    """The first such signal only sets ``requested``, for a while, so that what is half done can be finished and kept.

    Outside the main thread, which alone hears signals, nothing changes; nor where it is not ``on``. Where the signal is ignored,
    ``ask_for_the_end`` alone is heard.
    """
    interrupt = Interrupt()
    if not on or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def hear(_: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    before = signal.getsignal(signum)
    if before is not signal.SIG_IGN:
        signal.signal(signum, hear)
    _deferring.append(interrupt)
    try:
        yield interrupt
    finally:
        _deferring.pop()
        if before is not signal.SIG_IGN:
            signal.signal(signum, before)
