"""Files that are whole or not there: written aside, flushed to disk, renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from convoy.contract.errors import ContractError

ASIDE_SUFFIX: Final = ".tmp"


class Document(BaseModel):
    """A frozen JSON document on disk that forbids unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def migrate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Bring the fields of a document that an older Convoy wrote to today's form, in memory: files are never rewritten."""
        return fields

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check the document at ``path``; one of an older form is migrated.

        Raises:
            ContractError: The file is missing, is not JSON, or breaks the schema.
        """
        what = cls.__name__
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ContractError(f"{path}: expected a {what}, but it cannot be read: {error.strerror or error}") from error
        try:
            return cls.model_validate_json(cls._today(data))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            raise ContractError(
                f"{path}: expected a {what}; at {where}: {first['msg']}{more}. "
                "The file is damaged or was written by another version of Convoy: make it again."
            ) from error

    @classmethod
    def _today(cls, data: bytes) -> bytes:
        """The document's bytes in today's form. It stays JSON: to pydantic a list is a tuple there, also where it is strict."""
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError):
            return data  # pydantic says what is wrong with it
        return json.dumps(cls.migrate(fields)).encode() if isinstance(fields, dict) else data

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
    """Replace the file at ``path`` by ``data`` in one step, as ``new_file`` does."""
    with new_file(path) as file:
        file.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file aside and rename it over ``path`` at the end.

    The bytes go to a hidden file in the same folder, are flushed to disk and renamed over ``path``. After a crash at any
    point ``path`` holds either its old content or all of the new; where the body raises, nothing half-written stays behind.
    """
    aside = _aside(path)
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that is at ``path`` whole or not at all: the body fills a hidden folder beside it, which is renamed at the end.

    Before the rename everything is flushed to disk. Where the body raises, nothing stays behind; after a crash a folder whose
    name begins with a dot and ends with ``ASIDE_SUFFIX`` may.

    Args:
        path: Where it shall be: nothing is there yet, or a folder, which gives way and is removed only when the new one stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        aside.mkdir()
        yield aside
        sync_tree(aside)
        with _gives_way(path):
            aside.replace(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(path.parent)


@contextmanager
def _gives_way(path: Path) -> Iterator[None]:
    """What is at ``path`` steps aside; it comes back where the body fails, and is removed where it does not."""
    if not path.exists():
        yield
        return
    old = _aside(path)
    path.replace(old)
    try:
        yield
    except BaseException:
        old.replace(path)
        raise
    shutil.rmtree(old)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{ASIDE_SUFFIX}")


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
