"""The images that a person names: files, folders, stdin, and those that appear in a folder."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STDIN: Final = "-"

# fmt: off
IMAGE_SUFFIXES: Final = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
"""Files of a folder whose names end so, in any case, are images: those that ``convoy score`` takes. Files named one by one may
have any name."""

_MOST_BYTES: Final = 1 << 28  # of an image on stdin; a pipe may never end
_MOST_KINDS: Final = 6  # of what was left out, in a message


@dataclass(frozen=True)
class Found:
    """An image that was named or found; nothing but stdin has been read yet.

    Attributes:
        name: What to call it: text that can be printed.
        image: Its path, or its bytes where it came from stdin.
        error: Why there is no image, where that is known already.
    """

    name: str
    image: str | bytes
    error: str | None = None


class Sources:
    """The images behind the words of a command line, one after the other, in the order given.

    A folder stands for the images in it and in the folders within, in natural order (``2.png`` before ``10.png``). No image is in
    memory, and no more names than those of a folder and of the folders around it.

    Args:
        words: Paths of files and folders; ``-`` is one image on stdin.

    Attributes:
        left_out: By folder, how many of its files are no images, by kind; whole once all were iterated over.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = tuple(words)
        self.left_out: dict[str, Counter[str]] = {}

    def __iter__(self) -> Iterator[Found]:
        for word in self._words:
            if word == STDIN:
                yield _on_stdin()
            elif _is_folder(word):
                yield from self._in_folder(word)
            else:
                yield Found(printable(word), word)

    def remarks(self) -> Iterator[str]:
        """What was left out: a sentence a folder."""
        for folder, counts in self.left_out.items():
            if counts:
                yield f"{folder}: left out {describe(counts)}."

    def _in_folder(self, word: str) -> Iterator[Found]:
        name = printable(word)
        counts: Counter[str] = Counter()
        is_empty = True
        for found in walk(Path(word), counts):
            is_empty = False
            yield found
        if is_empty:
            instead = describe(counts) if counts else "an empty folder"
            hint = "Files are taken for images by their suffix (.png, .jpg, ...); name one with another suffix itself."
            yield Found(name, word, f"{name}: expected images in this folder, found {instead}. {hint}")
        else:
            self.left_out[name] = counts


class Watch:
    """Tells of the images that appear in a folder, or in the folders within, and of those that are written again.

    What is there at the start is known. A file is told of when it is not empty and has not changed between two looks: one that is
    still being written waits.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known, _ = self._look()
        self._pending: dict[str, _State] = {}
        self._failures: set[str] = set()  # that were told of

    @property
    def name(self) -> str:
        """The folder, as text that can be printed."""
        return printable(str(self._folder))

    @property
    def n_known(self) -> int:
        """How many images are known."""
        return len(self._known)

    def settled(self) -> list[Found]:
        """Look: the images that are new, in natural order, with what cannot be read; told of at every look until ``done``."""
        seen, failures = self._look()
        if not failures:  # a folder that cannot be read now is no folder whose images have gone
            self._known = {path: state for path, state in self._known.items() if path in seen}
        before = self._pending
        self._pending = {path: state for path, state in seen.items() if state != self._known.get(path)}
        news = [Found(printable(path), path) for path, state in self._pending.items() if state.size and state == before.get(path)]
        news += [found for path, found in failures.items() if path not in self._failures]
        self._failures &= failures.keys()
        return news

    def done(self, found: Found) -> None:
        """Do not tell of this one again, unless it is written again."""
        path = str(found.image)
        if found.error is not None:
            self._failures.add(path)
        elif path in self._pending:
            self._known[path] = self._pending[path]

    def _look(self) -> tuple[dict[str, _State], dict[str, Found]]:
        """Every image with its state, and what cannot be read."""
        seen: dict[str, _State] = {}
        failures: dict[str, Found] = {}
        for found in walk(self._folder, Counter()):
            path = str(found.image)
            if found.error is not None:
                failures[path] = found
                continue
            try:
                status = Path(path).stat()
            except OSError:  # gone meanwhile, or a link to what is not there yet
                continue
            seen[path] = _State(status.st_ino, status.st_mtime_ns, status.st_size)
        return seen, failures


@dataclass(frozen=True)
class _State:
    inode: int
    modified_ns: int
    size: int


def walk(folder: Path, left_out: Counter[str]) -> Iterator[Found]:
    """The images in ``folder`` and in the folders within, in natural order; links are followed where they lead to something new.

    Args:
        folder: Where to begin.
        left_out: Counts what is no image, by kind.

    Yields:
        An image, or a folder that cannot be read, with the reason.
    """
    yield from _walk(folder, frozenset(), left_out)


def describe(counts: Counter[str]) -> str:
    """Counts in words, the most frequent kind first: "5 entries: 3 .txt, 2 hidden"."""
    kinds = sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))
    named = [f"{n:,} {kind}" for kind, n in kinds[:_MOST_KINDS]]
    if others := sum(n for _, n in kinds[_MOST_KINDS:]):
        named.append(f"{others:,} others")
    return f"{counts.total():,} {'entry' if counts.total() == 1 else 'entries'}: {', '.join(named)}"


def printable(path: str) -> str:
    r"""A path as text that any JSON can hold: bytes that are no UTF-8 are written as ``\xNN``, as ``convoy score`` writes them."""
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in path)


def _walk(folder: Path, above: frozenset[tuple[int, int]], left_out: Counter[str]) -> Iterator[Found]:
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in above:
            left_out["linked in a circle"] += 1
            return
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: _natural(entry.name))
    except OSError as error:
        name = printable(str(folder))
        yield Found(name, str(folder), f"{name}: the folder cannot be listed: {error.strerror or error}.")
        return
    for entry in found:
        path = folder / entry.name
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif _is_folder(entry):
            yield from _walk(path, above | {(here.st_dev, here.st_ino)}, left_out)
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            left_out[printable(path.suffix.lower()) or "without a suffix"] += 1
        elif _is_file(entry):
            yield Found(printable(str(path)), str(path))
        else:
            left_out["not regular files"] += 1  # reading one could wait for ever


def _is_folder(path: str | os.DirEntry[str]) -> bool:
    try:
        return path.is_dir() if isinstance(path, os.DirEntry) else stat.S_ISDIR(Path(path).stat().st_mode)
    except OSError:  # what cannot be looked at says why when it is opened
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or a link that leads nowhere: that is an image that cannot be read."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry).exists())
    except OSError:
        return True


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers within names by their value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _on_stdin() -> Found:
    image = sys.stdin.buffer.read(_MOST_BYTES + 1)
    error = None
    if not image:
        error = "stdin: expected an image's bytes, found none."
    elif len(image) > _MOST_BYTES:
        error = f"stdin: expected one image, found more than {_MOST_BYTES:,} bytes."
    return Found(STDIN, image, error)
