"""IDX, the form of the MNIST files: magic number, extents (big-endian, 4 bytes each), then the bytes."""

from __future__ import annotations

import os
from math import prod
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError, UsageError
from convoy.serving.scoring.source._numpy import map_array

MAGIC: Final = b"\x00\x00\x08"  # two zeros, "unsigned byte"; the number of axes follows


def open_idx(file: IO[bytes], shown: str) -> npt.NDArray[Any]:
    """The images of an open IDX file, a real file, mapped.

    Raises:
        UsageError: It holds no images.
        DataError: It is cut short, or too long.
    """
    try:
        head = file.read(4)
        axes = head[3] if head.startswith(MAGIC) and len(head) == 4 else 0
        extents = file.read(4 * axes)
        if axes not in (3, 4) or len(extents) < 4 * axes:
            raise UsageError(f"{shown}: expected an IDX file of images (unsigned bytes, 3 or 4 axes), found something else.")
        shape = tuple(int(extent) for extent in np.frombuffer(extents, ">u4"))
        offset = 4 + 4 * axes
        size = os.fstat(file.fileno()).st_size - offset
        if size != prod(shape):
            raise DataError(
                f"{shown}: expected {prod(shape)} bytes of images {shape}, found {size}. The file is damaged or cut short."
            )
        return map_array(file.fileno(), offset, shape)
    except (OSError, ValueError) as error:
        raise DataError(f"{shown}: cannot be read as an IDX file of images: {error}") from error
