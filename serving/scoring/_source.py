"""What is scored: a folder, a list of paths, or an array of images, each as a sequence of items in a stable order."""

from __future__ import annotations

import gzip
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError, ImageError, UsageError
from convoy.contract.image import ImageLike

# fmt: off
IMAGE_SUFFIXES: Final = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
"""Files of a folder whose names end so, in any case, are inputs. One that turns out to be no image has its row, with the reason."""

_ACCEPTED: Final = (
    "Accepted: a folder of images, a text file with one path a line, or uint8 images as .npy, .npz or IDX (also gzipped), "
    "shape (N, H, W) or (N, H, W, C)."
)
_OBJECTS: Final = re.compile("[Oo]bject arrays cannot be loaded|Python objects in dtype")  # numpy's words for pickled arrays
_IDX_MAGIC: Final = b"\x00\x00\x08"  # two zeros, "unsigned byte"; the number of axes follows


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        source: Its name in the table: a path relative to the source, a line of the list, or an index into the array.
        true_label: Its class, where the folder says so.
        load: Gives the image; raises ImageError where there is none.
    """

    source: str
    true_label: str | None
    load: Callable[[], ImageLike]


@dataclass(frozen=True)
class Source:
    """A set of inputs.

    Attributes:
        n: How many there are.
        items: Iterates over them, always in the same order.
        skipped: What in the folder is no input, counted by reason.
        classes: The names of the sub-folders that are labels; empty where there are none.
    """

    n: int
    items: Callable[[], Iterator[Item]]
    skipped: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def open_source(path: Path, *, labels_from_folders: bool = False) -> Source:
    """Find out what ``path`` is and list what is in it.

    A folder is read with its sub-folders, sorted by name level by level. Hidden files and folders (a leading dot), files without an
    image's suffix, links to folders and what is no regular file are skipped and counted.

    Args:
        path: A folder, a text file with one path a line (relative to the file's own folder), ``.npy``, ``.npz`` or IDX.
        labels_from_folders: Take the first folder below ``path`` as each image's true label.

    Raises:
        UsageError: It is none of these, or labels are wanted from something that is no folder.
        DataError: It cannot be read, or holds no input.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}. {_ACCEPTED}") from error
    if stat.S_ISDIR(mode):
        source = _folder(path, labels_from_folders)
    elif labels_from_folders:
        raise UsageError(f"{path}: labels can only be taken from folders, and this is a file.")
    elif not stat.S_ISREG(mode):
        raise UsageError(f"{path}: neither a folder nor a regular file. {_ACCEPTED}")
    else:
        source = _file(path)
    if source.n == 0:
        raise DataError(f"{path}: nothing to score{describe_skipped(source.skipped, before='; skipped: ')}. {_ACCEPTED}")
    return source


def describe_skipped(skipped: Mapping[str, int], *, before: str = "") -> str:
    """Words for what was skipped: "2 hidden, 1 .txt"; empty where nothing was."""
    return before + ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) if skipped else ""


def _folder(root: Path, labels_from_folders: bool) -> Source:
    skipped: Counter[str] = Counter()
    paths = list(_walk(root, "", skipped))
    label_of = _first_folder if labels_from_folders else _no_label

    def items() -> Iterator[Item]:
        for relative in paths:
            yield Item(printable(relative), label_of(relative), lambda file=root / relative: _regular_file(file))  # type: ignore[misc]

    classes = sorted({label for path in paths if (label := label_of(path)) is not None})
    if labels_from_folders and paths and not classes:
        raise UsageError(f"{root}: --labels-from-folders takes sub-folders as labels, and there is no image in any.")
    return Source(len(paths), items, skipped, tuple(classes))


def _walk(root: Path, below: str, skipped: Counter[str]) -> Iterator[str]:
    try:
        with os.scandir(root / below) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:  # images would be missing from the table without a word
        raise DataError(f"{root / below}: cannot be listed: {error.strerror or error}") from error
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith("."):
            skipped["hidden"] += 1
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(root, path, skipped)
        elif entry.is_dir():
            skipped["links to folders"] += 1  # they may lead in a circle, or out of the source
        elif (suffix := os.path.splitext(entry.name)[1].lower()) not in IMAGE_SUFFIXES:  # noqa: PTH122  # may be no UTF-8
            skipped[f"{printable(suffix)} files" if suffix else "files without suffix"] += 1
        elif entry.is_file() or entry.is_symlink():  # a link that leads nowhere is an input that cannot be read
            yield path
        else:
            skipped["pipes, sockets or devices"] += 1


