"""Arrays in numpy's files, mapped into memory: what is not used is not read."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from math import prod
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError, UsageError
from convoy.serving.scoring.source._spool import Spool

_IMAGES: Final = ("image", "images", "x")
_LOCAL_HEADER_BYTES: Final = 30
_OBJECTS: Final = re.compile("Python objects in dtype|[Oo]bject arrays")  # numpy's words for pickled arrays
DAMAGED: Final = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)


def open_npy(file: IO[bytes], shown: str) -> npt.NDArray[Any]:
    """The array of an open ``.npy``, a real file.

    Raises:
        UsageError: It holds Python objects.
        DataError: It is damaged, or no such file.
    """
    try:
        return _mapped(file, shown)
    except DAMAGED as error:
        raise DataError(f"{shown}: cannot be read as a numpy file of images: {error}") from error


def open_npz(
    file: IO[bytes], column: str | None, label_column: str | None, shown: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """The images of an open ``.npz``, a real file, and their labels. An array that is compressed is unpacked on the disk.

    Raises:
        UsageError: There are no such arrays, or they hold Python objects.
        DataError: It is damaged, or no such file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            image = _choose(list(members), column, shown)
            images = _member(archive, members[image], file, shown)
            if label_column is None:
                return images, None
            if label_column not in members:
                raise UsageError(f"{shown}: expected an array {label_column!r}, found {list(members)}.")
            labels = _member(archive, members[label_column], file, shown)
    except DAMAGED as error:
        raise DataError(f"{shown}: cannot be read as a numpy file of images: {error}") from error
    if labels.shape != images.shape[:1]:
        raise DataError(f"{shown}: expected one label an image, {images.shape[:1]}, found {labels.shape} in {label_column!r}.")
    return images, labels


def map_array(descriptor: int, offset: int, shape: tuple[int, ...], dtype: Any = np.uint8, order: Any = "C") -> npt.NDArray[Any]:
    """An array of a file that is open at ``descriptor``, which may be closed then.

    Raises:
        ValueError: The file is too short.
    """
    if prod(shape) == 0:  # nothing can not be mapped
        return np.empty(shape, dtype)
    with open(os.dup(descriptor), "rb") as file:  # noqa: PTH123  # a descriptor is no path
        mapped = np.memmap(file, dtype, "r", offset, shape, order)
    return np.asarray(mapped)  # a plain view: each slice of a memmap is dear


def _choose(names: list[str], column: str | None, shown: str) -> str:
    if column is not None:
        if column not in names:
            raise UsageError(f"{shown}: expected an array {column!r}, found {names}.")
        return column
    name = names[0] if len(names) == 1 else next((name for name in _IMAGES if name in names), None)
    if name is None:
        raise UsageError(f"{shown}: expected one array, or one named 'image', 'images' or 'x', found {names}.")
    return name


def _member(archive: zipfile.ZipFile, name: str, file: IO[bytes], shown: str) -> npt.NDArray[Any]:
    member = archive.getinfo(name)
    if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
        file.seek(member.header_offset)
        name_bytes, extra_bytes = struct.unpack_from("<HH", file.read(_LOCAL_HEADER_BYTES), 26)
        file.seek(member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes)
        return _mapped(file, shown)
    with archive.open(member) as packed:
        spool = Spool.of(packed)
    with spool.open() as unpacked:
        return _mapped(unpacked, shown)


def _mapped(file: IO[bytes], shown: str) -> npt.NDArray[Any]:
    """Reads the header where the file stands."""
    try:
        version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"version {version} of the format holds no images")
        shape, fortran, dtype = read(file)  # type: ignore[no-untyped-call]
    except ValueError as error:
        if _OBJECTS.search(str(error)):
            raise _pickled(shown) from error
        raise
    if dtype.hasobject:
        raise _pickled(shown)
    return map_array(file.fileno(), file.tell(), shape, dtype, "F" if fortran else "C")


def _pickled(shown: str) -> UsageError:
    return UsageError(f"{shown}: expected uint8 images, found pickled Python objects, which are never loaded.")
