"""Pieces of shared memory that a client and a server on one machine both see: made, reused, and removed, also after a crash."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final, Generic, TypeVar

from convoy.serving.client._call import Call, RegisterSegment, UnregisterRegion, UnregisterSegment

FOLDER: Final = Path("/dev/shm")  # noqa: S108  # where Linux keeps POSIX shared memory: there is no other place
PREFIX: Final = "convoy-client-"
REST_S: Final = 120.0
"""For so long after its last use nobody else touches what a dead process has left: a server may still be reading it."""

ON_GPU: Final = "-gpu"
"""How the names of pieces end whose bytes lie on a GPU: of these the file holds the lock and the name alone."""

_SMALLEST: Final = 1 << 20
_MOST_BYTES: Final = 1 << 30  # of one client
_MOST_IDLE: Final = 8


class Piece(ABC):
    """A piece of memory that a server knows by the name of a file, which is locked as long as the process lives.

    Args:
        size: Bytes.

    Attributes:
        name: Of the file in ``FOLDER``, and of the region that a server knows.
        size: Bytes.
        registered: Whether the server knows it.
        was_registered: Whether it ever did: it may still, whatever was made of its answers.
    """

    _suffix: ClassVar[str] = ""

    def __init__(self, size: int) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}{self._suffix}"
        self.size = size
        self.registered = False
        self.was_registered = False
        self._pid = os.getpid()
        self._file = os.open(FOLDER / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._allocate()
        except BaseException:
            os.close(self._file)
            (FOLDER / self.name).unlink(missing_ok=True)
            raise

    @abstractmethod
    def _allocate(self) -> None:
        """Take its memory.

        Raises:
            OSError: There is not so much.
        """

    @abstractmethod
    def registration(self) -> Call[None]:
        """What makes it known to the server."""

    @abstractmethod
    def _free(self) -> None:
        """Let go of its memory: no server knows it any more."""

    def touch(self) -> None:
        """Note that it is used now."""
        os.utime(self._file)

    def remove(self) -> None:
        """Give it back to the machine: no server knows it."""
        if os.getpid() == self._pid:  # a forked process leaves its parent's alone
            (FOLDER / self.name).unlink(missing_ok=True)
        self._free()
        os.close(self._file)

    def leave(self) -> None:
        """Let go of it, and leave its file to whoever tells the server to forget it: see ``abandoned``."""
        self._free()
        os.close(self._file)

    def lose(self) -> None:
        """Let go of it where the server could not be told to forget it, which nobody else can mend."""
        self.remove()


class Segment(Piece):
    """A piece of shared memory.

    Attributes:
        view: Its bytes.
    """

    def _allocate(self) -> None:
        os.posix_fallocate(self._file, 0, self.size)  # a full disk is an error here, and not a signal at the first write
        self._map = mmap.mmap(self._file, self.size)
        self.view = memoryview(self._map)

    def registration(self) -> Call[None]:
        """See ``Piece.registration``."""
        return RegisterSegment(segment=self.name, size=self.size)

    def _free(self) -> None:
        self.view.release()
        self._map.close()


P = TypeVar("P", bound=Piece)


class Pool(ABC, Generic[P]):
    """The pieces of memory of one client and server, reused from request to request. Safe under threads."""

    _smallest: ClassVar[int] = _SMALLEST

    def __init__(self) -> None:
        self._idle: list[P] = []
        self._resting: list[tuple[float, P]] = []  # until when
        self._n_bytes = 0
        self._lock = threading.Lock()

    @abstractmethod
    def _make(self, size: int) -> P:
        """A new piece.

        Raises:
            OSError: The machine has not so much to spare.
        """

    def lease(self, size: int) -> P | None:
        """A piece of at least ``size`` bytes; None where the machine, or this client, has not so much to spare."""
        size = max(self._smallest, 1 << (size - 1).bit_length())
        with self._lock:
            now = time.monotonic()
            self._idle += [piece for until_s, piece in self._resting if until_s <= now]
            self._resting = [entry for entry in self._resting if entry[0] > now]
            fit = min((piece for piece in self._idle if piece.size >= size), key=lambda piece: piece.size, default=None)
            if fit is not None:
                self._idle.remove(fit)
                fit.touch()
                return fit
            if self._n_bytes + size > _MOST_BYTES:
                return None
            self._n_bytes += size
        try:
            return self._make(size)
        except BaseException as error:
            with self._lock:
                self._n_bytes -= size
            if isinstance(error, OSError):
                return None
            raise

    def give_back(self, piece: P) -> P | None:
        """A request has ended; what is returned there is no use for any more."""
        with self._lock:
            self._idle.append(piece)
            if len(self._idle) <= _MOST_IDLE:
                return None
            smallest = min(self._idle, key=lambda piece: piece.size)
            self._idle.remove(smallest)
            self._n_bytes -= smallest.size
            return smallest

    def rest(self, piece: P) -> None:
        """The server may still read or write a piece whose request nobody waits for: it is left alone for a while."""
        with self._lock:
            self._resting.append((time.monotonic() + REST_S, piece))

    def drop(self, piece: P) -> None:
        """A piece is not to be used again."""
        with self._lock:
            self._n_bytes -= piece.size

    def forget(self) -> None:
        """The server knows none of them any more."""
        with self._lock:
            for piece in self._idle:
                piece.registered = False

    def empty(self) -> tuple[list[P], list[P]]:
        """Take all: those that are idle, and those that the server may still use."""
        with self._lock:
            idle, resting = self._idle, [piece for _, piece in self._resting]
            self._idle, self._resting, self._n_bytes = [], [], 0
            return idle, resting


class Segments(Pool[Segment]):
    """The segments of one client and server."""

    def _make(self, size: int) -> Segment:
        free = os.statvfs(FOLDER)
        if free.f_bavail * free.f_frsize < 2 * size:
            raise OSError("little room is left")
        return Segment(size)


def unregistration(name: str) -> Call[None]:
    """What makes a server forget a piece of memory."""
    return UnregisterRegion(region=name) if name.endswith(ON_GPU) else UnregisterSegment(segment=name)


def abandoned() -> Iterator[str]:
    """The names of pieces of memory that nobody has held for a while; their files are removed when the next is asked for.

    Whoever takes them tells the server to forget them in between, by ``unregistration``.
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
