"""The Parquet file that a scoring run writes: its schema, and a writer that leaves it whole or not there.

Schema, version 1 (in the file's key-value metadata as ``convoy.schema_version``). One row an input, in the source's order:

================  ===============================  ===================================================================
column            Arrow type                       meaning
================  ===============================  ===================================================================
``source``        string                           the path relative to the source, the line of the list, or the index
``label``         string                           the most likely class
``index``         int32                            its place in the model's outputs
``probability``   float32                          in [0, 1]
``top_k``         list<struct<label, probability>> the likeliest classes, ``label`` included, the likeliest first
``model_name``    string                           the model that answered
``model_version`` string                           the one version that the whole run was scored with
``model_sha256``  string                           the digest of its ONNX file, where the server tells it
``latency_ms``    float32                          how long the request took in which the image travelled
``error``         string                           why the input has no answer; null where it was scored
``true_label``    string                           only with labels from folders: the class that the folder names
================  ===============================  ===================================================================

A row has either ``error`` or ``label``, ``index``, ``probability`` and ``top_k``; the others of these are null.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

from typing_extensions import Self

from convoy.contract.errors import MissingDependencyError, ScoringError, UsageError
from convoy.contract.files import sync_folder

if sys.platform != "win32":
    import fcntl

SCHEMA_VERSION: Final = "1"
ROW_GROUP_ROWS: Final = 16_384
"""Rows that are kept in memory before they go to the file as one row group."""

_ASIDE_END: Final = re.compile(r"\.[0-9a-f]{8}\.tmp")


def make_schema(*, with_true_label: bool, metadata: Mapping[str, str]) -> Any:
    """The ``pyarrow.Schema`` of the table; ``metadata`` goes into the file beside ``convoy.schema_version``."""
    arrow = import_arrow()
    candidate = arrow.struct([arrow.field("label", arrow.string(), False), arrow.field("probability", arrow.float32(), False)])
    fields = [
        arrow.field("source", arrow.string(), False),
        arrow.field("label", arrow.string()),
        arrow.field("index", arrow.int32()),
        arrow.field("probability", arrow.float32()),
        arrow.field("top_k", arrow.list_(arrow.field("item", candidate, False))),
        arrow.field("model_name", arrow.string(), False),
        arrow.field("model_version", arrow.string(), False),
        arrow.field("model_sha256", arrow.string()),
        arrow.field("latency_ms", arrow.float32()),
        arrow.field("error", arrow.string()),
    ]
    if with_true_label:
        fields.append(arrow.field("true_label", arrow.string()))
    return arrow.schema(fields, {"convoy.schema_version": SCHEMA_VERSION, **metadata})


def import_arrow() -> Any:
    """``pyarrow``, with its Parquet part.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            f"scoring writes Parquet and needs pyarrow, which cannot be imported ({error}). "
            "Install it: pip install '.[score]' in Convoy's folder"
        ) from error
    return pyarrow


def check_out(out: Path, *, force: bool) -> None:
    """See early that the table can be written where it shall be.

    Raises:
        UsageError: It has another name than a Parquet file, its folder is not there, it is a folder, or a file that is there and
            ``force`` is not given.
    """
    if out.is_dir():
        raise UsageError(f"{out}: expected the name of a Parquet file to write, found a folder.")
    if out.suffix.lower() not in (".parquet", ".pq"):
        raise UsageError(f"{out}: a Parquet table is written, in no other format: expected a name that ends in .parquet or .pq.")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist; make it first.")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"{out}: the folder {out.parent} cannot be written to.")
    if out.exists() and not force:
        raise UsageError(f"{out}: a file is there already. Give another name, or --force to replace it.")


def remove_leftovers(out: Path) -> None:
    """Remove what killed runs into ``out`` left aside. A run that lives holds a lock on its file, which so stays."""
    for left in out.parent.iterdir():
        if not (left.name.startswith(f".{out.name}.") and _ASIDE_END.fullmatch(left.name[len(out.name) + 1 :])):
            continue
        try:
            with left.open("r+b") as file:
                if _locked(file, wait=False):
                    left.unlink()
        except OSError:  # somebody else's, or gone meanwhile: it is in nobody's way
            continue


def _open_aside(out: Path) -> tuple[Path, BinaryIO]:
    """A new file beside ``out``, locked as long as it is open."""
    while True:
        aside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
        file = aside.open("xb")
        try:
            _locked(file, wait=True)  # where the file system has no locks nobody gets one, and nothing is ever taken for a leftover
            if aside.exists():  # else another run has taken it for a leftover, between the two lines above
                return aside, file
        except BaseException:
            file.close()
            aside.unlink(missing_ok=True)
            raise
        file.close()


def _locked(file: BinaryIO, *, wait: bool) -> bool:
    """Lock an open file, and say whether that was possible; closing it unlocks it."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class TableFile:
    """A Parquet file under way, written aside. Leaving the context renames it into place; an exception removes it.

    Args:
        out: Where it shall stand.
        schema: Its schema.

    Raises:
        ScoringError: The disk refuses it (full, say). Nothing half-written stays behind.
    """

    def __init__(self, out: Path, schema: Any) -> None:
        self._out = out
        self._schema = schema
        self._aside = out  # until __enter__ has made one
        self._rows: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def __enter__(self) -> Self:
        arrow = import_arrow()
        try:
            remove_leftovers(self._out)
            self._aside, self._file = _open_aside(self._out)
            self._writer = arrow.parquet.ParquetWriter(self._file, self._schema, compression="zstd")
        except BaseException as error:
            self._discard()
            raise self._explained(error) from error
        return self

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; every ``ROW_GROUP_ROWS`` rows one row group goes to the file."""
        self._rows += rows
        if len(self._rows) >= ROW_GROUP_ROWS:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._commit()
        except OSError as failed:
            raise self._explained(failed) from failed
        finally:
            self._discard()  # of a file in place nothing is left to discard

    def _flush(self) -> None:
        try:
            self._writer.write_table(import_arrow().Table.from_pylist(self._rows, self._schema))
        except OSError as error:
            raise self._explained(error) from error
        self._rows = []

    def _commit(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
        self._writer = None
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        if sys.platform == "win32":
            self._file.close()  # Windows renames no open file
        self._aside.replace(self._out)  # elsewhere under the lock, or another run could take it for a leftover
        sync_folder(self._out.parent)

    def _discard(self) -> None:
        writer, file = self._writer, self._file
        self._writer = self._file = None
        try:
            if writer is not None:
                writer.close()  # writes a footer, which a full disk refuses again
        except OSError:
            pass
        finally:
            try:
                if file is not None:
                    file.close()
            except OSError:
                pass
            finally:
                if self._aside != self._out:
                    self._aside.unlink(missing_ok=True)

    def _explained(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError):
            return error
        return ScoringError(
            f"{self._out}: cannot be written: {error.strerror or error}. Nothing half-written was kept; make room or name another "
            "place, and run the same command again."
        )
