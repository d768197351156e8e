"""The guard: the parent of ``tritonserver``, which leaves nothing behind whatever happens to Convoy.

``python -I -S guard.py LOCK_FDS STOP_TIMEOUT_S SHM_PREFIX FOLDER -- PROGRAM ARGUMENTS...``

It runs the program and waits for the first of three things: the program ends; somebody sends SIGTERM or SIGINT; its standard
input has something to read: the word "stop", a number of seconds behind it where the deadline is to be another, or its end, which
comes when the process that started it closes the pipe or dies, by ``kill -9`` too. Then it stops the program (SIGTERM; SIGKILL
after the deadline, or where it lingers though its last child has ended), kills whatever processes the program left, removes the
shared-memory segments whose names begin with SHM_PREFIX, and, where its starter is gone, FOLDER and the memory's lock file
(SHM_PREFIX with ".lock" for the last "_"). It exits with the program's status (128 + N for signal N). If the guard itself is
killed, the program gets SIGTERM.

Standard library only: it runs without site-packages, in about 25 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SHM = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
LINGER_S = 1.5
"""How long the program may take to end after its last child; Triton looks once a second whether it may."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(arguments: list[str]) -> int:
    """Guard one program; see the module."""
    lock_fds, stop_timeout_s, shm_prefix, folder = arguments[:4]
    program = arguments[5:]
    for descriptor in lock_fds.split(","):
        os.set_inheritable(int(descriptor), False)  # the locks say that the guard lives, not that the program does
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken = _wake_on(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    me = os.getpid()

    def die_with_guard() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != me:
            os.kill(os.getpid(), signal.SIGTERM)

    child = subprocess.Popen(program, stdin=subprocess.DEVNULL, preexec_fn=die_with_guard)
    said = _wait(child, woken)
    _stop(child, _deadline_in(said, float(stop_timeout_s)))
    _kill_descendants()
    for segment in SHM.glob(f"{shm_prefix}*"):
        segment.unlink(missing_ok=True)
    if said == "":
        shutil.rmtree(folder, ignore_errors=True)
        (SHM / f"{shm_prefix.removesuffix('_')}.lock").unlink(missing_ok=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _wake_on(*signals: signal.Signals) -> int:
    """Let ``signals`` write their numbers into a pipe; returns its end to read."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return read


def _wait(child: subprocess.Popen[bytes], woken: int) -> str | None:
    """Wait until the program ends or shall end.

    Returns:
        What standard input said; nothing where it ended; None where it was not standard input.
    """
    while child.poll() is None:
        ready, _, _ = select.select([0, woken], [], [])
        if 0 in ready:
            return os.read(0, 64).decode()
        with contextlib.suppress(BlockingIOError):
            if {signal.SIGTERM, signal.SIGINT} & set(os.read(woken, 64)):
                return None
    return None


def _deadline_in(said: str | None, otherwise_s: float) -> float:
    """The seconds in "stop 1.5"."""
    words = (said or "").split()
    return float(words[1]) if len(words) > 1 else otherwise_s


def _stop(child: subprocess.Popen[bytes], timeout_s: float) -> None:
    """End the program. Requests under way have a living backend process: where there is none, there is nothing to wait for.

    Triton would wait: it waits its whole time for a model whose backend process died and that it could not unload.
    """
    if child.poll() is None:
        child.terminate()
    deadline = time.monotonic() + timeout_s
    idle_since = None
    while child.poll() is None:
        now = time.monotonic()
        idle_since = None if _has_living_child(child.pid) else idle_since or now
        if now > deadline or (idle_since is not None and now - idle_since > LINGER_S):
            child.kill()
            child.wait()
        time.sleep(0.02)


def _has_living_child(pid: int) -> bool:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            if any(Path(f"/proc/{child}/cmdline").read_bytes() for child in path.read_text().split()):  # a zombie has none
                return True
        except OSError:
            continue  # a thread or a child has just ended
    return False


def _kill_descendants() -> None:
    """Kill the processes that the program left; as a subreaper the guard is their parent now."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        for tasks in Path("/proc/self/task").glob("*/children"):
            for pid in tasks.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
