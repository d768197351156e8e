"""Lists of files with labels: ``train.txt``, ``val.txt``, ``test.txt``, as text or CSV."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from convoy.contract.errors import DataError
from convoy.training.data.tree import Tree, names

SPLIT_NAMES: Final[Mapping[str, str]] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""How splits are called in the names of folders and lists."""

_LIST: Final = re.compile(rf"(?:.*[-_. ])?({'|'.join(SPLIT_NAMES)})\.(?:txt|csv|tsv)", re.IGNORECASE)
_PATH_COLUMNS: Final = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img", "name")
_LABEL_COLUMNS: Final = ("label", "class", "category", "target", "class_name", "label_name")


def find_lists(tree: Tree) -> dict[str, Path]:
    """The list of each split in the folder itself; empty where there is none for training.

    ``train.txt`` is one, and so is ``anything_train.txt``.

    Raises:
        DataError: There are two for one split.
    """
    found: dict[str, Path] = {}
    for path in tree.others:
        if path.parent == tree.root and (match := _LIST.fullmatch(path.name)):
            split = SPLIT_NAMES[match[1].lower()]
            if split in found:
                raise DataError(f"{tree.root}: expected one list for {split}, found {found[split].name} and {path.name}.")
            found[split] = path
    return found if "train" in found else {}


def read_list(path: Path) -> list[tuple[str, str]]:
    """The files of a list with their labels, as written there.

    A line is a path and a label, apart by a tab, a comma or a space (the last one, so that paths may have spaces); the first of
    these that every line has is the one. Where the first line names columns (``filename,label``), these count and others are
    left out. Empty lines and lines that begin with ``#`` are left out.

    Raises:
        DataError: It is no text, is empty, or a line has no label.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a list of files and labels in UTF-8; it cannot be read: {error}.") from error
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise DataError(f"{path}: expected lines of a file and its label, found none.")
    separator = next((mark for mark in ("\t", ",") if all(mark in line for _, line in lines)), " ")
    rows = list(_rows(path, lines, separator))
    columns = _columns(rows[0][1])
    if columns is None:
        return [(fields[0], fields[-1]) for _, fields in rows]
    if any(len(fields) <= max(columns) for _, fields in rows):
        n = next(n for n, fields in rows if len(fields) <= max(columns))
        raise DataError(f"{path}, line {n}: expected as many columns as the first line names.")
    return [(fields[columns[0]], fields[columns[1]]) for _, fields in rows[1:]]


class Places:
    """Finds the files that lists name."""

    def __init__(self, tree: Tree) -> None:
        self._root = tree.root
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for image in tree.images:
            self._by_name[image.name].append(image)

    def find(self, name: str) -> Path:
        """Where ``name`` is: as a path from the folder, or as the name of one file somewhere in it.

        A file that is nowhere is where the list says: reading it will say that it is not there.

        Raises:
            DataError: Files of that name lie in several places.
        """
        path = self._root / name
        if path.is_file():
            return path
        found = self._by_name.get(name, [])
        if len(found) > 1:
            raise DataError(
                f"{self._root}: a list names {name}, which lies in several places: {names(found)}. "
                f"Write the path from {self._root} into the list."
            )
        return found[0] if found else path


def class_names(labels: Sequence[str], paths: Sequence[Path]) -> dict[str, str]:
    """What the labels of lists are called.

    Args:
        labels: As written in the lists, one a file.
        paths: The files.

    Returns:
        A name for each label: the label itself; or, where all are numbers and the files of each lie in a folder of its own
        that no other has, the folder's name.
    """
    homes: dict[str, set[str]] = defaultdict(set)
    for label, path in zip(labels, paths, strict=True):
        homes[label].add(path.parent.name)
    folders = [next(iter(home)) for home in homes.values() if len(home) == 1]
    if all(label.isdecimal() for label in homes) and len(folders) == len(homes) == len(set(folders)):
        return dict(zip(homes, folders, strict=True))
    return {label: label for label in homes}


def _rows(path: Path, lines: Sequence[tuple[int, str]], separator: str) -> Iterator[tuple[int, list[str]]]:
    for n, line in lines:
        fields = line.strip().rsplit(maxsplit=1) if separator == " " else next(csv.reader([line], delimiter=separator))
        fields = [field.strip() for field in fields]
        if len(fields) < 2 or not fields[0] or not fields[-1]:
            raise DataError(f"{path}, line {n}: expected a file and its label, apart by a tab, a comma or a space; found {line!r}.")
        yield n, fields


def _columns(fields: Sequence[str]) -> tuple[int, int] | None:
    """Where a header says that the file and the label stand; None where it is no header."""
    lowered = [field.lower() for field in fields]
    path = next((lowered.index(name) for name in _PATH_COLUMNS if name in lowered), None)
    label = next((lowered.index(name) for name in _LABEL_COLUMNS if name in lowered), None)
    return None if path is None or label is None else (path, label)
