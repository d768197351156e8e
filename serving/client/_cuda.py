"""What the client asks of CUDA, through NVIDIA's own bindings (``cuda-bindings``), which are loaded with the first tensor on a GPU.

Each call makes the device's primary context current for as long as it lasts, by the driver: to set the runtime's device and to set
it back would make a context on a GPU that nobody uses.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_log = logging.getLogger("convoy.client")

_HANDLE_BYTES: Final = 64
"""``CUDA_IPC_HANDLE_SIZE``."""
_PER_THREAD: Final = 2
"""``cudaStreamPerThread``: as many streams as there are threads."""


class CudaError(Exception):
    """A call of CUDA failed."""


class NoMemoryError(CudaError):
    """The GPU has not so much memory to spare."""


class Cuda:
    """The GPUs of this machine as this process sees them. Safe under threads.

    Args:
        runtime: ``cuda.bindings.runtime``, or what is like it.
        driver: ``cuda.bindings.driver``, or what is like it.

    Raises:
        CudaError: There is no driver, or one that is too old for the bindings, or it was in use before this process was forked.
    """

    def __init__(self, runtime: Any, driver: Any) -> None:
        self._runtime = runtime
        self._driver = driver
        self._contexts: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._lock = threading.Lock()
        try:
            self._ask(driver.cuInit, 0)
        except RuntimeError as error:  # of the bindings, where they find no driver
            raise CudaError(str(error)) from error
        self._ask(runtime.cudaGetDeviceCount)

    def device_of(self, pointer: int) -> int:
        """Which GPU memory lies on.

        Raises:
            CudaError: On none.
        """
        about = self._driver.CUpointer_attribute  # the runtime would make a context on a GPU to be asked the same
        kind = self._ask(self._driver.cuPointerGetAttribute, about.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pointer)
        if int(kind) != int(self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE):
            raise CudaError(f"expected memory of a GPU at {pointer:#x}, found {kind!r}")
        return int(self._ask(self._driver.cuPointerGetAttribute, about.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer))

    def wait(self, device: int, stream: int | None) -> None:
        """Wait until what was asked of a stream is done; None: of all streams of the device.

        Raises:
            CudaError: What was asked of it before has failed.
        """
        with self._current(device):
            if stream is None or stream == _PER_THREAD:  # which the threads of others mean another stream by
                self._ask(self._runtime.cudaDeviceSynchronize)
            else:
                self._ask(self._runtime.cudaStreamSynchronize, stream)

    def free_bytes(self, device: int) -> int:
        """How much memory a GPU has to spare.

        Raises:
            CudaError: It does not say.
        """
        with self._current(device):
            return int(self._ask(self._runtime.cudaMemGetInfo)[0])

    def allocate(self, device: int, size: int) -> int:
        """Take memory of a GPU.

        Raises:
            NoMemoryError: There is not so much.
            CudaError: There is none.
        """
        with self._current(device):
            return int(self._ask(self._runtime.cudaMalloc, size))

    def free(self, device: int, pointer: int) -> None:
        """Give memory back that was taken by ``allocate``.

        Raises:
            CudaError: It is none, or what was asked of the GPU before has failed.
        """
        with self._current(device):
            self._ask(self._runtime.cudaFree, pointer)

    def handle(self, device: int, pointer: int) -> bytes:
        """What another process opens memory by that was taken by ``allocate``.

        Raises:
            CudaError: This machine cannot share memory of a GPU, as in WSL.
        """
        with self._current(device):
            handle = self._ask(self._runtime.cudaIpcGetMemHandle, pointer)
            return ctypes.string_at(handle.getPtr(), _HANDLE_BYTES)

    def copy(self, device: int, target: int, source: int, size: int) -> None:
        """Copy bytes from or to a GPU, or within it; done when this returns, and waits for nothing else that the GPU does.

        Raises:
            CudaError: They are not, since an address is none, or what was asked of the GPU before has failed.
        """
        with self._current(device):
            stream = self._stream(device)
            self._ask(self._runtime.cudaMemcpyAsync, target, source, size, self._runtime.cudaMemcpyKind.cudaMemcpyDefault, stream)
            self._ask(self._runtime.cudaStreamSynchronize, stream)

    def _stream(self, device: int) -> Any:
        with self._lock:
            if device not in self._streams:
                self._streams[device] = self._ask(self._runtime.cudaStreamCreateWithFlags, self._runtime.cudaStreamNonBlocking)
            return self._streams[device]

    @contextmanager
    def _current(self, device: int) -> Iterator[None]:
        with self._lock:
            if device not in self._contexts:
                ordinal = self._ask(self._driver.cuDeviceGet, device)
                self._contexts[device] = self._ask(self._driver.cuDevicePrimaryCtxRetain, ordinal)
        self._ask(self._driver.cuCtxPushCurrent, self._contexts[device])
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent()

    def _ask(self, function: Any, *arguments: Any) -> Any:
        """What a function gives: nothing, a value, or a tuple of several; before it comes a code that says whether it worked."""
        code, *values = function(*arguments)
        if code != 0:
            kind = NoMemoryError if code == self._runtime.cudaError_t.cudaErrorMemoryAllocation else CudaError
            raise kind(f"{function.__name__}: {getattr(code, 'name', code)}")
        return values[0] if len(values) == 1 else tuple(values)


_loaded: tuple[int, Cuda | None] | None = None  # by which process
_loading: Final = threading.Lock()


def load() -> Cuda | None:
    """The GPUs of this machine; None where the bindings are not installed, or do not work. Said once, in the log."""
    global _loaded
    with _loading:
        if _loaded is None or _loaded[0] != os.getpid():
            try:
                from cuda.bindings import driver, runtime

                _loaded = os.getpid(), Cuda(runtime, driver)
            except (ImportError, CudaError) as error:
                _log.info("tensors on a GPU are copied to the host by their own library, since CUDA cannot be asked: %s", error)
                _loaded = os.getpid(), None
        return _loaded[1]
