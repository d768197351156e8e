"""The IDX file format: arrays of unsigned bytes behind a header of big-endian integers."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Final, cast

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError

_UNSIGNED_BYTE: Final = 0x08
_MAX_VALUES: Final = 1 << 33  # a header that claims more is damaged: refuse it before memory is asked for


def read_idx(path: Path, *, n_dims: int) -> npt.NDArray[np.uint8]:
    """Read a file of unsigned bytes, plain or compressed with gzip (told by its first bytes, not by its name).

    Args:
        path: The file.
        n_dims: How many dimensions it must have: 1 for labels, 3 for images.

    Returns:
        uint8, of the shape that the header names.

    Raises:
        DataError: It cannot be read, its magic number is another, or it is shorter or longer than its header says.
    """
    try:
        with _open(path) as file:
            expected = f"{n_dims}-dimensional IDX file of unsigned bytes (magic 0x{_UNSIGNED_BYTE << 8 | n_dims:08x})"
            head = file.read(4 + 4 * n_dims)
            if head[:4] != bytes((0, 0, _UNSIGNED_BYTE, n_dims)):
                raise DataError(f"{path}: expected a {expected}, found 0x{head[:4].hex() or '(an empty file)'}.")
            if len(head) < 4 + 4 * n_dims:
                raise DataError(f"{path}: expected a {expected}, found {len(head)} bytes: the header is cut short.")
            shape = struct.unpack(f">{n_dims}I", head[4:])
            n = math.prod(shape)
            if n > _MAX_VALUES:
                raise DataError(f"{path}: the header claims {n:,} values ({shape}); the file is damaged.")
            data = file.read(n + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}. Fetch the file again.") from error
    if len(data) != n:
        found = f"{len(data):,}" if len(data) < n else "more"
        raise DataError(f"{path}: expected {n:,} bytes of values for shape {shape}, found {found}. Fetch the file again.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape).copy()  # a writable array: torch takes it as it is


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path, "rb")) if compressed else path.open("rb")
