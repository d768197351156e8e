"""The files below a folder, in an order that is the same everywhere."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from convoy.contract.errors import DataError

IMAGE_SUFFIXES: Final = frozenset(
    (".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
_HIDDEN: Final = (".", "__MACOSX")  # how names begin that a person does not mean to give


@dataclass(frozen=True)
class Tree:
    """What lies below a folder. Each path begins with the folder's own.

    Attributes:
        root: The folder.
        images: Files whose names end as an image's, also links that lead nowhere.
        others: Files that are not images.
        folders: All folders below it.
        loops: Links to a folder that they are in themselves; they are not followed.
        n_hidden: Files and folders that are left out because their name begins with a dot (or is macOS's ``__MACOSX``).
    """

    root: Path
    images: tuple[Path, ...]
    others: tuple[Path, ...]
    folders: tuple[Path, ...]
    loops: tuple[Path, ...]
    n_hidden: int

    def below(self, folder: Path) -> tuple[Path, ...]:
        """The images in ``folder`` and in the folders within."""
        return tuple(path for path in self.images if path.is_relative_to(folder))

    def folders_in(self, folder: Path) -> tuple[Path, ...]:
        """The folders that lie in ``folder`` itself."""
        return tuple(path for path in self.folders if path.parent == folder)

    def remarks(self, used: Iterable[Path] = ()) -> tuple[str, ...]:
        """What was left out, a sentence each.

        Args:
            used: Files that are no images and were read all the same: lists.
        """
        left_out = set(self.others) - set(used)
        found = [f"{len(left_out):,} that are not images ({suffixes(left_out)})"] if left_out else []
        found += [f"{self.n_hidden:,} hidden ones"] if self.n_hidden else []
        remarks = [f"files that were left out: {' and '.join(found)}."] if found else []
        if self.loops:
            remarks.append(f"links that were not followed, since they lead back to a folder that they are in: {names(self.loops)}.")
        return tuple(remarks)


def read_tree(root: Path) -> Tree:
    """Everything below ``root``; links to folders are followed.

    Names are in natural order: ``2.png`` comes before ``10.png``.

    Raises:
        DataError: A folder cannot be read.
    """
    images: list[Path] = []
    others: list[Path] = []
    folders: list[Path] = []
    loops: list[Path] = []
    n_hidden = 0

    def visit(folder: Path, above: frozenset[tuple[int, int]]) -> None:
        nonlocal n_hidden
        here = folder.stat()
        within = above | {(here.st_dev, here.st_ino)}
        for path in _entries(folder):
            if path.name.startswith(_HIDDEN):
                n_hidden += 1
            elif path.is_dir():
                found = path.stat()
                if (found.st_dev, found.st_ino) in within:
                    loops.append(path)
                    continue
                folders.append(path)
                visit(path, within)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                images.append(path)
            else:
                others.append(path)

    try:
        visit(root, frozenset())
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: cannot be read: {error.strerror or error}. Give this account the right to read it."
        ) from error
    return Tree(root, tuple(images), tuple(others), tuple(folders), tuple(loops), n_hidden)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers within names by their value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def names(paths: Iterable[object], n: int = 5) -> str:
    """The first ``n`` of ``paths`` and how many more there are, in words; bytes that are no text are shown as such."""
    shown = [str(path).encode("utf-8", "backslashreplace").decode() for path in paths]
    more = f" and {len(shown) - n:,} more" if len(shown) > n else ""
    return ", ".join(shown[:n]) + more


def suffixes(paths: Iterable[Path]) -> str:
    """How many of ``paths`` end in what, the most frequent first."""
    counts = Counter(path.suffix.lower() or "no suffix" for path in paths)
    return names(f"{suffix}: {n:,}" for suffix, n in counts.most_common())


def _entries(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as found:
        yield from (folder / name for name in sorted((entry.name for entry in found), key=natural_key))
