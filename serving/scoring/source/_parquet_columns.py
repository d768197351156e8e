"""Which columns of a Parquet file hold the images, the keys and the labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from convoy.contract.errors import DataError, UsageError
from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring.source._list import PATH_COLUMNS
from convoy.serving.scoring.source._name import printable

_IMAGE_COLUMNS: Final = ("image", "bytes", "image_bytes", "img", "content", "png", "jpg", "jpeg", "webp")
_KEY_COLUMNS: Final = ("key", "id")


@dataclass(frozen=True)
class Columns:
    """What is read of a file.

    Attributes:
        image: The column of images.
        paths: Whether it holds paths rather than bytes.
        key: The column of keys, if there is one.
        label: The column of labels, if one was asked for.
        label_names: The names of labels that are stored as numbers; empty where they are stored as they are.
    """

    image: str
    paths: bool
    key: str | None
    label: str | None
    label_names: Sequence[str] = ()

    def label_of(self, value: Any) -> str | None:
        """The true label that a value stands for."""
        if value is None:
            return None
        if self.label_names and isinstance(value, int):
            return self.label_names[value] if 0 <= value < len(self.label_names) else None
        return printable(str(value))


def choose_columns(schema: Any, column: str | None, label_column: str | None, shown: str) -> Columns:
    """Choose by name, and where none was given by the usual names and the types.

    Args:
        schema: A ``pyarrow.Schema``.
        column: The column of images, by name.
        label_column: The column of labels, by name.
        shown: The file, for messages.

    Raises:
        UsageError: There is no such column, or none that can be taken.
    """
    holds = {field.name: kind for field in schema if (kind := _holds(field.type)) is not None}
    found = ", ".join(f"{printable(field.name)} ({field.type})" for field in schema) or "none"
    for wanted in (column, label_column):
        if wanted is not None and wanted not in schema.names:
            raise UsageError(f"{shown}: expected a column {wanted!r}, found {found}.")
    if column is not None and column not in holds:
        raise UsageError(f"{shown}: expected bytes of images or paths in the column {column!r}, found {schema.field(column).type}.")
    image = column or _usual(holds, label_column)
    if image is None:
        raise UsageError(
            f"{shown}: expected one column with bytes of images (binary, or struct<bytes, path>) or with paths, named "
            f"{', '.join(dict.fromkeys((*_IMAGE_COLUMNS, *PATH_COLUMNS)))}; found {found}. Name the column."
        )
    key = next((name for name in _KEY_COLUMNS if name in schema.names and name != image and _plain(schema.field(name).type)), None)
    names = () if label_column is None else _label_names(schema.metadata or {}, label_column)
    return Columns(image, holds[image] == "paths", key, label_column, names)


def _usual(holds: dict[str, str], label_column: str | None) -> str | None:
    for names, kind in ((_IMAGE_COLUMNS, "bytes"), ((*PATH_COLUMNS, *_IMAGE_COLUMNS), None)):
        for name in names:
            if name in holds and name != label_column and kind in (None, holds[name]):
                return name
    in_bytes = [name for name, kind in holds.items() if kind == "bytes"]
    return in_bytes[0] if len(in_bytes) == 1 else None


def _holds(kind: Any) -> str | None:
    types = import_arrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind):  # Hugging Face's images
        place = kind.get_field_index("bytes")
        return "bytes" if place >= 0 and _holds(kind.field(place).type) == "bytes" else None
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "bytes"
    return "paths" if types.is_string(kind) or types.is_large_string(kind) else None


def _plain(kind: Any) -> bool:
    return not import_arrow().types.is_nested(kind)


def _label_names(metadata: dict[bytes, bytes], column: str) -> Sequence[str]:
    """Hugging Face writes the names of a ClassLabel into the file."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return ()


def open_parquet(file: Any, shown: str, metadata: Any = None) -> Any:
    """A ``pyarrow.parquet.ParquetFile``.

    Raises:
        DataError: It is none.
    """
    arrow = import_arrow()
    try:
        return arrow.parquet.ParquetFile(arrow.PythonFile(file, mode="r"), metadata=metadata)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{shown}: expected a Parquet file, found none that can be read: {error}") from error
