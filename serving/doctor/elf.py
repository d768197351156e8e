"""Which shared libraries a shared library wants, read from its own file (ELF, 64 bits, little-endian)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ = 0, 1, 5, 10
_LARGEST_TABLE = 64 * 2**20
_LARGEST_OFFSET = 2**40


def needed(path: Path) -> list[str]:
    """The names that the loader looks for when it loads ``path``: ["libcublas.so.13", "libc.so.6"].

    Raises:
        ValueError: It is no such file.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _needed(file)
        except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no whole shared library: {error}") from error


def _needed(file: BinaryIO) -> list[str]:
    start = file.read(64)
    if start[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{file.name} is no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", start, 32)
    size, count = struct.unpack_from("<HH", start, 54)
    _seek(file, table)
    headers = [struct.unpack_from("<II6Q", file.read(size)) for _ in range(count)]
    loads = [(address, offset, length) for kind, _, offset, address, _, length, _, _ in headers if kind == _PT_LOAD]
    dynamic = next((header for header in headers if header[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return []
    _seek(file, dynamic[2])
    entries = list(struct.iter_unpack("<qQ", _read(file, dynamic[5] // 16 * 16)))
    ends = [index for index, (tag, _) in enumerate(entries) if tag == _DT_NULL]
    entries = entries[: ends[0]] if ends else entries
    values = dict(entries)
    address = values.get(_DT_STRTAB, 0)
    offset = next((offset + address - begin for begin, offset, length in loads if begin <= address < begin + length), address)
    _seek(file, offset)
    names = _read(file, values.get(_DT_STRSZ, 0))
    return [names[value:].partition(b"\0")[0].decode() for tag, value in entries if tag == _DT_NEEDED]


def _read(file: BinaryIO, size: int) -> bytes:
    if size > _LARGEST_TABLE:
        raise ValueError(f"{file.name} claims a table of {size} bytes")
    data = file.read(size)
    if len(data) < size:
        raise IndexError("it ends too early")
    return data


def _seek(file: BinaryIO, offset: int) -> None:
    if offset >= _LARGEST_OFFSET:
        raise IndexError(f"it points at byte {offset}")
    file.seek(offset)
