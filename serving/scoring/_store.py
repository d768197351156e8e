"""Where a data set lies: a folder of this machine, or a place behind a URL. Files there are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from convoy.contract.errors import ScoringError, UsageError
from convoy.serving.scoring.source import printable
from convoy.serving.scoring.source._filesystem import import_fsspec, protocol_of

if sys.platform != "win32":
    import fcntl

LEASE_S: Final = 60.0
"""So long after its last sign of life a run that writes behind a URL counts as dead."""

_ASIDE: Final = ".tmp"
_LOCK: Final = "lock"


class Store(Protocol):
    """A place for files with names such as ``part-000001.parquet`` and ``_convoy/run.json``."""

    @property
    def shown(self) -> str:
        """The place, for messages."""
        ...

    def names(self) -> dict[str, int]:
        """The files that are there, those of its folders included, with their bytes. What a killed writer left aside is none."""
        ...

    def read(self, name: str) -> bytes:
        """All of a file; raises OSError."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a file there in one step, in the place of an earlier one.

        Raises:
            ScoringError: The place refuses it (a full disk, say). Nothing half-written stays.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no fault."""
        ...

    def claim(self) -> contextlib.AbstractContextManager[None]:
        """Be the only one who writes there, as long as the ``with`` block lasts.

        Raises:
            UsageError: Somebody else does.
            ScoringError: The place cannot be written to.
        """
        ...


def open_store(place: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store at a path or a URL; nothing is made yet.

    Raises:
        UsageError: It cannot be one.
        MissingDependencyError: What speaks its protocol is not installed.
    """
    text = os.fspath(place)
    if protocol_of(text) is None:
        return FolderStore(Path(text))
    return ObjectStore(text, storage_options)


