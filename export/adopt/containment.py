"""A foreign ONNX file, read so that nothing outside its folder is touched and nothing large is made for it.

Its bytes are walked before a parser sees them (:mod:`~convoy.export.adopt.wire`), its parts are checked without computing anything
(operators, scopes, tensors, expansion), its external data are read by descriptors that follow no link and put into it. All of
that runs in a process of its own whose memory and time are limited (:mod:`~convoy.export.adopt.sandbox`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError, EncodeError

from convoy.contract.errors import ExportError
from convoy.export.adopt.expansion import check_expansion
from convoy.export.adopt.external_data import embed, external_bytes
from convoy.export.adopt.formats import foreign_format
from convoy.export.adopt.limits import Limits
from convoy.export.adopt.operators import check_operators
from convoy.export.adopt.sandbox import run_contained
from convoy.export.adopt.scopes import check_scopes
from convoy.export.adopt.tensors import check_tensors
from convoy.export.adopt.wire import scan_model

_MIN_IR_VERSION: Final = 3
_DEFAULT: Final = Limits()
_TASK: Final = "convoy.export.adopt.containment:contain_task"


def read_contained(path: Path, limits: Limits = _DEFAULT) -> bytes:
    """Read a foreign ONNX file and its external data in a limited process.

    Args:
        path: The ONNX file. It may itself be a symbolic link; what it refers to must stand below the folder named here.
        limits: Bounds for the file and for the process.

    Returns:
        A serialised ``ModelProto`` that is well-formed, refers to no other file, and holds no field that this version of ONNX
        does not know. The same file gives the same bytes. It has not been run or inferred: that is
        :func:`convoy.export.adopt.inspection.inspect`.

    Raises:
        ExportError: The file is no ONNX file, is damaged or hostile, or exceeds ``limits``.
    """
    size = _regular_size(path, limits)
    payload = {"path": str(path.absolute()), "limits": asdict(limits)}
    allowed = 0
    for _ in range(2):  # external data need more memory: the first process says how much, within the limits
        with _named(path):
            reply = run_contained(_TASK, {**payload, "external_bytes": allowed}, limits=limits, payload_bytes=size + allowed)
        if isinstance(model := reply.get("model"), bytes) and len(model) <= limits.max_file_bytes:
            return model
        needed = reply.get("external_bytes")
        if not isinstance(needed, int) or not 0 < needed <= limits.max_file_bytes:
            break
        allowed = needed
    raise ExportError(
        f"{path}: expected a model, found that it changed while it was read, or that its reader was misled: do not trust it."
    )


def contain_task(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Do :func:`contain` for the process that :func:`read_contained` starts.

    Args:
        payload: ``path``, ``limits`` and ``external_bytes``, which this process may read.

    Returns:
        ``model``, or ``external_bytes`` where the process would have to read more of them.
    """
    path, limits = Path(payload["path"]), Limits(**payload["limits"])
    model = _load(path, limits)
    needed = external_bytes(model, limits)
    if needed > limits.max_file_bytes:
        raise ExportError(
            f"expected at most {limits.max_file_bytes:,} bytes of external data, found {needed:,}: no ONNX file holds more."
        )
    if needed > payload["external_bytes"]:
        return {"external_bytes": needed}
    return {"model": _embedded(model, path.parent, limits)}


def contain(path: Path, limits: Limits = _DEFAULT) -> bytes:
    """Do what :func:`read_contained` does, in this process and so without a limit that the system enforces.

    Raises:
        ExportError: As :func:`read_contained`.
    """
    with _named(path):
        return _embedded(_load(path, limits), path.parent, limits)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ExportError(f"{path}: expected a file that fits the memory of its process, found that it asks for more.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path}: expected a file that can be read, found {type(error).__name__} ({error}).") from error


def _load(path: Path, limits: Limits) -> onnx.ModelProto:
    data = _read(path, limits)
    if (found := foreign_format(data[:4096])) is not None:
        raise ExportError(f"expected an ONNX file, found {found}.")
    scan_model(data, limits)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ExportError(f"expected an ONNX file, found bytes that the parser refuses or has no memory for: {error}.") from error
    model.DiscardUnknownFields()  # type: ignore[attr-defined] # the stubs lack it
    check_model(model, limits)
    return model


def _embedded(model: onnx.ModelProto, folder: Path, limits: Limits) -> bytes:
    embed(model, folder, limits)
    try:
        serialised: bytes = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ExportError(f"expected a model that fits one ONNX file (2 GiB), found one that does not: {error}.") from error
    if len(serialised) > limits.max_file_bytes:
        raise ExportError(f"expected at most {limits.max_file_bytes:,} bytes in one file, found {len(serialised):,}.")
    return serialised


def check_model(model: onnx.ModelProto, limits: Limits = _DEFAULT) -> None:
    """Check a parsed model's parts without computing anything.

    Raises:
        ExportError: A part is missing, damaged, unknown, or larger than ``limits``.
    """
    if not model.HasField("graph"):
        raise ExportError("expected an ONNX file with a graph, found none: it is no ONNX model, or cut short. Fetch it again.")
    if not _MIN_IR_VERSION <= model.ir_version <= onnx.IR_VERSION:
        raise ExportError(
            f"expected an ONNX file of IR version {_MIN_IR_VERSION} to {onnx.IR_VERSION}, found {model.ir_version}: it is no ONNX "
            "model, or newer than this onnx package."
        )
    if model.training_info:
        raise ExportError("expected a network that is only run, found training information: export it for inference.")
    check_operators(model, limits)
    check_scopes(model)
    check_tensors(model, limits)
    check_expansion(model, limits)


def _regular_size(path: Path, limits: Limits) -> int:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ExportError(f"{path}: expected an ONNX file, found no file of that name: check the path.") from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: expected an ONNX file, found none that can be read ({error}).") from error
    return _check_status(status, limits, f"{path}: ")


def _check_status(status: os.stat_result, limits: Limits, prefix: str = "") -> int:
    if not stat.S_ISREG(status.st_mode):
        raise ExportError(f"{prefix}expected an ONNX file, found a folder, pipe, socket or device: name the .onnx file itself.")
    if status.st_size == 0:
        raise ExportError(f"{prefix}expected an ONNX file, found an empty one: fetch it again.")
    if status.st_size > limits.max_file_bytes:
        raise ExportError(
            f"{prefix}expected at most {limits.max_file_bytes:,} bytes, found {status.st_size:,}: a larger file is no ONNX model, "
            "since protobuf ends at 2 GiB."
        )
    return status.st_size


def _read(path: Path, limits: Limits) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    _check_status(path.stat(), limits)  # before it is opened, since opening a device may already do something
    with os.fdopen(os.open(path, flags), "rb") as file:
        size = _check_status(os.fstat(file.fileno()), limits)
        data = file.read(size)
    if len(data) != size:
        raise ExportError(f"expected {size:,} bytes, found {len(data):,}: the file changed while it was read. Try again.")
    return data
