"""Files that are whole or not there: written aside, flushed to disk, renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from convoy.contract.errors import ContractError


class Document(BaseModel):
    """A frozen JSON document on disk that forbids unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check the document at ``path``.

        Raises:
            ContractError: The file is missing, is not JSON, or breaks the schema.
        """
        what = cls.__name__
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ContractError(f"{path}: expected a {what}, but it cannot be read: {error.strerror or error}") from error
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise ContractError(
                f"{path}: expected a {what}; at {where}: {first['msg']} ({error.error_count()} problems in all). "
                "The file is damaged or was written by another version of Convoy: make it again."
            ) from error

    def save(self, path: Path) -> None:
        """Write the document to ``path``, whole or not at all."""
        write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The document as UTF-8 JSON, indented, with a final newline."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 digest of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 digest of the file at ``path``, read in blocks of 1 MiB.

    Raises:
        ContractError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ContractError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data`` in one step.

    The bytes go to a hidden file in the same folder, are flushed to disk and renamed over ``path``. After a crash at any
    point ``path`` holds either its old content or all of ``data``; on an error nothing half-written stays behind.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at ``path`` by ``value`` as indented JSON, in one step."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under ``folder`` to disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))
