"""Tensors of other libraries, on an NVIDIA GPU or in the host's memory, as the client takes them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import numpy as np

from convoy.contract.errors import UsageError
from convoy.serving.client._cuda import CudaError, load
from convoy.serving.client._datatype import Array
from convoy.serving.client._gpu_tensor import Bfloat16, GpuTensor

_HOST: Final = (1, 3, 11, 13)
"""DLPack's device types whose memory the host reads: CPU, pinned for CUDA and for ROCm, managed."""

_KIND: Final = "a numpy array, or a tensor that speaks DLPack or is on an NVIDIA GPU"


def take(name: str, tensor: Any) -> Array | GpuTensor:
    """A tensor of another library, without a copy where that is possible.

    Args:
        name: What the input is called, for messages.
        tensor: The tensor.

    Raises:
        UsageError: It is none, or one that has to be changed before it can be sent: it requires grad, numpy lacks its dtype, or it
            lies on a device of another maker.
    """
    if getattr(tensor, "requires_grad", False) is True:
        raise UsageError(f"input {name!r}: expected a tensor that requires no grad, found one that does. Give its .detach().")
    try:
        described = getattr(tensor, "__cuda_array_interface__", None)
    except Exception:  # noqa: BLE001  # of the tensor's library: it has a dtype that the interface lacks, say
        return _by_library(name, tensor)
    if isinstance(described, Mapping):
        return _on_gpu(name, tensor, described)
    if not callable(getattr(tensor, "__dlpack__", None)):
        raise UsageError(f"input {name!r}: expected {_KIND}, found {type(tensor).__name__}.")
    return _on_host(name, tensor)


def _on_gpu(name: str, tensor: Any, described: Mapping[str, Any]) -> Array | GpuTensor:
    shape = tuple(int(extent) for extent in described["shape"])
    dtype = _dtype(tensor, str(described["typestr"]))
    if described.get("mask") is not None:
        raise UsageError(f"input {name!r}: expected a tensor without a mask, found one with. Fill its gaps first.")
    if 0 in shape:
        return np.empty(shape, np.float32 if isinstance(dtype, Bfloat16) else dtype)
    if not _is_c_order(shape, described.get("strides"), int(dtype.itemsize)):
        if not callable(getattr(tensor, "contiguous", None)):
            return _by_library(name, tensor)
        tensor = tensor.contiguous()
        described = tensor.__cuda_array_interface__
    pointer = int(described["data"][0])
    cuda = load()
    if cuda is not None:
        with suppress(CudaError):
            device = cuda.device_of(pointer)
            # From version 3 on it names the stream, or none where there is nothing to wait for; before that it says nothing.
            says = int(described.get("version", 0)) >= 3
            stream = described.get("stream") if says else None
            is_there = says and stream is None
            return GpuTensor(name, cuda, tensor, pointer, device, stream, is_there, dtype, shape)
    return _by_library(name, tensor)


def _dtype(tensor: Any, typestr: str) -> Any:
    dtype = getattr(tensor, "dtype", None)
    if typestr[1:] == "V2" and str(getattr(dtype, "name", dtype)).endswith("bfloat16"):
        return Bfloat16()
    return np.dtype(typestr)


def _is_c_order(shape: tuple[int, ...], strides: Any, itemsize: int) -> bool:
    if strides is None:
        return True
    step = itemsize
    for extent, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def _by_library(name: str, tensor: Any) -> Array:
    """A copy on the host that the tensor's own library makes, in the thread, and so on the stream, of whoever gave it."""
    try:
        for method in ("cpu", "get", "copy_to_host"):  # PyTorch's, CuPy's and PyCUDA's, Numba's
            if callable(copy := getattr(tensor, method, None)):
                host = copy()
                break
        else:
            host = np.asarray(tensor)
    except Exception as error:  # of the tensor's library
        raise _unreadable(name, tensor, error) from error
    if not isinstance(host, np.ndarray):
        return _on_host(name, host)
    if host.dtype == object:
        raise _unreadable(name, tensor, "it is no array to numpy")
    return host


def _on_host(name: str, tensor: Any) -> Array:
    try:
        kind = tensor.__dlpack_device__()[0]
        if int(kind) in _HOST:
            return np.from_dlpack(tensor)
    except Exception as error:  # of the tensor's library, or of numpy: BufferError, RuntimeError, ValueError, TypeError
        raise _unreadable(name, tensor, error) from error
    raise _unreadable(name, tensor, f"it lies on a device of DLPack's type {int(kind)}")


def _unreadable(name: str, tensor: Any, why: object) -> UsageError:
    found = f"a {type(tensor).__name__} of dtype {getattr(tensor, 'dtype', 'unknown')} ({why})"
    return UsageError(
        f"input {name!r}: expected a dense tensor of one of numpy's dtypes that the host can read, found {found}. "
        "Convert it, to float32 say, or copy it to the host."
    )
