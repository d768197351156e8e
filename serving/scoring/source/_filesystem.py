"""Where files are: on this machine, read with ``os``, or behind a URL, read through ``fsspec``.

Both sides give the same few verbs and raise OSError alone; what a remote library raises is turned into it here and nowhere else.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import stat
import urllib.parse
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from convoy.contract.errors import MissingDependencyError, UsageError
from convoy.serving.scoring.source._name import printable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Kind: TypeAlias = Literal["file", "folder", "other"]

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C:// is a drive
_BUFFER_BYTES: Final = 64 * 1024  # fsspec reads further ahead than that by itself
_PACKAGES: Final = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "hf": "huggingface_hub",
}
_KINDS: Final[Mapping[int, Kind]] = {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}
_STAMPS: Final = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "modified", "created")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is known of a file without reading it.

    Attributes:
        kind: A file, a folder, or what must not be read (a pipe, a device).
        size: Its bytes; -1 where unknown.
        stamp: Changes when the content does; empty where nothing tells.
    """

    kind: Kind
    size: int = -1
    stamp: str = ""

    @property
    def version(self) -> str:
        """Stamp and size in one, for a file that holds many inputs."""
        return f"{self.stamp}:{self.size}"


@dataclass(frozen=True, slots=True)
class Child:
    """What a folder holds; ``info`` is None where asking for it costs another call."""

    name: str
    kind: Kind
    info: FileInfo | None = None


class Files(Protocol):
    """The files of one place. Every method raises OSError."""

    @property
    def remote(self) -> bool: ...

    def info(self, path: str) -> FileInfo: ...

    def children(self, folder: str) -> Iterator[Child]: ...

    def identity(self, folder: str) -> Hashable:
        """The same for two ways to one folder; None where there are no links."""

    def open(self, path: str) -> IO[bytes]: ...

    def read(self, path: str, most: int, size: int = -1) -> bytes:
        """All of a file, at most ``most`` bytes; ``size`` is what it should have, if that is known."""

    def read_range(self, path: str, start: int, n: int) -> bytes:
        """``n`` bytes from ``start`` on, or fewer at the end of the file."""

    def join(self, folder: str, path: str) -> str:
        """``path``, which is relative to ``folder`` or absolute."""

    def parent(self, path: str) -> str: ...

    def shown(self, path: str) -> str:
        """The path in a message."""


class LocalFiles:
    """The files of this machine."""

    remote = False

    def info(self, path: str) -> FileInfo:
        """Follows links."""
        try:
            found = os.stat(path)  # noqa: PTH116  # Path costs more than the call itself
        except ValueError as error:  # a NUL in a list's line
            raise OSError(str(error)) from error
        return FileInfo(_KINDS.get(stat.S_IFMT(found.st_mode), "other"), found.st_size, str(found.st_mtime_ns))

    def children(self, folder: str) -> Iterator[Child]:
        """Links count as what they lead to; one that leads nowhere is a file that cannot be read."""
        with os.scandir(folder) as found:
            for entry in found:
                yield Child(entry.name, _kind(entry))

    def identity(self, folder: str) -> Hashable:
        """Device and inode."""
        found = os.stat(folder)  # noqa: PTH116
        return found.st_dev, found.st_ino

    def open(self, path: str) -> IO[bytes]:
        """Not buffered beyond Python's own."""
        return open(path, "rb")  # noqa: PTH123

    def read(self, path: str, most: int, size: int = -1) -> bytes:  # noqa: ARG002  # one signature for both
        """One byte more than expected would tell that it grows, so ``size`` is no help."""
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(most) if os.fstat(file.fileno()).st_size > most else file.read()

    def read_range(self, path: str, start: int, n: int) -> bytes:
        """Opens the file each time, which is cheap here."""
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return os.pread(file.fileno(), n, start)

    def join(self, folder: str, path: str) -> str:
        """As the system does."""
        return os.path.join(folder, path)  # noqa: PTH118  # Path drops a trailing slash and costs more

    def parent(self, path: str) -> str:
        """Empty for a name without a folder, which ``join`` takes."""
        return os.path.dirname(path)  # noqa: PTH120

    def shown(self, path: str) -> str:
        """As it is."""
        return printable(path)


class RemoteFiles:
    """Files behind a URL."""

    remote = True

    def __init__(self, system: Any) -> None:
        self._system = system
        protocol = system.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)

    def info(self, path: str) -> FileInfo:
        """One request."""
        with _as_os_error():
            return _info(self._system.info(path))

    def children(self, folder: str) -> Iterator[Child]:
        """One request, or one a page. Stores of objects list the folder's own marker among its files, which is left out."""
        with _as_os_error():
            listed = self._system.ls(folder, detail=True)
        own = folder.rstrip("/")
        for found in listed:
            path = str(found["name"]).rstrip("/")
            if path.lstrip("/") != own.lstrip("/"):
                info = _info(found)
                yield Child(path.rpartition("/")[2], info.kind, info)

    def identity(self, folder: str) -> Hashable:
        """Only ``file://`` has links."""
        return os.path.realpath(folder) if "file" in self._protocols else None

    def open(self, path: str) -> IO[bytes]:
        """Reads ranges, where the place can."""
        with _as_os_error():
            return io.BufferedReader(_RemoteFile(self._system.open(path, "rb")), _BUFFER_BYTES)

    def read(self, path: str, most: int, size: int = -1) -> bytes:
        """In one request where the size is known."""
        with _as_os_error():
            if 0 <= size <= most:
                return bytes(self._system.cat_file(path))
            with self._system.open(path, "rb") as file:
                return bytes(file.read(most))

    def read_range(self, path: str, start: int, n: int) -> bytes:
        """One request."""
        with _as_os_error():
            data = bytes(self._system.cat_file(path, start=start, end=start + n))
        if len(data) > n:  # some web servers answer every question with the whole file
            raise OSError("the server gives no part of a file, only all of it; copy the file to this machine and score it here")
        return data

    def join(self, folder: str, path: str) -> str:
        """Within the same place."""
        if self._protocols & {"http", "https"}:
            return urllib.parse.urljoin(folder.rstrip("/") + "/", path)
        if path.startswith("/"):
            return str(self._system._strip_protocol(path))
        return posixpath.normpath(posixpath.join(folder, path))

    def parent(self, path: str) -> str:
        """Empty at the root."""
        return path.rpartition("/")[0]

    def shown(self, path: str) -> str:
        """With its protocol."""
        return printable(str(self._system.unstrip_protocol(path)))


