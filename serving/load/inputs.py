"""Input tensors for a load: random values that a model can take, made from what the server says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import UsageError
from convoy.serving.client._datatype import NUMPY_DTYPES

if TYPE_CHECKING:
    from convoy.serving.client import TensorMetadata

_TEXT_BYTES: Final = 16


def make_inputs(
    tensors: Sequence[TensorMetadata],
    *,
    batch_size: int | None,
    shapes: Mapping[str, Sequence[int]],
    ranges: Mapping[str, tuple[float, float]],
    seed: int,
) -> dict[str, npt.NDArray[Any]]:
    """Random arrays for a model's inputs.

    Floats lie in the range that is stated, else in [0, 1); bytes and booleans take any value; other whole numbers are 0 or 1 unless
    a range is stated, since they may be indices; texts are 16 random letters.

    Args:
        tensors: The inputs, with shapes as the server has them.
        batch_size: The extent of the batch axis, which then comes first; None where the model has no such axis.
        shapes: By input, the shape without the batch axis; needed where the server leaves an extent open.
        ranges: By input, the smallest and the largest value that makes sense.
        seed: The same seed gives the same values.

    Raises:
        UsageError: An extent is open and no shape is given for it, or a shape does not fit the model's.
    """
    names = [tensor.name for tensor in tensors]
    if unknown := [name for name in shapes if name not in names]:
        raise UsageError(f"shape: expected one of the inputs {names}, found {unknown[0]!r}.")
    random = np.random.default_rng(seed)
    arrays = {}
    for tensor in tensors:
        shape = _shape(tensor, batch_size, shapes.get(tensor.name))
        arrays[tensor.name] = _values(random, tensor.datatype, shape, ranges.get(tensor.name))
    return arrays


def _shape(tensor: TensorMetadata, batch_size: int | None, given: Sequence[int] | None) -> tuple[int, ...]:
    dims = tensor.shape if batch_size is None else tensor.shape[1:]
    batch = () if batch_size is None else (batch_size,)
    if given is None:
        if -1 in dims:
            raise UsageError(
                f"input {tensor.name!r} has the dims {list(dims)}, of which -1 may be anything: say which to measure with, "
                f"--shape {tensor.name}={','.join('N' if extent == -1 else str(extent) for extent in dims)} for example."
            )
        return (*batch, *dims)
    if len(given) != len(dims) or any(want not in (-1, have) or have < 0 for want, have in zip(dims, given, strict=True)):
        raise UsageError(
            f"shape of input {tensor.name!r}: expected {list(dims)} (-1: any; the batch axis is left out), found {list(given)}."
        )
    return (*batch, *given)


def _values(
    random: np.random.Generator, datatype: str, shape: tuple[int, ...], value_range: tuple[float, float] | None
) -> npt.NDArray[Any]:
    if datatype == "BYTES":
        letters = random.integers(ord("a"), ord("z") + 1, (*shape, _TEXT_BYTES), dtype=np.uint8)
        return letters.reshape(-1).view(f"S{_TEXT_BYTES}").astype(object).reshape(shape)
    dtype: np.dtype[Any] = np.dtype(np.float32) if datatype == "BF16" else NUMPY_DTYPES[datatype]
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "f":
        low, high = value_range or (0.0, 1.0)
        return random.uniform(low, high, shape).astype(dtype)
    limits = np.iinfo(dtype)
    low, high = value_range or ((limits.min, limits.max) if dtype.itemsize == 1 else (0, 1))
    return random.integers(max(int(low), limits.min), min(int(high), limits.max), shape, dtype=dtype, endpoint=True)
