"""Pieces of shared memory that a client and a server on one machine both see: made, reused, and removed, also after a crash."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FOLDER: Final = Path("/dev/shm")  # noqa: S108  # where Linux keeps POSIX shared memory: there is no other place
PREFIX: Final = "convoy-client-"
REST_S: Final = 120.0
"""For so long after its last use nobody else touches what a dead process has left: a server may still be reading it."""

_SMALLEST: Final = 1 << 20
_MOST_BYTES: Final = 1 << 30  # of one client
_MOST_IDLE: Final = 8


class Segment:
    """A piece of shared memory, locked as long as its process lives.

    Attributes:
        name: Of the file in ``FOLDER``, and of the region that a server knows.
        size: Bytes.
        view: Its bytes.
        registered: Whether the server knows it.
    """

    def __init__(self, size: int) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        self.size = size
        self.registered = False
        self._file = os.open(FOLDER / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            os.posix_fallocate(self._file, 0, size)  # a full disk is an error here, and not a signal at the first write
            self._map = mmap.mmap(self._file, size)
        except BaseException:
            os.close(self._file)
            (FOLDER / self.name).unlink(missing_ok=True)
            raise
        self.view = memoryview(self._map)
        self._pid = os.getpid()

    def touch(self) -> None:
        """Note that it is used now."""
        os.utime(self._file)

    def remove(self) -> None:
        """Give it back to the machine: no server knows it."""
        if os.getpid() == self._pid:  # a forked process leaves its parent's alone
            (FOLDER / self.name).unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Let go of it, and leave its file to whoever tells the server to forget it: see ``abandoned``."""
        self.view.release()
        self._map.close()
        os.close(self._file)


class Segments:
    """The segments of one client and server, reused from request to request. Safe under threads."""

    def __init__(self) -> None:
        self._idle: list[Segment] = []
        self._resting: list[tuple[float, Segment]] = []  # until when
        self._n_bytes = 0
        self._lock = threading.Lock()

    def lease(self, size: int) -> Segment | None:
        """A segment of at least ``size`` bytes; None where the machine, or this client, has not so much to spare."""
        size = max(_SMALLEST, 1 << (size - 1).bit_length())
        with self._lock:
            now = time.monotonic()
            self._idle += [segment for until_s, segment in self._resting if until_s <= now]
            self._resting = [entry for entry in self._resting if entry[0] > now]
            fit = min((segment for segment in self._idle if segment.size >= size), key=lambda s: s.size, default=None)
            if fit is not None:
                self._idle.remove(fit)
                fit.touch()
                return fit
            if self._n_bytes + size > _MOST_BYTES:
                return None
            self._n_bytes += size
        try:
            free = os.statvfs(FOLDER)
            if free.f_bavail * free.f_frsize < 2 * size:
                raise OSError("little room is left")
            return Segment(size)
        except OSError:
            with self._lock:
                self._n_bytes -= size
            return None

    def give_back(self, segment: Segment) -> Segment | None:
        """A request has ended; what is returned there is no use for any more."""
        with self._lock:
            self._idle.append(segment)
            if len(self._idle) <= _MOST_IDLE:
                return None
            smallest = min(self._idle, key=lambda s: s.size)
            self._idle.remove(smallest)
            self._n_bytes -= smallest.size
            return smallest

    def rest(self, segment: Segment) -> None:
        """The server may still read or write a segment whose request nobody waits for: it is left alone for a while."""
        with self._lock:
            self._resting.append((time.monotonic() + REST_S, segment))

    def drop(self, segment: Segment) -> None:
        """A segment is not to be used again."""
        with self._lock:
            self._n_bytes -= segment.size

    def forget(self) -> None:
        """The server knows none of them any more."""
        with self._lock:
            for segment in self._idle:
                segment.registered = False

    def empty(self) -> tuple[list[Segment], list[Segment]]:
        """Take all: those that are idle, and those that the server may still use."""
        with self._lock:
            idle, resting = self._idle, [segment for _, segment in self._resting]
            self._idle, self._resting, self._n_bytes = [], [], 0
            return idle, resting


def abandoned() -> Iterator[str]:
    """The names of segments that nobody has held for a while; their files are removed when the next is asked for.

    Whoever takes them tells the server to forget them in between.
    """
    for path in FOLDER.glob(f"{PREFIX}*"):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # another user's, or gone by now
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file).st_mtime > REST_S:
                yield path.name
                path.unlink(missing_ok=True)
        except BlockingIOError:  # its process lives
            pass
        finally:
            os.close(file)
