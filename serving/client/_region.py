"""Pieces of a GPU's memory that a client and a server on one machine both see: made, reused, and freed, also after a crash.

The memory itself ends with the process that took it. What would stay is the name that the server knows it by: a file of that name,
in the folder of the segments, holds the lock that tells the living from the dead; see ``_segment``.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import ClassVar, Final

from convoy.serving.client import _segment
from convoy.serving.client._call import Call, RegisterRegion
from convoy.serving.client._cuda import Cuda, CudaError, NoMemoryError
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._segment import ON_GPU, Piece, Pool


class Region(Piece):
    """A piece of a GPU's memory.

    Args:
        endpoint: The server that is to see it.
        cuda: The GPUs.
        device: Which of them.
        size: Bytes.

    Attributes:
        endpoint: Likewise.
        pointer: Where it begins.

    Raises:
        OSError: The GPU, or the folder of the locks, has no room.
        CudaError: The machine cannot share memory of a GPU.
    """

    _suffix: ClassVar[str] = ON_GPU

    def __init__(self, endpoint: Endpoint, cuda: Cuda, device: int, size: int) -> None:
        self.endpoint = endpoint
        self._cuda = cuda
        self._device = device
        super().__init__(size)

    def _allocate(self) -> None:
        try:
            self.pointer = self._cuda.allocate(self._device, self.size)
        except NoMemoryError as error:
            raise OSError(str(error)) from error
        try:
            self._handle = self._cuda.handle(self._device, self.pointer)
        except CudaError:
            self._free()
            raise

    @property
    def is_ours(self) -> bool:
        """Whether this process took it: CUDA does not go along into a forked one."""
        return os.getpid() == self._pid

    def registration(self) -> Call[None]:
        """See ``Piece.registration``."""
        return RegisterRegion(region=self.name, handle=self._handle, device=self._device, size=self.size)

    def leave(self) -> None:
        """See ``Piece.leave``; it stays taken and locked, for the server may still read there, until a later client does it."""
        with _lock:
            _left.append((time.monotonic(), self))

    def lose(self) -> None:
        """See ``Piece.lose``; a server that is well may still have it open."""
        self.leave()

    def _free(self) -> None:
        if self.is_ours:
            with suppress(CudaError):  # the GPU's work has failed: the memory ends with the process
                self._cuda.free(self._device, self.pointer)


class Regions(Pool[Region]):
    """The regions of one client and server on one GPU.

    Args:
        endpoint: The server.
        cuda: The GPUs.
        device: Which of them.
    """

    _smallest: ClassVar[int] = 2 << 20  # what CUDA takes from a GPU at once, and so what another process would see of it

    def __init__(self, endpoint: Endpoint, cuda: Cuda, device: int) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._cuda = cuda
        self._device = device

    def _make(self, size: int) -> Region:
        if self._cuda.free_bytes(self._device) < 2 * size:
            raise OSError("little room is left on the GPU")
        return Region(self._endpoint, self._cuda, self._device, size)


_left: Final[list[tuple[float, Region]]] = []  # with when
_lock: Final = threading.Lock()


def left(endpoint: Endpoint) -> list[Region]:
    """Take the regions that closed clients of this process have left, and that their server uses no more.

    Args:
        endpoint: The server, which is to be told to forget them before they are removed.
    """
    with _lock:
        until_s = time.monotonic() - _segment.REST_S
        found = [entry for entry in _left if entry[0] < until_s and entry[1].endpoint == endpoint and entry[1].is_ours]
        for entry in found:
            _left.remove(entry)
        return [region for _, region in found]
