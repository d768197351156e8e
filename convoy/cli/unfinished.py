"""A training that is stopped before its end: what is left of it, and how it goes on."""

from __future__ import annotations

import shlex
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from convoy.cli.console import remark
from convoy.contract.errors import ConvoyError, UsageError


@dataclass
class _Terminated:
    """Whether SIGTERM was heard."""

    heard: bool = False


@contextmanager
def _terminable(terminated: _Terminated) -> Iterator[None]:
    """SIGTERM does what Ctrl-C does at that moment; outside the main thread, and where it is ignored, nothing changes."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return

    from convoy.training.loop.interrupt import ask_for_the_end

    def hear(_number: int, _frame: FrameType | None) -> None:
        terminated.heard = True
        ask_for_the_end()

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def unfinished(partial: Path, *, resumed: bool) -> Iterator[None]:
    """Around a training and the writing of its run folder: afterwards nothing is left, or what it goes on from.

    SIGTERM (a batch system's limit, ``docker stop``) is heard as Ctrl-C is.

    Args:
        partial: What the run leaves while it is unfinished.
        resumed: Whether it goes on with an earlier one, whose remains are kept when it fails.

    Raises:
        click.Abort: Somebody asked for the end.
        SystemExit: SIGTERM did.
    """
    from convoy.training.loop.checkpoint import CHECKPOINT_FILE

    checkpoint = partial / CHECKPOINT_FILE
    terminated = _Terminated()
    try:
        with _terminable(terminated):
            yield
    except ConvoyError:
        if not resumed and not checkpoint.exists():
            shutil.rmtree(partial, ignore_errors=True)  # it failed before it had done anything
        raise
    except KeyboardInterrupt as interrupt:
        if checkpoint.exists():
            how = f"convoy train --resume {shlex.quote(str(partial))}"
            remark(f"\nconvoy: training was stopped before its end; it goes on with: {how}")
        else:
            shutil.rmtree(partial, ignore_errors=True)  # it holds nothing that took time
            remark("\nconvoy: training was stopped before its end: no run folder was written.")
        if terminated.heard:
            remark("convoy: terminated")
            raise SystemExit(128 + signal.SIGTERM) from interrupt
        raise click.Abort from interrupt  # of which click writes no empty line
    shutil.rmtree(partial, ignore_errors=True)


def refuse_to_begin_over(folder: Path, partial: Path) -> None:
    """Make sure that no run to this folder was stopped before its end.

    Raises:
        UsageError: One was.
    """
    from convoy.training.loop.checkpoint import START_FILE

    if (partial / START_FILE).exists():
        raise UsageError(
            f"{partial}: a run to {folder} was stopped before its end. Go on with: convoy train --resume "
            f"{shlex.quote(str(partial))}; or remove that folder."
        )
