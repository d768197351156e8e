"""A copy on the local disk of what can only be read from front to back, or is far away."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import weakref
from typing import TYPE_CHECKING

from typing_extensions import Self

if TYPE_CHECKING:
    from _typeshed import SupportsRead, WriteableBuffer

_CHUNK_BYTES = 1024 * 1024


class Spool:
    """A temporary file without a name: it is gone when nobody holds it any more, however the process ends. Safe under threads."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(prefix="convoy-source-") as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    @classmethod
    def of(cls, content: SupportsRead[bytes]) -> Self:
        """A copy of what is left in an open binary file.

        Raises:
            OSError: It cannot be read, or the disk is full.
        """
        spool = cls()
        with open(os.dup(spool._descriptor), "wb") as file:  # noqa: PTH123  # a descriptor is no path
            shutil.copyfileobj(content, file, _CHUNK_BYTES)
        return spool

    def open(self) -> io.BufferedReader:
        """The copy from its beginning, with a position of its own."""
        return io.BufferedReader(_PositionedFile(self))

    def fileno(self) -> int:
        """Its descriptor, which lives as long as this object."""
        return self._descriptor


class _PositionedFile(io.RawIOBase):
    """Reads a descriptor that several threads share."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._spool.fileno()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self.fileno()).st_size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = os.pread(self.fileno(), view.nbytes, self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
