"""Tensors to bytes and back: every datatype of the KServe v2 protocol, as Triton writes it on both wires.

=====================  =========================  =====================================================================
datatype               numpy                      remarks
=====================  =========================  =====================================================================
``BOOL``               ``bool``                   one byte each
``UINT8`` ``INT64``    ``uint8`` to ``int64``     little-endian on the wire, whatever the array's byte order
``FP16`` ``FP64``      ``float16`` to ``float64`` likewise
``BF16``               answers: ``float32``       exact, since every bfloat16 is a float32, and the same whether or not
                                                  ``ml_dtypes`` is installed. Inputs: ``ml_dtypes.bfloat16`` as it is, or
                                                  ``float32``, rounded to the nearest (ties to even)
``BYTES``              ``object`` of ``bytes``    each element after its length (4 bytes, little-endian). Inputs may also
                                                  hold ``str`` (sent as UTF-8) or be numpy's ``S`` or ``U`` arrays
=====================  =========================  =====================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import InvalidRequestError, InvalidResponseError

Array: TypeAlias = "npt.NDArray[Any]"
Buffer: TypeAlias = "bytes | memoryview"

NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Those whose elements numpy knows; ``BF16`` and ``BYTES`` are written below."""

DATATYPES: Final = (*NUMPY_DTYPES, "BF16", "BYTES")

_NATIVE: Final = {datatype: dtype.newbyteorder("=") for datatype, dtype in NUMPY_DTYPES.items()}
PLAIN_DTYPES: Final = {datatype: dtype for datatype, dtype in NUMPY_DTYPES.items() if dtype.isnative and datatype != "BOOL"}
"""Whose elements lie in an answer as they lie in memory; a byte of BOOL may be other than 0 and 1."""
_BY_DTYPE: Final = {(dtype.kind, dtype.itemsize): datatype for datatype, dtype in NUMPY_DTYPES.items()}


class OnHost(Protocol):
    """A tensor of any library in the host's memory."""

    def __dlpack__(self) -> Any:
        """See https://dmlc.github.io/dlpack/latest/python_spec.html."""
        ...


class OnGpu(Protocol):
    """A tensor of any library on an NVIDIA GPU."""

    @property
    def __cuda_array_interface__(self) -> Any:
        """See https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html."""
        ...


TensorLike: TypeAlias = "Array | OnHost | OnGpu"
"""What ``infer`` takes."""


class Typed(Protocol):
    """What has a dtype: an array, or a tensor elsewhere."""

    @property
    def dtype(self) -> Any:
        """Numpy's, or one that is like it."""
        ...


def datatype_of(array: Typed) -> str | None:
    """The datatype that ``array`` has on the wire; None where the wire knows none (complex numbers, times, records)."""
    return _datatype_of(array.dtype)


@lru_cache(maxsize=256)
def _datatype_of(dtype: np.dtype[Any]) -> str | None:
    if dtype.name == "bfloat16":
        return "BF16"
    if dtype.kind in "OSU":
        return "BYTES"
    return _BY_DTYPE.get((dtype.kind, dtype.itemsize))


def fits(array: Typed, datatype: str) -> bool:
    """Whether ``array`` can be sent as ``datatype`` as it is."""
    found = datatype_of(array)
    return found == datatype or (datatype == "BF16" and found == "FP32")


def encode(array: Array, datatype: str) -> Buffer:
    """The elements of ``array`` in C order as the wire wants them; no copy where none is needed.

    Raises:
        InvalidRequestError: The array does not fit the datatype, or an element of a BYTES tensor is neither bytes nor str.
    """
    if not fits(array, datatype):
        raise InvalidRequestError(f"expected an array that fits {datatype}, found dtype {array.dtype}.")
    if datatype == "BYTES":
        return _encode_bytes(array)
    if array.size == 0:
        return b""
    wire = _to_bfloat16(array) if datatype == "BF16" else array.astype(NUMPY_DTYPES[datatype], order="C", copy=False)
    return wire.reshape(-1).view(np.uint8).data


def decode(data: Buffer, datatype: str, shape: Sequence[int]) -> Array:
    """The array behind the wire's bytes; always a fresh, writable one.

    Raises:
        InvalidResponseError: The bytes are not as many as datatype and shape say, or the datatype or shape is none.
    """
    size = _size(shape)
    plain = PLAIN_DTYPES.get(datatype)
    if plain is not None and len(data) == size * plain.itemsize:  # most answers, on the way of every call
        return _shaped(np.frombuffer(bytearray(data), plain), shape)
    if datatype == "BYTES":
        return _shaped(_decode_bytes(data, size), shape)
    if datatype == "BF16":
        bits = np.frombuffer(_exactly(data, size * 2, datatype, shape), "<u2")
        return _shaped((bits.astype(np.uint32) << 16).view(np.float32), shape)
    if datatype not in NUMPY_DTYPES:
        raise InvalidResponseError(f"expected one of the datatypes {', '.join(DATATYPES)}, found {datatype!r}.")
    dtype = NUMPY_DTYPES[datatype]
    flat = np.frombuffer(_exactly(data, size * dtype.itemsize, datatype, shape), np.uint8 if datatype == "BOOL" else dtype)
    # A copy, so that callers own what they get and may write to it; a byte other than 0 and 1 is no valid numpy bool.
    native: Array = flat != 0 if datatype == "BOOL" else flat.astype(_NATIVE[datatype], copy=True)
    return _shaped(native, shape)


