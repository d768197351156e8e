"""External data: weights in files beside the model, read without leaving the model's folder, and put into it.

The guard does not compare path strings, which can be swapped between the check and the read. It walks from a descriptor of the
model's folder, one component after the other, follows no link, looks at the descriptor that it opened, and reads from that one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import onnx

from convoy.contract.errors import ExportError
from convoy.export.adopt.limits import Limits
from convoy.export.adopt.tensors import is_external, n_bytes, stored_tensors

_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})
_NUMBER: Final = re.compile(r"[0-9]{1,19}", re.ASCII)
_SINGLE_FILE: Final = "Save the model as one file where you trust it: onnx.save(onnx.load(path), 'one.onnx')."
_CAN_CONTAIN: Final = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW") and hasattr(os, "O_DIRECTORY")


@dataclass(frozen=True)
class Reference:
    """Where the bytes of one tensor stand.

    Attributes:
        owner: What messages call the tensor.
        parts: The path's components below the model's folder.
        offset: The first byte.
        length: How many bytes, which is exactly what the tensor's dims and datatype need.
        checksum: SHA-1 of the whole file in hexadecimal, or empty.
    """

    owner: str
    parts: tuple[str, ...]
    offset: int
    length: int
    checksum: str

    @property
    def location(self) -> str:
        """The path below the model's folder."""
        return "/".join(self.parts)


def embed(model: onnx.ModelProto, folder: Path, limits: Limits) -> None:
    """Put every tensor that stands in another file into ``model``, in place.

    Args:
        model: A parsed model whose tensors were checked (:func:`convoy.export.adopt.tensors.check_tensors`).
        folder: The model's own folder; nothing outside it is opened.
        limits: ``max_file_bytes`` bounds the result, ``max_external_files`` the files.

    Raises:
        ExportError: A reference is malformed, leads out of ``folder``, to a link, to a file with several names or to no regular
            file, or does not fit the tensor; the result would be larger than one ONNX file can be; or this system cannot open
            files relative to a descriptor.
    """
    found = _references(model, limits)
    if not found:
        return
    if not _CAN_CONTAIN:
        raise ExportError(f"expected a model in one file, found external data, which this system cannot contain. {_SINGLE_FILE}")
    total = model.ByteSize() + sum(reference.length for reference, _ in found)
    if total > limits.max_file_bytes:
        raise ExportError(
            f"expected at most {limits.max_file_bytes:,} bytes with external data embedded, which is what one ONNX file can hold, "
            f"found {total:,}: reduce the precision of its weights, or serve it with a server of its own."
        )
    groups: dict[tuple[str, ...], list[tuple[Reference, onnx.TensorProto]]] = {}
    for reference, tensor in found:
        groups.setdefault(reference.parts, []).append((reference, tensor))
    if len(groups) > limits.max_external_files:
        raise ExportError(f"expected at most {limits.max_external_files:,} external files, found {len(groups):,}. {_SINGLE_FILE}")
    base = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for group in groups.values():
            _embed_file(base, group, limits)
    finally:
        os.close(base)


def external_bytes(model: onnx.ModelProto, limits: Limits) -> int:
    """Return how many bytes :func:`embed` would read, by the dims of the tensors; no file is opened.

    Raises:
        ExportError: A reference is malformed.
    """
    return sum(reference.length for reference, _ in _references(model, limits))


def _references(model: onnx.ModelProto, limits: Limits) -> list[tuple[Reference, onnx.TensorProto]]:
    found = ((owner, tensor) for owner, tensor in stored_tensors(model, limits) if is_external(tensor))
    return [(_reference(owner, tensor, limits), tensor) for owner, tensor in found]


def _embed_file(base: int, group: list[tuple[Reference, onnx.TensorProto]], limits: Limits) -> None:
    with _opened(base, group[0][0]) as descriptor:
        size = os.fstat(descriptor).st_size
        for reference, _ in group:
            if reference.offset + reference.length > size:
                raise ExportError(
                    f"{reference.owner}: expected {reference.length:,} bytes from byte {reference.offset:,} of "
                    f"{reference.location!r}, found a file of {size:,}: it is cut short, or belongs to another model."
                )
        for checksum in {reference.checksum for reference, _ in group} - {""}:
            _check_digest(descriptor, size, group[0][0].location, checksum, limits)
        for reference, tensor in group:
            tensor.raw_data = _read(descriptor, reference)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


def _reference(owner: str, tensor: onnx.TensorProto, limits: Limits) -> Reference:
    keys = [entry.key for entry in tensor.external_data]
    if len(set(keys)) != len(keys) or not set(keys) <= _KEYS or "location" not in keys:
        raise ExportError(
            f"{owner}: expected the keys location, offset, length and checksum, each once, found {keys[:8]}: "
            f"the file is damaged or hostile. {_SINGLE_FILE}"
        )
    entries = {entry.key: entry.value for entry in tensor.external_data}
    needed = n_bytes(owner, tensor, limits)
    length = _number(owner, "length", entries.get("length", str(needed)))
    if length != needed:
        raise ExportError(
            f"{owner}: expected an external length of {needed:,} bytes for dims {list(tensor.dims)}, found {length:,}: "
            "the file is damaged or hostile."
        )
    offset = _number(owner, "offset", entries.get("offset", "0"))
    return Reference(owner, _parts(owner, entries["location"]), offset, length, entries.get("checksum", "").lower())


