"""Inputs that are named one by one: lines of a text file or of standard input, a column of a CSV file."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Final, TextIO

from convoy.contract.errors import DataError, ImageError, UsageError
from convoy.serving.scoring.source._entry import Entry, Loaded
from convoy.serving.scoring.source._filesystem import Filesystems, Location, protocol_of, reason_of
from convoy.serving.scoring.source._image_file import IMAGE_SUFFIXES, load_each, read_image_file, suffix_of
from convoy.serving.scoring.source._name import escape, printable, unescape
from convoy.serving.scoring.source._spool import Spool

PATH_COLUMNS: Final = ("path", "file", "filename", "file_name", "image")
_LONGEST_LINE: Final = 1024 * 1024  # what is longer is no list of paths, and must not fill the memory


class NamedFiles:
    """Files that a source names, by paths relative to its own folder or by URLs.

    Args:
        base: The folder that relative paths start from.
        filesystems: Finds the place of a URL.
    """

    def __init__(self, base: Location, filesystems: Filesystems) -> None:
        self._base = base
        self._filesystems = filesystems

    def entry(self, name: str, key: str, true_label: str | None) -> Entry:
        """An entry for one name. Remote files are not asked for size and stamp: that is a request each."""
        size, stamp = -1, ""
        if protocol_of(name) is None and not self._base.files.remote:
            try:
                info = self._base.files.info(self._base.files.join(self._base.path, name))
                if info.kind == "file":
                    size, stamp = info.size, info.stamp
            except OSError:  # an input that cannot be read: reading it says why
                pass
        return Entry(key, escape(name), size, stamp, true_label)

    def load(self, entries: Sequence[Entry]) -> Iterator[Loaded]:
        """Each image's file."""
        remote = self._base.files.remote or any(protocol_of(entry.locator) for entry in entries)
        return load_each(entries, self.read, remote=remote)

    def read(self, entry: Entry) -> bytes | ImageError:
        """One image's file.

        Raises:
            MissingDependencyError: It is a URL, and what reads that is not installed.
        """
        name = unescape(entry.locator)
        try:
            if protocol_of(name) is not None:
                location = self._filesystems.locate(name)
            else:
                location = Location(self._base.files, self._base.files.join(self._base.path, name))
        except UsageError as error:
            return ImageError(str(error))
        return read_image_file(location, entry)


class ListSource:
    """One path a line, or a row.

    Args:
        spec: As given.
        kind: ``list`` or ``paths``.
        read: Opens the list and gives a path and a label for each input; counts what is none.
        named: Finds the files.
    """

    def __init__(
        self, spec: str, kind: str, read: Callable[[Counter[str]], Iterator[tuple[str, str | None]]], named: NamedFiles
    ) -> None:
        self.spec = spec
        self.kind = kind
        self._read = read
        self._named = named
        self._skipped: Mapping[str, int] = {}

    @property
    def skipped(self) -> Mapping[str, int]:
        """Counted by reason, after ``entries``."""
        return self._skipped

    def entries(self) -> Iterator[Entry]:
        """In the list's order; what is named twice is two inputs."""
        skipped: Counter[str] = Counter()
        for name, label in self._read(skipped):
            yield self._named.entry(name, printable(name), label)
        self._skipped = dict(skipped)

    def load(self, entries: Sequence[Entry]) -> Iterator[Loaded]:
        """Each image's file."""
        return self._named.load(entries)

    def block(self, start: int, stop: int) -> None:  # noqa: ARG002  # the protocol's
        """There is no array."""
        return


def lines_of(open_list: Callable[[], IO[bytes]], shown: str) -> Iterator[str]:
    """The lines of an open list that are not blank, without their ends and a byte order mark.

    Raises:
        DataError: It cannot be read, or is no text.
    """
    try:
        with open_list() as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE or b"\0" in line:
                    what = "a NUL byte" if b"\0" in line else f"more than {_LONGEST_LINE:,} bytes"
                    raise DataError(f"{shown}: expected text, a path on each line; found {what} in line {number}.")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield line.decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {reason_of(error)}") from error


def read_lines(lines: Iterator[str]) -> Iterator[tuple[str, None]]:
    """A path a line; blank lines are none."""
    for line in lines:
        if line.strip():
            yield line.rstrip("\r\n"), None


def read_rows(
    lines: Iterator[str], shown: str, delimiter: str, column: str | None, label_column: str | None, skipped: Counter[str]
) -> Iterator[tuple[str, str | None]]:
    """A path a row, and its label.

    Raises:
        UsageError: There is no such column.
        DataError: There are no names of columns, or a row is damaged.
    """
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        place = _path_column(header, column, shown)
        label_place = None if label_column is None else place_of(header, label_column, shown)
        needed = max(place, label_place or 0)
        for row in rows:
            if not row:
                continue
            if len(row) <= needed:
                raise DataError(f"{shown}: line {rows.line_num}: expected {len(header)} columns, found {len(row)}.")
            if row[place]:
                yield row[place], (printable(row[label_place]) or None) if label_place is not None else None
            else:
                skipped["rows without a path"] += 1
    except csv.Error as error:
        raise DataError(f"{shown}: line {rows.line_num}: no row of a CSV file: {error}") from error


def spool_lines(stdin: TextIO) -> Spool:
    """What stands on standard input, kept so that it can be listed twice."""
    binary = getattr(stdin, "buffer", None)
    if binary is not None:
        return Spool.of(binary)
    return Spool.of(io.BytesIO(stdin.read().encode("utf-8", "surrogateescape")))


def place_of(header: Sequence[str], column: str, shown: str) -> int:
    """Where a column stands.

    Raises:
        UsageError: There is none of this name.
    """
    if column not in header:
        raise UsageError(f"{shown}: expected a column {column!r}, found {', '.join(map(printable, header)) or 'none'}.")
    return list(header).index(column)


def _path_column(header: Sequence[str], column: str | None, shown: str) -> int:
    if column is not None:
        return place_of(header, column, shown)
    usual = next((name for name in PATH_COLUMNS if name in header), None)
    if usual is not None:
        return list(header).index(usual)
    if header and suffix_of(header[0]) in IMAGE_SUFFIXES:  # taken for a name, the first image would be missing
        raise DataError(
            f"{shown}: expected the names of the columns in the first line, found {printable(header[0])!r}, which is an image. "
            "Write a first line, path say; or name the list .txt, one path a line."
        )
    if len(header) > 1:
        raise UsageError(
            f"{shown}: expected a column of paths named {', '.join(PATH_COLUMNS)}, or its name (--column); found the columns "
            f"{', '.join(map(printable, header))}."
        )
    return 0
