"""Images in a column of Parquet files: their bytes, or their paths."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from convoy.contract.errors import DataError, ImageError
from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring.source import _entry
from convoy.serving.scoring.source._cache import Cache
from convoy.serving.scoring.source._entry import Entry, Loaded
from convoy.serving.scoring.source._filesystem import reason_of
from convoy.serving.scoring.source._image_file import load_each
from convoy.serving.scoring.source._list import NamedFiles
from convoy.serving.scoring.source._name import printable
from convoy.serving.scoring.source._parquet_columns import Columns, choose_columns, open_parquet
from convoy.serving.scoring.source._shards import Shards, make_locator, split_locator

_KEPT_GROUPS: Final = 4
_KEPT_BYTES: Final = 512 * 1024 * 1024
_KEPT_FOOTERS: Final = 64


@dataclass(frozen=True)
class _Footer:
    metadata: Any
    columns: Columns
    starts: Sequence[int]  # the first row of each row group, and the number of rows at the end


class ParquetSource:
    """One input a row.

    The key is what the column ``key`` or ``id`` says; else, of a column of paths, the path, and of images FILE#ROW. A path is an
    image file like one of a list, relative to the folder that is scored, or that the file is in.

    Args:
        spec: As given.
        shards: The Parquet files.
        column: The column of images; None for the usual names.
        label_column: The column of labels; None for no labels.
        named: Finds the files that a column of paths names.

    Raises:
        UsageError: The first file has no such columns.
        DataError: The first file cannot be read.
    """

    kind = "parquet"

    def __init__(self, spec: str, shards: Shards, column: str | None, label_column: str | None, named: NamedFiles) -> None:
        self.spec = spec
        self._shards = shards
        self._column = column
        self._label_column = label_column
        self._named = named
        self._footers: Cache[_Footer] = Cache(_KEPT_FOOTERS)
        self._groups: Cache[Any] = Cache(_KEPT_GROUPS, _KEPT_BYTES, lambda group: 0 if group is None else int(group.nbytes))
        first = shards.names[0]
        self._paths = self._footer(first, shards.version(first)).columns.paths

    @property
    def skipped(self) -> Mapping[str, int]:
        """What lay among the files and is none."""
        return dict(Counter(self._shards.skipped))

    def entries(self) -> Iterator[Entry]:
        """Every row, in the order of the files. Of the images' bytes nothing is read."""
        for name in self._shards.names:
            version = self._shards.version(name)
            footer = self._footer(name, version)
            columns = footer.columns
            if columns.paths != self._paths:
                raise DataError(
                    f"{self._shards.shown(name)}: expected a column of the same type as in the first file, found another."
                )
            read = [column for column in (columns.key, columns.label, columns.image if columns.paths else None) if column]
            for group, start in enumerate(footer.starts[:-1]):
                table: Any = self._read(name, version, group, read) if read else None
                values = {column: table.column(column).to_pylist() for column in read}
                for row in range(start, footer.starts[group + 1]):
                    yield self._entry(
                        name, version, columns, row, {column: listed[row - start] for column, listed in values.items()}
                    )

    def load(self, entries: Sequence[Entry]) -> Iterator[Loaded]:
        """Each row's image, from the row groups that were last read where they are."""
        if self._paths:
            return self._named.load(entries)
        self._shards.check(entries)
        return load_each(entries, self._load, remote=False)

    def block(self, start: int, stop: int) -> None:  # noqa: ARG002  # the protocol's
        """There is no array."""
        return

    def _entry(self, name: str, version: str, columns: Columns, row: int, values: Mapping[str, Any]) -> Entry:
        label = columns.label_of(values.get(columns.label or ""))
        key = values.get(columns.key or "")
        if not columns.paths:
            return Entry(printable(f"{name}#{row}" if key is None else str(key)), make_locator(name, str(row)), -1, version, label)
        path = _text(values[columns.image]) or ""
        return self._named.entry(path, printable(path if key is None else str(key)), label)

    def _load(self, entry: Entry) -> Loaded:
        name, place = split_locator(entry)
        shown = f"{self._shards.shown(name)}: row {place}"
        row = int(place)
        footer = self._footer(name, entry.stamp)
        group = bisect_right(footer.starts, row) - 1
        try:
            column = self._groups.get(
                (name, entry.stamp, group), lambda: self._read(name, entry.stamp, group, [footer.columns.image]).column(0)
            )
        except DataError as error:  # a damaged page: the other row groups may be whole
            return ImageError(f"{shown}: {error}")
        value = column[row - footer.starts[group]].as_py()
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):  # Hugging Face's way to keep an image beside the table
                return self._named.read(self._named.entry(str(value["path"]), entry.key, None))
            value = value.get("bytes")
        if not value:
            return ImageError(f"{shown}: expected the bytes of an image, found {'none (null)' if value is None else 'zero bytes'}.")
        if len(value) > _entry.MOST_BYTES:
            return ImageError(f"{shown}: {len(value):,} bytes are more than the {_entry.MOST_BYTES:,} that are read of an image.")
        return bytes(value)

    def _footer(self, name: str, version: str) -> _Footer:
        def make() -> _Footer:
            shown = self._shards.shown(name)
            with self._open(name) as file, open_parquet(file, shown) as parquet:
                columns = choose_columns(parquet.schema_arrow, self._column, self._label_column, shown)
                metadata = parquet.metadata
                rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                return _Footer(metadata, columns, list(accumulate(rows, initial=0)))

        return self._footers.get((name, version), make)

    def _read(self, name: str, version: str, group: int, columns: list[str]) -> Any:
        shown = self._shards.shown(name)
        arrow = import_arrow()
        try:
            with self._open(name) as file, open_parquet(file, shown, self._footer(name, version).metadata) as parquet:
                return parquet.read_row_group(group, columns=columns, use_threads=False)
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"{shown}: row group {group} cannot be read: {error}") from error

    def _open(self, name: str) -> Any:
        try:
            return self._shards.files.open(self._shards.path(name))
        except OSError as error:
            raise DataError(f"{self._shards.shown(name)}: cannot be read: {reason_of(error)}") from error


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
