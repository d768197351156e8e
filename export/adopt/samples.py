"""Real images to validate a foreign model on."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError
from convoy.contract.image import ImageSpec, to_pixels
from convoy.export.gate.evidence import EvaluationSet

UNLABELLED: Final = -1
"""The label of an image whose class is not known."""
_MAX_NAMED = 5
_MAX_PIXEL_BYTES = 16 << 30


def load_samples(path: Path, image: ImageSpec, labels: tuple[str, ...]) -> EvaluationSet:
    """Read images and, where they are known, their classes.

    Three forms: a folder with one sub-folder a class, named as the class, as the first word of its name (a WordNet id), or with its
    index; a folder of images, whose classes are not known; an ``.npz`` file with ``image``, uint8 (n, H, W, C), and perhaps
    ``label``, whole numbers (n,). Hidden files are left out. Whatever else a folder holds must be an image.

    Args:
        path: The folder or the file.
        image: How each image becomes pixels.
        labels: Class names in the order of the logits.

    Returns:
        The images in the order of their paths, with labels; ``UNLABELLED`` where the class is not known.

    Raises:
        DataError: Nothing is there, an image cannot be read (the message names it), or sub-folders do not fit the class names.
    """
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise DataError(f"{path}: expected a folder of images or an .npz file, found another file.")
        return _from_npz(path, image, labels)
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder of images or an .npz file, found nothing there.")
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir()]
    if folders and files:
        raise DataError(
            f"{path}: expected images alone, or one sub-folder a class alone; found both ({files[0].name}, {folders[0].name})."
        )
    if not folders:
        return _read([(file, UNLABELLED) for file in files], path, image)
    classes = _classes(folders, labels, path)
    found: list[tuple[Path, int]] = []
    for folder, label in zip(folders, classes, strict=True):
        inside = sorted(entry for entry in folder.rglob("*") if not entry.name.startswith(".") and not entry.is_dir())
        found.extend((file, label) for file in inside)
    return _read(found, path, image)


def _read(files: list[tuple[Path, int]], path: Path, image: ImageSpec) -> EvaluationSet:
    if not files:
        raise DataError(f"{path}: expected images, found none.")
    needed = len(files) * int(np.prod(image.dims))
    if needed > _MAX_PIXEL_BYTES:
        raise DataError(
            f"{path}: {len(files)} images of {image.height_px}x{image.width_px} pixels need {needed / 2**30:.0f} GiB, more than "
            f"the {_MAX_PIXEL_BYTES >> 30} that are read: take a part of them (some thousand images are enough)."
        )
    images = np.empty((len(files), *image.dims), dtype=np.uint8)
    for pixels, (file, _) in zip(images, files, strict=True):
        pixels[...] = to_pixels(file, image)
    return EvaluationSet(path.name or str(path), images, np.array([label for _, label in files], dtype=np.int64))


def _classes(folders: list[Path], labels: tuple[str, ...], path: Path) -> list[int]:
    """The index that each sub-folder stands for."""
    names = [folder.name for folder in folders]
    first_words = [label.split()[0] for label in labels if label.split()]
    by_name = {label: index for index, label in enumerate(labels)}
    if not all(name in by_name for name in names) and len(set(first_words)) == len(labels):
        by_name = {**{word: index for index, word in enumerate(first_words)}, **by_name}
    if all(name in by_name for name in names):
        return _distinct([by_name[name] for name in names], names, path)
    if all(name.isdecimal() and int(name) < len(labels) for name in names):
        return _distinct([int(name) for name in names], names, path)
    strangers = [name for name in names if name not in by_name]
    taken = {by_name[name] for name in names if name in by_name}
    absent = [label for index, label in enumerate(labels) if index not in taken]
    lacking = f", and none for {_some(absent)}" if len(absent) <= len(strangers) else ""
    raise DataError(
        f"{path}: expected sub-folders named as the {len(labels)} class names ({_some(labels)}) or with their indices (0 to "
        f"{len(labels) - 1}); found {_some(strangers)} among {len(names)} sub-folders{lacking}."
    )


def _distinct(indices: list[int], names: list[str], path: Path) -> list[int]:
    for i, index in enumerate(indices):
        if (first := indices.index(index)) != i:
            raise DataError(f"{path}: expected one sub-folder a class, found {names[first]!r} and {names[i]!r} for the same class.")
    return indices


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(repr, names[:_MAX_NAMED])) + (", ..." if len(names) > _MAX_NAMED else "")


def _from_npz(path: Path, image: ImageSpec, labels: tuple[str, ...]) -> EvaluationSet:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected an .npz file with the array image, found a file that cannot be read: {error}") from error
    pixels = found.get("image", found.get("images"))
    truth = found.get("label", found.get("labels"))
    if pixels is None:
        raise DataError(f"{path}: expected the array image, and perhaps label; found {', '.join(found) or 'nothing'}.")
    if pixels.dtype != np.uint8 or pixels.shape[1:] != image.dims or not len(pixels):
        raise DataError(
            f"{path}: expected image as raw pixels, uint8 (n, {', '.join(map(str, image.dims))}), "
            f"found {pixels.dtype} {pixels.shape}."
        )
    return EvaluationSet(path.name, pixels, _npz_labels(path, truth, len(pixels), len(labels)))


def _npz_labels(path: Path, truth: npt.NDArray[np.generic] | None, n: int, n_classes: int) -> npt.NDArray[np.int64]:
    if truth is None:
        return np.full(n, UNLABELLED, dtype=np.int64)
    if truth.dtype.kind not in "iu" or truth.shape != (n,):
        raise DataError(f"{path}: expected label as {n} whole numbers, found {truth.dtype} {truth.shape}.")
    indices = truth.astype(np.int64)
    if indices.min() < 0 or indices.max() >= n_classes:
        raise DataError(f"{path}: expected labels from 0 to {n_classes - 1}, found {indices.min()} to {indices.max()}.")
    return indices