def _number(owner: str, key: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ExportError(
            f"{owner}: expected an external {key} of digits alone, found {text[:40]!r}: the file is damaged or hostile."
        )
    return int(text)


def _parts(owner: str, location: str) -> tuple[str, ...]:
    if "_ORT_MEM_ADDR_" in location:
        raise ExportError(
            f"{owner}: expected a file beside the model, found ONNX Runtime's mark for an address in memory: the file is hostile."
        )
    parts = [part for part in location.split("/") if part not in ("", ".")]
    outside = location.startswith("/") or ".." in parts or "\\" in location or location[1:2] == ":"
    if outside or not parts or not location.isprintable() or len(parts) > 16:
        raise ExportError(
            f"{owner}: expected external data below the model's own folder, found the location {location[:120]!r}, which leads, or "
            f"may lead on another system, out of it. {_SINGLE_FILE}"
        )
    if any(part.startswith(".") for part in parts):
        raise ExportError(
            f"{owner}: expected external data in a visible file, found {location[:120]!r}, which is hidden. {_SINGLE_FILE}"
        )
    return PurePosixPath(*parts).parts


@contextmanager
def _opened(base: int, reference: Reference) -> Iterator[int]:
    """Open the file by descriptors, without following a link or waiting for a pipe, and close it again."""
    folder = os.dup(base)
    try:
        for part in reference.parts[:-1]:
            inner = _open(part, folder, os.O_DIRECTORY, reference)
            os.close(folder)
            folder = inner
        _check_kind(os.stat(reference.parts[-1], dir_fd=folder, follow_symlinks=False), reference)
        descriptor = _open(reference.parts[-1], folder, os.O_NONBLOCK | os.O_NOCTTY, reference)
    except FileNotFoundError as error:
        raise _missing(reference) from error
    except OSError as error:
        raise _unfit(reference, f"one that cannot be read ({error.strerror})") from error
    finally:
        os.close(folder)
    try:
        _check_kind(os.fstat(descriptor), reference)
        yield descriptor
    finally:
        os.close(descriptor)


def _open(name: str, folder: int, flags: int, reference: Reference) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise _missing(reference) from error
        kind = f"which cannot be read ({error.strerror})"
        with suppress(OSError):
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                kind = "which is a symbolic link"
        raise _unfit(reference, f"{name!r}, {kind}") from error


def _check_kind(status: os.stat_result, reference: Reference) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _unfit(reference, "a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise _unfit(reference, "a folder, pipe, socket or device")
    if status.st_nlink != 1:
        raise _unfit(reference, f"a file with {status.st_nlink} names (hard links), one of which may stand elsewhere")


def _missing(reference: Reference) -> ExportError:
    return ExportError(
        f"{reference.owner}: expected its data in {reference.location!r} below the model's folder, found no such file: "
        "fetch it too, and put it there."
    )


def _unfit(reference: Reference, found: str) -> ExportError:
    return ExportError(
        f"{reference.owner}: expected a regular file of its own at {reference.location!r}, found {found}: copy the model and its "
        "data into a fresh folder (cp -L), if you trust what they point to."
    )


def _read(descriptor: int, reference: Reference) -> bytes:
    os.lseek(descriptor, reference.offset, os.SEEK_SET)
    with open(descriptor, "rb", closefd=False, buffering=0) as file:
        pieces, left = [], reference.length
        while left and (piece := file.read(min(left, 2**26))):
            pieces.append(piece)
            left -= len(piece)
    if left:
        raise ExportError(
            f"{reference.owner}: {reference.location!r} became shorter while it was read: leave it alone, and try again."
        )
    return b"".join(pieces)


def _check_digest(descriptor: int, size: int, location: str, expected: str, limits: Limits) -> None:
    if size > limits.max_file_bytes:
        raise ExportError(f"expected {location!r} of at most {limits.max_file_bytes:,} bytes, found {size:,}. {_SINGLE_FILE}")
    digest = hashlib.sha1(usedforsecurity=False)  # the format's choice; it guards against mix-ups, not against people
    os.lseek(descriptor, 0, os.SEEK_SET)
    left = size
    while left and (piece := os.read(descriptor, min(left, 2**24))):
        digest.update(piece)
        left -= len(piece)
    if digest.hexdigest() != expected:
        raise ExportError(
            f"expected {location!r} with the checksum {expected[:40]!r}, found {digest.hexdigest()!r}: fetch it again."
        )