def from_values(values: Sequence[Any], datatype: str, shape: Sequence[int]) -> Array:
    """The array behind a list of values, flat or nested (JSON without the binary extension, gRPC's typed contents).

    Raises:
        InvalidResponseError: They are not as many, or not of the kind, that datatype and shape say.
    """
    size = _size(shape)
    try:
        if datatype == "BYTES":
            elements = [value.encode() if isinstance(value, str) else value for value in _flatten(values)]
            if len(elements) != size or not all(isinstance(element, bytes) for element in elements):
                raise ValueError(f"found {len(elements)} values, or some that are no text")
            return _objects(elements).reshape(shape)
        dtype = np.dtype(np.float32) if datatype == "BF16" else NUMPY_DTYPES[datatype].newbyteorder("=")
        found = list(_flatten(values))
        for value in found:
            if not _is_of(value, dtype):
                raise ValueError(f"found {value!r}")
        return np.array(found, dtype=dtype).reshape(shape)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InvalidResponseError(f"expected {size} values of datatype {datatype} for shape {list(shape)}: {error}") from error


def _is_of(value: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a number is one that a datatype has: none is cut, wrapped or made of a bool."""
    if value is None:  # of floats; what it stands for is said by the wire that allows it
        return dtype.kind == "f"
    if dtype.kind == "b":
        return isinstance(value, bool) or value in (0, 1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return (isinstance(value, int) or value.is_integer()) and limits.min <= value <= limits.max


def _flatten(values: Any) -> Any:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flatten(value)
        else:
            yield value


def _size(shape: Sequence[int]) -> int:
    for extent in shape:
        if type(extent) is not int or extent < 0:  # a bool is an int to isinstance
            raise InvalidResponseError(f"expected a shape of whole numbers from 0, found {list(shape)}.")
    return prod(shape)


def _shaped(flat: Array, shape: Sequence[int]) -> Array:
    try:
        return flat.reshape(shape)
    except ValueError as error:  # more axes than numpy takes, or none of the elements of an axis that no memory holds
        raise InvalidResponseError(f"expected a shape that an array can have, found {list(shape)}: {error}.") from error


def _exactly(data: Buffer, n_bytes: int, datatype: str, shape: Sequence[int]) -> Buffer:
    if len(data) != n_bytes:
        raise InvalidResponseError(f"expected {n_bytes} bytes for {datatype} {list(shape)}, found {len(data)}.")
    return data


def _to_bfloat16(array: Array) -> Array:
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16).astype("<u2", copy=False)
    floats = np.ascontiguousarray(array, dtype=np.float32)
    bits = floats.view(np.uint32)
    # Round to nearest, ties to even: add half of what is cut off, less one where the kept part is even. A NaN must stay one.
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x0040
    return np.where(np.isnan(floats), quiet, rounded).astype("<u2")


def _encode_bytes(array: Array) -> bytes:
    parts: list[bytes] = []
    for index, element in enumerate(array.reshape(-1).tolist()):
        data = element.encode() if isinstance(element, str) else element
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InvalidRequestError(
                f"expected bytes or str in each element of a BYTES tensor, found {type(element).__name__} at flat index {index}."
            )
        data = bytes(data)
        parts += (struct.pack("<I", len(data)), data)
    return b"".join(parts)


def _decode_bytes(data: Buffer, size: int) -> Array:
    elements: list[bytes] = []
    offset = 0
    while offset < len(data):
        start = offset + 4
        length = struct.unpack_from("<I", data, offset)[0] if start <= len(data) else 0
        offset = start + length
        if offset > len(data):
            raise InvalidResponseError(f"a BYTES tensor is cut short in its element {len(elements)}.")
        elements.append(bytes(data[start:offset]))
    if len(elements) != size:
        raise InvalidResponseError(f"expected {size} elements in a BYTES tensor, found {len(elements)}.")
    return _objects(elements)


def _objects(elements: list[bytes]) -> Array:
    flat = np.empty(len(elements), dtype=object)
    flat[:] = elements
    return flat
