"""Where a data set lies: a folder of this machine, or a place behind a URL. Files there are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
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

_OWN: Final = "_convoy"
_LOCK: Final = f"{_OWN}/lock"
_FOLDERLESS: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Object stores have no folders; to make one there would make the bucket of a name with a slip in it."""

_ASIDE: Final = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_SETTLES_S: Final = 0.5
"""So long after a lease was written it is read again: another run may have written its own in the same moment."""


class Store(Protocol):
    """A place for files with names such as ``part-000001.parquet`` and ``_convoy/run.json``."""

    @property
    def shown(self) -> str:
        """The place, for messages."""
        ...

    def names(self) -> dict[str, int]:
        """The files that are there, those of its folders included, with their bytes. What a killed writer left aside is none.

        Raises:
            ScoringError: The place does not tell.
        """
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
        """Remove a file; one that is not there is no fault.

        Raises:
            ScoringError: The place refuses it.
        """
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
    protocol = protocol_of(text)
    if protocol in ("file", "local"):  # a folder has a lock, and what is written there is whole
        text, protocol = str(import_fsspec().filesystem("file")._strip_protocol(text)), None
    if protocol is None:
        return FolderStore(Path(text))
    return ObjectStore(text, storage_options)


class FolderStore:
    """A folder. Files are written aside (in ``_convoy``, where no reader of the data set looks), flushed to disk and renamed."""

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

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise ScoringError(f"{self.shown}: cannot be read: {error.strerror or error}.") from error

        for folder, _, names in os.walk(self._folder, onerror=refuse):
            for name in names:
                path = Path(folder, name)
                relative = path.relative_to(self._folder).as_posix()
                if relative != _LOCK and not (path.parent == self._folder / _OWN and _ASIDE.fullmatch(name)):
                    with contextlib.suppress(FileNotFoundError):
                        found[relative] = path.lstat().st_size
        return found

    def read(self, name: str) -> bytes:
        """See ``Store``."""
        return (self._folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See ``Store``."""
        path = self._folder / name
        aside = self._folder / _OWN / f".{path.name}.{secrets.token_hex(4)}.tmp"
        try:
            self._make_folder(aside.parent)
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
        try:
            os.unlink(self._folder / name)  # noqa: PTH108
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._refused(name, error, "removed") from error

    @contextmanager
    def claim(self) -> Iterator[None]:
        """See ``Store``. Killed writers' claims end with them; what they left aside is removed.

        Where nothing was written in the end, nothing stays.
        """
        is_new = not self._folder.exists()
        try:
            file = self._open_lock()
        except OSError as error:
            raise self._refused("", error) from error
        try:
            with contextlib.suppress(OSError):  # a full disk: who writes is for messages only
                os.truncate(file, 0)
                os.pwrite(file, _me().encode(), 0)
            self._tidy()
            yield
        finally:
            self._leave_nothing(is_new)
            os.close(file)

    def _taken(self, who: str) -> UsageError:
        if who == _me():
            return UsageError(
                f"{self.shown}: this process has a run open here. Take it to its end, or close it: run.close(), or a `with` block."
            )
        return UsageError(
            f"{self.shown}: another run writes here ({who or 'it does not say who'}). Wait for its end, or stop it, or name "
            "another place."
        )

    def _open_lock(self) -> int:
        """The lock, locked."""
        path = self._folder / _LOCK
        tries_left = 100
        while True:
            try:
                self._make_folder(path.parent)
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # one that left nothing behind has just removed the folder
                tries_left -= 1
                if tries_left:
                    continue
                raise
            try:
                if not _locked(file):
                    raise self._taken(_text(file))
                if _is_at(file, path):  # else it was removed by who had it, and another may have made a new one
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):
            for path in list((self._folder / _OWN).iterdir()):
                if _ASIDE.fullmatch(path.name):
                    path.unlink()

    def _leave_nothing(self, is_new: bool) -> None:
        """Remove lock and folders of a run that failed before it wrote anything."""
        with contextlib.suppress(OSError, ScoringError):
            if not any(name.startswith(f"{_OWN}/") for name in self.names()):
                os.unlink(self._folder / _LOCK)  # noqa: PTH108
                (self._folder / _OWN).rmdir()
                if is_new:
                    self._folder.rmdir()

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            if folder != self._folder:
                self._make_folder(self._folder)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)  # noqa: PTH102
            self._flush(folder.parent)

    def _flush(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _refused(self, name: str, error: OSError, what: str = "written") -> ScoringError:
        advice = " Make room there." if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        return ScoringError(f"{self.shown}{f'/{name}' if name else ''}: cannot be {what}: {error.strerror or error}.{advice}")


class ObjectStore:
    """A place behind a URL, through fsspec: each file is put there in one step, as object stores do.

    There are no locks: who writes keeps a lease, a small object that is written anew now and then. Where two begin in the same
    moment, the one whose lease is there a moment later goes on. One that was away for so long that another took its place stops.
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
        self._lost = threading.Event()
        self._made: set[str] = set()

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
        except Exception as error:  # botocore, aiohttp and their like share no root
            raise ScoringError(f"{self.shown}: cannot be read: {_said(error)}.") from error
        names = {str(path)[len(self._root) :].lstrip("/"): int(info.get("size") or 0) for path, info in found.items()}
        return {name: size for name, size in names.items() if name != _LOCK}

    def read(self, name: str) -> bytes:
        """See ``Store``."""
        try:
            return bytes(self._system.cat_file(f"{self._root}/{name}"))
        except OSError:
            raise
        except Exception as error:  # as above
            raise OSError(_said(error)) from error

    def write(self, name: str, data: bytes) -> None:
        """See ``Store``."""
        if self._lost.is_set():
            raise ScoringError(f"{self.shown}: another run has taken this place: this one gave no sign of life for too long.")
        try:
            self._put(name, data)
        except Exception as error:  # as above
            raise ScoringError(f"{self.shown}/{name}: cannot be written: {_said(error)}.") from error

    def remove(self, name: str) -> None:
        """See ``Store``."""
        try:
            self._system.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            pass
        except Exception as error:  # as above
            raise ScoringError(f"{self.shown}/{name}: cannot be removed: {_said(error)}.") from error

    @contextmanager
    def claim(self) -> Iterator[None]:
        """See ``Store``. A dead writer's claim ends ``LEASE_S`` after its last sign of life."""
        mine = f"process {os.getpid()} of {socket.gethostname()}, {secrets.token_hex(8)}"
        self._check_free(mine)
        self.write(_LOCK, f"{mine}\n{time.time():.3f}".encode())
        time.sleep(_SETTLES_S)
        self._check_free(mine)
        ended = threading.Event()

        def live() -> None:
            while not ended.wait(LEASE_S / 4):
                with contextlib.suppress(Exception):  # the next time may succeed
                    if self._holder()[0] not in ("", mine):
                        self._lost.set()
                        return
                    self._put(_LOCK, f"{mine}\n{time.time():.3f}".encode())

        keeper = threading.Thread(target=live, name="convoy-lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            with contextlib.suppress(Exception):
                if self._holder()[0] == mine:
                    self.remove(_LOCK)

    def _holder(self) -> tuple[str, float]:
        """Who holds the lease, and for how long there was no sign of life; an empty name where nobody does."""
        try:
            who, _, since = self.read(_LOCK).decode().partition("\n")
            # Clocks differ: a lease from the future is as fresh as one from as long ago.
            return who, abs(time.time() - float(since))
        except (FileNotFoundError, ValueError):
            return "", 0.0

    def _check_free(self, mine: str) -> None:
        try:
            who, age_s = self._holder()
        except OSError as error:
            raise ScoringError(f"{self.shown}: cannot be read: {_said(error)}.") from error
        if who not in ("", mine) and age_s < LEASE_S:
            raise UsageError(
                f"{self.shown}: another run writes here ({who}; it gave a sign of life {age_s:.0f} s ago). Wait for its end, or, "
                f"where it was killed, {LEASE_S - age_s:.0f} s, or name another place."
            )

    def _put(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        folder = path.rpartition("/")[0]
        if folder not in self._made and protocol_of(self._url) not in _FOLDERLESS:
            self._system.makedirs(folder, exist_ok=True)
            self._made.add(folder)
        self._system.pipe_file(path, data)


def _me() -> str:
    return f"process {os.getpid()} of {socket.gethostname()}"


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


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _said(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
