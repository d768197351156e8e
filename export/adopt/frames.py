"""Frames: what goes to a contained process and comes back, without a pickle and without trust in what lengths claim.

::

    b"CVYF" | header length, 4 bytes little-endian | header, JSON | blobs, one after the other

The header is ``{"values": {name: JSON}, "blobs": [{"name", "dtype", "shape"}]}``; a blob of bytes has the dtype ``"bytes"`` and its
length as its shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, Final

import numpy as np

from convoy.contract.errors import ContractError

_MAGIC: Final = b"CVYF"
_MAX_HEADER_BYTES: Final = 2**26
_MAX_RANK: Final = 32
_DTYPES: Final = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)


def encode(message: Mapping[str, Any]) -> bytes:
    """Write a frame.

    Args:
        message: JSON-like values, bytes, and numpy arrays of numbers or booleans; the latter two at the top level alone.

    Raises:
        ContractError: A value is none of these.
    """
    values: dict[str, Any] = {}
    blobs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, value in message.items():
        if isinstance(value, bytes):
            blobs.append({"name": name, "dtype": "bytes", "shape": [len(value)]})
            parts.append(value)
        elif isinstance(value, np.ndarray):
            if value.dtype.name not in _DTYPES:
                raise ContractError(f"{name!r}: expected an array of {', '.join(sorted(_DTYPES))}, found {value.dtype}.")
            blobs.append({"name": name, "dtype": value.dtype.name, "shape": list(value.shape)})
            parts.append(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
        else:
            values[name] = value
    try:
        header = json.dumps({"values": values, "blobs": blobs}).encode()
    except (TypeError, ValueError) as error:
        raise ContractError(f"expected JSON-like values, bytes and arrays, found another: {error}.") from error
    return b"".join([_MAGIC, len(header).to_bytes(4, "little"), header, *parts])


def decode(data: bytes | bytearray) -> dict[str, Any]:
    """Read a frame whose writer is not trusted.

    Returns:
        The message; arrays are read-only.

    Raises:
        ContractError: It is no frame, or says of itself what its bytes do not bear out.
    """
    size = int.from_bytes(data[4:8], "little")
    if bytes(data[:4]) != _MAGIC or len(data) < 8 + size or size > _MAX_HEADER_BYTES:
        raise ContractError(f"expected a frame, found {bytes(data[:16])!r} of {len(data):,} bytes.")
    try:
        header = json.loads(data[8 : 8 + size])
        message, blobs = dict(header["values"]), list(header["blobs"])
        return _with_blobs(message, blobs, memoryview(data)[8 + size :])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ContractError(f"expected a frame with a whole header, found {type(error).__name__}: {error}.") from error


def _with_blobs(message: dict[str, Any], blobs: list[dict[str, Any]], body: memoryview) -> dict[str, Any]:
    position = 0
    for blob in blobs:
        name, dtype, shape = blob["name"], blob["dtype"], blob["shape"]
        if not isinstance(name, str) or name in message or len(shape) > _MAX_RANK:
            raise ValueError("a blob without a name of its own, or with too many axes")
        if not all(isinstance(dim, int) and dim >= 0 for dim in shape) or dtype not in (*_DTYPES, "bytes"):
            raise ValueError(f"a blob of dtype {dtype!r} and shape {shape!r}")
        length = prod(shape) * (1 if dtype == "bytes" else np.dtype(dtype).itemsize)
        if length > len(body) - position:
            raise ValueError(f"a blob of {length:,} bytes where {len(body) - position:,} are left")
        part = bytes(body[position : position + length])
        message[name] = part if dtype == "bytes" else np.frombuffer(part, np.dtype(dtype).newbyteorder("<")).reshape(shape)
        position += length
    if position != len(body):
        raise ValueError(f"{len(body) - position:,} bytes that no blob names")
    return message