def _file(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _array(_numpy(path, head), path)
    if head.startswith(_IDX_MAGIC):
        return _array(_idx(path, head, None), path)
    if head.startswith(b"\x1f\x8b"):
        return _array(_idx_unzipped(path), path)
    if suffix in IMAGE_SUFFIXES:
        raise UsageError(f"{path}: one image is no set: `convoy predict` classifies images named one by one. {_ACCEPTED}")
    if b"\0" in head:
        raise UsageError(f"{path}: neither text nor an array of images. {_ACCEPTED}")
    return _list(path)


def _list(path: Path) -> Source:
    lines = [os.fsdecode(line) for line in path.read_bytes().splitlines() if line.strip()]

    def items() -> Iterator[Item]:
        for line in lines:
            yield Item(printable(line), None, lambda file=path.parent / line: _regular_file(file))  # type: ignore[misc]

    return Source(len(lines), items)


def _array(images: npt.NDArray[Any], path: Path) -> Source:
    grey = images.ndim == 3
    well_shaped = grey or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
    if images.dtype != np.uint8 or not well_shaped or 0 in images.shape[1:]:
        raise UsageError(f"{path}: expected uint8 images, found {images.dtype} {images.shape}. {_ACCEPTED}")

    def items() -> Iterator[Item]:
        for index in range(len(images)):
            # A trailing axis, so that a grey image of width 3 is not taken for one row of colours.
            yield Item(str(index), None, lambda index=index: np.asarray(images[index][..., None] if grey else images[index]))  # type: ignore[misc]

    return Source(len(images), items)


def _numpy(path: Path, head: bytes) -> npt.NDArray[Any]:
    try:
        if head.startswith(b"PK"):
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return _images_of(archive, path)
        # Mapped: an array that is larger than memory is read as it is used. Pickled objects can not be mapped.
        mapped: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
        return mapped
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ValueError) and _OBJECTS.search(str(error)):  # an array of another dtype, like any other
            raise UsageError(
                f"{path}: expected uint8 images, found pickled Python objects, which are never loaded. {_ACCEPTED}"
            ) from error
        raise DataError(f"{path}: cannot be read as a numpy file of images: {error}") from error


def _images_of(archive: Mapping[str, npt.NDArray[Any]], path: Path) -> npt.NDArray[Any]:
    names = list(archive)
    name = names[0] if len(names) == 1 else next((name for name in ("image", "images", "x") if name in names), None)
    if name is None:
        raise UsageError(f"{path}: expected one array, or one named 'image', 'images' or 'x', found {names}.")
    return archive[name]


def _idx_unzipped(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unzipped: {error}") from error
    return _idx(path, content[:64], content)


def _idx(path: Path, head: bytes, content: bytes | None) -> npt.NDArray[np.uint8]:
    """The images of an IDX file, the form of the MNIST files: magic number, extents (big-endian, 4 bytes each), then the bytes.

    Args:
        path: The file, mapped where ``content`` is None.
        head: Its first bytes.
        content: All of it where it had to be unzipped.
    """
    axes = head[3] if head.startswith(_IDX_MAGIC) and len(head) >= 4 else 0
    if axes not in (3, 4) or len(head) < 4 + 4 * axes:
        raise UsageError(f"{path}: expected an IDX file of images (unsigned bytes, 3 or 4 axes). {_ACCEPTED}")
    offset = 4 + 4 * axes
    shape = tuple(int(extent) for extent in np.frombuffer(head[4:offset], ">u4"))
    size = (len(content) if content is not None else path.stat().st_size) - offset
    if size != prod(shape):
        raise DataError(f"{path}: expected {prod(shape)} bytes of images {shape}, found {size}. The file is damaged or cut short.")
    if content is not None or size == 0:  # nothing can not be mapped
        return np.frombuffer((content or b"")[offset:], np.uint8).reshape(shape)
    return np.memmap(path, np.uint8, "r", offset, shape)


def _regular_file(path: Path) -> Path:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ImageError(f"{printable(path)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):  # reading a pipe could wait for ever
        raise ImageError(f"{printable(path)}: expected an image, found {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}.")
    return path


def printable(path: str | os.PathLike[str]) -> str:
    r"""A path as text that any table can hold: bytes that are no UTF-8 are written as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _first_folder(relative: str) -> str | None:
    folder, slash, _ = relative.partition("/")
    return printable(folder) if slash else None


def _no_label(relative: str) -> None:  # noqa: ARG001  # the same signature as _first_folder
    return None
