"""Finding out what a name stands for."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, TextIO

from convoy.contract.errors import DataError, UsageError
from convoy.serving.scoring.source._array import ArraySource
from convoy.serving.scoring.source._entry import Source
from convoy.serving.scoring.source._filesystem import FileInfo, Filesystems, LocalFiles, Location, protocol_of, reason_of
from convoy.serving.scoring.source._folder import FolderSource, no_image
from convoy.serving.scoring.source._glob import Pattern, expand_braces, has_braces, is_pattern
from convoy.serving.scoring.source._idx import MAGIC
from convoy.serving.scoring.source._image_file import IMAGE_SUFFIXES, suffix_of
from convoy.serving.scoring.source._list import ListSource, NamedFiles, lines_of, read_lines, read_rows, spool_lines
from convoy.serving.scoring.source._name import printable
from convoy.serving.scoring.source._parquet import ParquetSource
from convoy.serving.scoring.source._shards import Shards
from convoy.serving.scoring.source._skipped import describe_skipped
from convoy.serving.scoring.source._spool import Spool
from convoy.serving.scoring.source._tar import TarSource
from convoy.serving.scoring.source._walk import walk

ACCEPTED: Final = (
    "Accepted: a folder of images or a pattern ('scans/**/*.png'); a list of paths or URLs (.txt, .lst, a column of .csv or .tsv, "
    "or - for standard input); Parquet with a column of images or paths, and tar shards (a file, a folder, a pattern, "
    "'train-{000..009}.tar'); uint8 images as .npy, .npz or IDX (also gzipped), shape (N, H, W) or (N, H, W, C). "
    "All but - also behind a URL (s3://, gs://, https://, ...)."
)
_PARQUET: Final = (".parquet", ".pq")
_TAR: Final = (".tar", ".tar.gz", ".tgz")
_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class _Wish:
    spec: str
    shown: str
    filesystems: Filesystems
    labels_from_folders: bool
    column: str | None
    label_column: str | None

    def refuse(self, what: str, *, folders: bool = True, column: bool = True, label_column: bool = True) -> None:
        """Say early that something was asked for that this kind of source has not."""
        if folders and self.labels_from_folders:
            raise UsageError(f"{self.shown}: labels can only be taken from folders, and this is {what}.")
        for wanted, option in ((column and self.column, "column"), (label_column and self.label_column, "label_column")):
            if wanted:
                raise UsageError(f"{self.shown}: {what} has no columns: expected no {option}, found {wanted!r}.")


def open_source(
    spec: str | Path,
    *,
    labels_from_folders: bool = False,
    column: str | None = None,
    label_column: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    stdin: TextIO | None = None,
) -> Source:
    """Find out what ``spec`` is, and see that it can be read and is not empty.

    What exists under the name, as it is written, comes before what it would mean as a pattern. A folder with any image is a folder
    of images; one without is what it holds else: Parquet files or tar shards.

    Args:
        spec: A path, a pattern, a URL, or ``-``. A URL is text: ``Path`` would lose a slash of it.
        labels_from_folders: Take the first folder below a folder of images (below a pattern's first wildcard) as the true label.
        column: The column of paths or images of CSV and Parquet, or the array of images of ``.npz``; None for the usual names.
        label_column: The column of true labels of CSV and Parquet, the array of labels of ``.npz``, or ``cls`` for tar shards.
        storage_options: What fsspec is given for URLs: keys, an endpoint.
        stdin: What ``-`` stands for; None for standard input.

    Raises:
        UsageError: It is none of these, or something is asked for that it has not.
        DataError: It cannot be read, or holds no input.
        MissingDependencyError: What reads it is not installed.
    """
    text = os.fspath(spec)
    filesystems = Filesystems(text, storage_options)
    wish = _Wish(text, printable(text), filesystems, labels_from_folders, column, label_column)
    source = _stdin(wish, stdin) if text == "-" else _found(wish, filesystems.locate(text))
    inputs = source.entries()
    if next(inputs, None) is None:
        raise DataError(f"{wish.shown}: nothing to score: it is empty{describe_skipped(source.skipped, before='; skipped: ')}.")
    if labels_from_folders and not any(entry.true_label is not None for entry in source.entries()):
        raise UsageError(f"{wish.shown}: --labels-from-folders takes sub-folders as labels, and there is no image in any.")
    return source


def _found(wish: _Wish, location: Location) -> Source:
    try:
        info = location.files.info(location.path)
    except OSError as error:
        # The braces first: a pattern's wildcards are read folder by folder, and braces name what must be there.
        if has_braces(location.path):
            return _braces(wish, location)
        if is_pattern(location.path):
            pattern = Pattern(location.path)
            return _tree(wish, Location(location.files, pattern.base), pattern)
        raise UsageError(f"{wish.shown}: cannot be read: {reason_of(error)}.") from error
    if info.kind == "folder":
        return _tree(wish, location, None)
    if info.kind == "other":
        raise UsageError(f"{wish.shown}: neither a folder nor a regular file. {ACCEPTED}")
    return _file(wish, location, info)


def _tree(wish: _Wish, root: Location, pattern: Pattern | None) -> Source:
    shards: dict[str, list[str]] = {"parquet": [], "tar": []}
    skipped: Counter[str] = Counter()
    for relative, child in walk(root.files, root.path, pattern, skipped):
        reason = no_image(child)
        if not reason:
            wish.refuse("a folder of images", folders=False)
            return FolderSource(wish.spec, root, pattern, labels_from_folders=wish.labels_from_folders)
        kind = _shard_kind(child.name)
        if kind and child.kind == "file":
            shards[kind].append(relative)
        else:
            skipped[reason] += 1
    kinds = [kind for kind, names in shards.items() if names]
    if not kinds:
        what = "no image, Parquet file or tar shard is there" if pattern is None else "nothing matches"
        raise DataError(f"{wish.shown}: nothing to score: {what}{describe_skipped(skipped, before='; skipped: ')}.")
    if len(kinds) > 1:
        raise UsageError(
            f"{wish.shown}: expected Parquet files or tar shards, found both. Name one kind: '{wish.shown}/**/*.tar', say."
        )
    return _sharded(wish, kinds[0], Shards(root.files, root.path, shards[kinds[0]], dict(skipped)))


def _braces(wish: _Wish, location: Location) -> Source:
    paths = expand_braces(location.path)
    kinds = {_shard_kind(path) for path in paths}
    if kinds not in ({"tar"}, {"parquet"}) or is_pattern(location.path):
        raise UsageError(f"{wish.shown}: braces name tar or Parquet files, all of one kind and without other wildcards. {ACCEPTED}")
    folders = [path.split("/")[:-1] for path in (min(paths), max(paths))]
    shared = 0
    while shared < min(map(len, folders)) and folders[0][shared] == folders[1][shared]:
        shared += 1
    root = "/".join(folders[0][:shared])
    start = len(root) + 1 if shared else 0
    return _sharded(wish, kinds.pop(), Shards(location.files, root or "/" * bool(shared), [path[start:] for path in paths]))


def _sharded(wish: _Wish, kind: str, shards: Shards) -> Source:
    wish.refuse("a set of tar shards" if kind == "tar" else "a Parquet table", column=False, label_column=False)
    if kind == "parquet":
        named = NamedFiles(Location(shards.files, shards.root), wish.filesystems)
        return ParquetSource(wish.spec, shards, wish.column, wish.label_column, named)
    wish.refuse("a set of tar shards", label_column=False)
    if wish.label_column not in (None, "cls"):
        raise UsageError(
            f"{wish.shown}: the labels of tar shards are their .cls members: expected 'cls', found {wish.label_column!r}."
        )
    return TarSource(wish.spec, shards, with_label=wish.label_column == "cls")


def _file(wish: _Wish, location: Location, info: FileInfo) -> Source:
    files, path = location.files, location.path
    name = path.partition("?")[0] if protocol_of(wish.spec) in ("http", "https") else path
    suffix = suffix_of(name)
    if kind := _shard_kind(name):
        return _sharded(wish, kind, Shards(files, files.parent(path), [path[len(files.parent(path)) :].lstrip("/")]))
    if suffix in (".txt", ".lst", *_DELIMITERS):
        return _list(wish, location, suffix)
    try:
        with files.open(path) as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{wish.shown}: cannot be read: {reason_of(error)}") from error
    form = _array_form(suffix, head)
    if form:
        wish.refuse("an array", column=False, label_column=False)
        return ArraySource(wish.spec, location, info, form, column=wish.column, label_column=wish.label_column)
    if suffix in IMAGE_SUFFIXES:
        raise UsageError(f"{wish.shown}: one image is no set: `convoy predict` classifies images named one by one. {ACCEPTED}")
    what = "neither text nor an array of images" if b"\0" in head else f"a file that ends in {suffix or 'no suffix'}"
    raise UsageError(f"{wish.shown}: expected a set of images, found {what}. {ACCEPTED}")


def _array_form(suffix: str, head: bytes) -> str:
    if suffix in (".npy", ".npz"):
        return "npz" if head.startswith(b"PK") else "npy"
    if head.startswith(MAGIC):
        return "idx"
    return "idx.gz" if head.startswith(b"\x1f\x8b") else ""


def _list(wish: _Wish, location: Location, suffix: str) -> Source:
    wish.refuse("a list", column=False, label_column=False)
    files, path = location.files, location.path
    named = NamedFiles(Location(files, files.parent(path)), wish.filesystems)

    def lines() -> Iterator[str]:
        return lines_of(lambda: files.open(path), wish.shown)

    if suffix not in _DELIMITERS:
        wish.refuse("a list of paths")
        return ListSource(wish.spec, "list", lambda _: read_lines(lines()), named)
    delimiter = _DELIMITERS[suffix]

    def rows(skipped: Counter[str]) -> Iterator[tuple[str, str | None]]:
        return read_rows(lines(), wish.shown, delimiter, wish.column, wish.label_column, skipped)

    return ListSource(wish.spec, "list", rows, named)


def _stdin(wish: _Wish, stdin: TextIO | None) -> Source:
    wish.refuse("standard input")
    spool = spool_lines(sys.stdin if stdin is None else stdin)
    named = NamedFiles(Location(LocalFiles(), ""), wish.filesystems)
    opener: Callable[[], IO[bytes]] = partial(Spool.open, spool)
    return ListSource(wish.spec, "paths", lambda _: read_lines(lines_of(opener, "standard input")), named)


def _shard_kind(name: str) -> str:
    lowered = name.lower()
    return "parquet" if lowered.endswith(_PARQUET) else "tar" if lowered.endswith(_TAR) else ""