class FolderStore:
    """A folder. Files are written aside, flushed to disk and renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{self.shown}: expected a folder for the data set, or a new name, found a file.")
        if not folder.parent.is_dir():
            raise UsageError(f"{self.shown}: the folder {printable(str(folder.parent))} does not exist; make it first.")

    @property
    def shown(self) -> str:
        """See ``Store``."""
        return printable(str(self._folder))

    def names(self) -> dict[str, int]:
        """See ``Store``."""
        found: dict[str, int] = {}
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = Path(folder, name)
                if not name.endswith(_ASIDE) and name != _LOCK:
                    with contextlib.suppress(FileNotFoundError):
                        found[path.relative_to(self._folder).as_posix()] = path.stat().st_size
        return found

    def read(self, name: str) -> bytes:
        """See ``Store``."""
        return (self._folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See ``Store``."""
        path = self._folder / name
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_ASIDE}")
        try:
            self._make_folder(path.parent)
            try:
                file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                try:
                    view = memoryview(data)
                    while view:
                        view = view[os.write(file, view) :]
                    os.fsync(file)
                finally:
                    os.close(file)
                os.replace(aside, path)  # noqa: PTH105  # by the names that the tests' failpoints know
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(aside)  # noqa: PTH108
                raise
            self._flush(path.parent)
        except OSError as error:
            raise self._refused(name, error) from error

    def remove(self, name: str) -> None:
        """See ``Store``."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folder / name)  # noqa: PTH108

    @contextmanager
    def claim(self) -> Iterator[None]:
        """See ``Store``. Killed writers' claims end with them; what they left aside is removed."""
        lock = self._folder / "_convoy" / _LOCK
        try:
            self._make_folder(lock.parent)
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._refused("", error) from error
        try:
            if not _locked(file):
                raise UsageError(
                    f"{self.shown}: another run writes here ({_text(file) or 'it does not say who'}). Wait for its end, or stop "
                    "it, or name another place."
                )
            os.truncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)
            self._tidy()
            yield
        finally:
            os.close(file)

    def _tidy(self) -> None:
        for folder, _, names in os.walk(self._folder):
            for name in names:
                if name.startswith(".") and name.endswith(_ASIDE):
                    with contextlib.suppress(OSError):
                        Path(folder, name).unlink()

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            if folder != self._folder:
                self._make_folder(self._folder)
            os.mkdir(folder)  # noqa: PTH102
            self._flush(folder.parent)

    def _flush(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _refused(self, name: str, error: OSError) -> ScoringError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Make room" if full else "See to it"
        return ScoringError(
            f"{self.shown}{f'/{name}' if name else ''}: cannot be written: {error.strerror or error}. What was scored before "
            f"stays. {advice}, and run the same command again: it goes on from there."
        )


class ObjectStore:
    """A place behind a URL, through fsspec: each file is put there in one step, as object stores do.

    There are no locks: who writes keeps a lease, a small object that is written anew now and then. Where two begin in the same
    moment on a store that cannot create an object exclusively, both may believe that they are alone.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None) -> None:
        self._url = url.rstrip("/")
        fsspec = import_fsspec()
        try:
            options = {"use_listings_cache": False, **(storage_options or {})}
            self._system, self._root = fsspec.core.url_to_fs(self._url, **options)
        except ImportError as error:
            from convoy.contract.errors import MissingDependencyError

            raise MissingDependencyError(f"{self.shown}: its protocol needs another package: {error}") from error
        except Exception as error:  # each remote library has errors of its own for options that it does not take
            raise UsageError(f"{self.shown}: cannot be opened: {error}") from error
        self._root = str(self._root).rstrip("/")

    @property
    def shown(self) -> str:
        """See ``Store``."""
        return printable(self._url)

    def names(self) -> dict[str, int]:
        """See ``Store``."""
        try:
            found = self._system.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        names = {str(path)[len(self._root) :].lstrip("/"): int(info.get("size") or 0) for path, info in found.items()}
        return {name: size for name, size in names.items() if name != f"_convoy/{_LOCK}"}

    def read(self, name: str) -> bytes:
        """See ``Store``."""
        return bytes(self._system.cat_file(f"{self._root}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """See ``Store``."""
        try:
            self._put(name, data)
        except Exception as error:  # botocore, aiohttp and their like share no root
            raise ScoringError(
                f"{self.shown}/{name}: cannot be written: {error or type(error).__name__}. What was scored before stays. See to "
                "it, and run the same command again: it goes on from there."
            ) from error

    def remove(self, name: str) -> None:
        """See ``Store``."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(f"{self._root}/{name}")

    @contextmanager
    def claim(self) -> Iterator[None]:
        """See ``Store``. A dead writer's claim ends ``LEASE_S`` after its last sign of life."""
        name, mine = f"_convoy/{_LOCK}", f"process {os.getpid()} of {socket.gethostname()}, {secrets.token_hex(8)}"
        self._wait_for_lease(name)
        self.write(name, f"{mine}\n{time.time():.3f}".encode())
        ended = threading.Event()

        def live() -> None:
            while not ended.wait(LEASE_S / 4):
                with contextlib.suppress(Exception):  # the next time may succeed; a lost lease is noticed by who takes it
                    self._put(name, f"{mine}\n{time.time():.3f}".encode())

        keeper = threading.Thread(target=live, name="convoy-lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            with contextlib.suppress(Exception):
                self.remove(name)

    def _wait_for_lease(self, name: str) -> None:
        try:
            who, _, since = self.read(name).decode().partition("\n")
            age_s = time.time() - float(since or 0)
        except (OSError, ValueError):
            return
        if 0 <= age_s < LEASE_S:
            raise UsageError(
                f"{self.shown}: another run writes here ({who}; it gave a sign of life {age_s:.0f} s ago). Wait for its end, or, "
                f"where it was killed, {LEASE_S - age_s:.0f} s, or name another place."
            )

    def _put(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._system.pipe_file(path, data)


def _locked(file: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
    return True  # where the file system has no locks nobody gets one


def _text(file: int) -> str:
    return os.pread(file, 200, 0).decode("utf-8", "replace")