@dataclass(frozen=True, slots=True)
class Location:
    """A path and the files that it is among."""

    files: Files
    path: str

    def __str__(self) -> str:
        return self.files.shown(self.path)


class Filesystems:
    """Finds the place of a path or URL.

    Args:
        spec: What is scored. If it is a URL, the options are for URLs of its protocol alone: a list in S3 may name files elsewhere.
        options: What fsspec is given: keys, an endpoint.
    """

    def __init__(self, spec: str, options: Mapping[str, Any] | None) -> None:
        self._options = dict(options or {})
        self._protocol = protocol_of(spec)

    def locate(self, spec: str) -> Location:
        """The place of ``spec``.

        Raises:
            MissingDependencyError: fsspec, or its part for the protocol, is not installed.
            UsageError: There is no such protocol, or it does not take the options.
        """
        protocol = protocol_of(spec)
        if protocol is None:
            return Location(LocalFiles(), spec)
        fsspec = import_fsspec()
        options = self._options if self._protocol in (None, protocol) else {}
        try:
            # What was listed once is not kept: it would grow with the source, and hide what changed.
            system, path = fsspec.core.url_to_fs(spec, **{"use_listings_cache": False, **options})
        except ImportError as error:
            package = _PACKAGES.get(protocol, "")
            what = f"the package {package}" if package else "another package"
            install = f"pip install '.[score]' in Convoy's folder, or pip install {package}" if package else str(error)
            raise MissingDependencyError(
                f"{printable(spec)}: {protocol}:// needs {what}, which cannot be imported ({error}). Install it: {install}"
            ) from error
        except Exception as error:  # each remote library has errors of its own for options that it does not take
            raise UsageError(
                f"{printable(spec)}: cannot be opened: {error}. Expected a path, or a URL of a protocol that fsspec knows "
                "(s3://, gs://, https://, ...), and the storage options that it takes."
            ) from error
        return Location(RemoteFiles(system), str(path))


def protocol_of(spec: str) -> str | None:
    """The protocol of a URL in small letters; None for a path of this machine."""
    found = _URL.match(spec)
    return found[1].lower() if found else None


def reason_of(error: OSError) -> str:
    """Why it failed, in words; of a file that is missing, remote libraries only repeat the name, and say more in its cause.

    What hides behind a file that seems to be missing may be a server that does not answer.
    """
    if error.strerror:
        return error.strerror
    cause = error.__cause__ or error.__context__
    behind = "" if cause is None or not str(cause) or isinstance(cause, KeyError) else f" ({type(cause).__name__}: {cause})"
    return f"No such file{behind}" if isinstance(error, FileNotFoundError) else str(error)


def import_fsspec() -> Any:
    try:
        import fsspec  # type: ignore[import-untyped]
        import fsspec.core  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            f"URLs are read through fsspec, which cannot be imported ({error}). "
            "Install it: pip install '.[score]' in Convoy's folder"
        ) from error
    return fsspec


def _kind(entry: os.DirEntry[str]) -> Kind:
    if not entry.is_symlink():  # known without another call
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    try:
        mode = entry.stat().st_mode
    except OSError:  # leads nowhere, or in a circle
        return "file"
    return _KINDS.get(stat.S_IFMT(mode), "other")


def _info(found: Mapping[str, Any]) -> FileInfo:
    kind: Kind = {"file": "file", "directory": "folder"}.get(str(found["type"]), "other")  # type: ignore[assignment]
    size = found.get("size")
    stamp = next((found[name] for name in _STAMPS if found.get(name)), "")
    return FileInfo(kind, -1 if size is None else int(size), _same_in_listings(stamp))


def _same_in_listings(stamp: Any) -> str:
    """A listing and a question for one file may give the same time as a number and as a date, and a tag with and without quotes."""
    if isinstance(stamp, datetime):
        stamp = stamp.timestamp()
    return f"{stamp:.6f}" if isinstance(stamp, float) else str(stamp).removeprefix("W/").strip('"')


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # aiohttp, botocore and their like share no root
        raise OSError(f"{type(error).__name__}: {error}") from error


class _RemoteFile(io.RawIOBase):
    """An open remote file whose reads raise OSError alone. What fsspec opens differs from place to place in its methods."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _as_os_error():
            return int(self._file.seek(offset, whence))

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        with _as_os_error():
            data = self._file.read(view.nbytes)
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
