"""Tensors on an NVIDIA GPU, whoever has put them there: waited for, cut into rows, read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from convoy.contract.errors import UsageError
from convoy.serving.client._call import Placed, Tensor
from convoy.serving.client._cuda import Cuda, CudaError
from convoy.serving.client._datatype import NUMPY_DTYPES, Array, Buffer, encode


@dataclass(frozen=True)
class Bfloat16:
    """What numpy has no dtype for, unless ``ml_dtypes`` is installed; named as its dtypes are."""

    name: str = "bfloat16"
    kind: str = "V"
    itemsize: int = 2

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class GpuTensor:
    """A tensor in C order on an NVIDIA GPU, or rows of one.

    Attributes:
        name: What the input is called, for messages.
        cuda: The GPUs.
        owner: The tensor of another library, which keeps the memory.
        pointer: Where its elements are.
        device: On which GPU.
        stream: On which stream they may still be computed; None: on any.
        is_there: Whether they are there already.
        dtype: Their dtype.
        shape: Their shape.
    """

    name: str
    cuda: Cuda
    owner: object
    pointer: int
    device: int
    stream: int | None
    is_there: bool
    dtype: Any
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> GpuTensor:
        start, stop, _ = rows.indices(self.shape[0])
        pointer = self.pointer + start * prod(self.shape[1:]) * self.itemsize
        return replace(self, pointer=pointer, shape=(max(0, stop - start), *self.shape[1:]))

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * self.itemsize

    def wait(self) -> None:
        """Wait until the elements are there; before that nobody may read them.

        Raises:
            UsageError: They never will be, since what computes them has failed.
        """
        if not self.is_there:
            try:
                self.cuda.wait(self.device, self.stream)
            except CudaError as error:
                raise UsageError(f"input {self.name!r}: expected a tensor, found that what computes it failed: {error}.") from error
            self.is_there = True

    def to_host(self) -> Array:
        """The bytes of its elements, copied to the host: uint8 of one axis.

        Raises:
            UsageError: They cannot be read.
        """
        data = np.empty(self.nbytes, np.uint8)
        try:
            self.cuda.copy(self.device, data.ctypes.data, self.pointer, self.nbytes)
        except CudaError as error:
            raise UsageError(f"input {self.name!r}: expected a tensor on GPU {self.device}, cannot read it: {error}.") from error
        return data


def to_wire(
    arrays: Mapping[str, Array | GpuTensor], datatypes: Mapping[str, str], *, least_bytes: int | None
) -> tuple[tuple[Tensor, ...], Placed | None]:
    """Tensors in the wire's form, some of which are on a GPU: and which of these are to stay there.

    Args:
        arrays: The tensors by name.
        datatypes: Their datatypes on the wire by name.
        least_bytes: From how many bytes on a tensor stays on its GPU; None: none does.

    Raises:
        UsageError: A tensor on a GPU cannot be read.
    """
    tensors: list[Tensor] = []
    on_gpu: dict[str, GpuTensor] = {}
    for name, array in arrays.items():
        datatype = datatypes[name]
        data: Buffer
        if not isinstance(array, GpuTensor):
            data = encode(array, datatype)
        elif not _is_wire_form(array.dtype, datatype):  # the wire's elements are others
            data = encode(array.to_host().view(array.dtype).reshape(array.shape), datatype)
        elif least_bytes is not None and array.nbytes >= least_bytes:
            data = _blank(array.nbytes)
            on_gpu[name] = array
        else:
            data = array.to_host().data
        tensors.append(Tensor(name, datatype, array.shape, data))
    return tuple(tensors), Placed({}, {}, on_gpu) if on_gpu else None


def _is_wire_form(dtype: Any, datatype: str) -> bool:
    return datatype == "BF16" if isinstance(dtype, Bfloat16) else bool(NUMPY_DTYPES.get(datatype) == dtype)


def _blank(size: int) -> memoryview:
    """What is so long, and holds nothing: whoever reads it is told so by Python."""
    return np.broadcast_to(np.zeros(1, np.uint8), (size,)).data
