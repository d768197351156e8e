"""MNIST: 60,000 and 10,000 handwritten digits of 28x28 pixels."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from convoy.contract.errors import DataError, MissingDependencyError
from convoy.training.data.dataset import Dataset, Split, draw_stratified
from convoy.training.data.digits import IMAGE, LABELS
from convoy.training.data.idx import read_idx
from convoy.training.data.location import DataLocation

_FILES: Final = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def load_mnist(location: DataLocation, *, seed: int = 0, validation_fraction: float = 0.1) -> Dataset:
    """MNIST (LeCun, Cortes, Burges) from its four IDX files.

    They are looked for in the folders ``mnist``, ``mnist/raw`` and ``MNIST/raw`` of ``location.root``, then among the
    downloads in ``location.cache``; else torchvision fetches them.

    Args:
        location: Where to look.
        seed: Which of the 60,000 make the validation split.
        validation_fraction: Their share.

    Returns:
        28x28 grey, light strokes on dark; the test split is the official one.

    Raises:
        DataError: The files are not there and cannot be fetched, or one is damaged.
        MissingDependencyError: They must be fetched and torchvision is not installed.
    """
    folder = _find(location) or _download(location)
    training = _read(folder, "train")
    in_validation, in_train = draw_stratified(training.labels, validation_fraction, np.random.default_rng(seed))
    return Dataset(
        name="mnist",
        labels=LABELS,
        image=IMAGE,
        train=training.take(in_train),
        validation=training.take(in_validation),
        test=_read(folder, "t10k"),
    )


def _read(folder: Path, part: str) -> Split:
    images_path = _locate(folder, f"{part}-images-idx3-ubyte")
    labels_path = _locate(folder, f"{part}-labels-idx1-ubyte")
    if images_path is None or labels_path is None:
        raise DataError(f"{folder}: expected the {part} images and labels of MNIST; a file is gone.")
    images, labels = read_idx(images_path, n_dims=3), read_idx(labels_path, n_dims=1)
    if images.shape[1:] != IMAGE.dims[:2]:
        raise DataError(f"{images_path}: expected images of 28x28 pixels, found {images.shape[1]}x{images.shape[2]}.")
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images):,} labels, as many as images in {images_path}; found {len(labels):,}."
        )
    if labels.max(initial=0) >= len(LABELS):
        raise DataError(f"{labels_path}: expected labels 0 to 9, found {labels.max()}.")
    return Split(images[..., np.newaxis], labels.astype(np.int64))


def _candidates(location: DataLocation) -> list[Path]:
    own = (
        [] if location.root is None else [location.root / "mnist", location.root / "mnist" / "raw", location.root / "MNIST" / "raw"]
    )
    return [*own, location.cache / "mnist"]


def _find(location: DataLocation) -> Path | None:
    """The first folder that has the files; a folder that has only some of them is an error, not a reason to look elsewhere."""
    for folder in _candidates(location):
        there = [name for name in _FILES if _locate(folder, name) is not None]
        if len(there) == len(_FILES):
            return folder
        if there:
            missing = [name for name in _FILES if name not in there]
            raise DataError(f"{folder}: expected the four files of MNIST (plain or .gz), missing: {', '.join(missing)}.")
    return None


def _locate(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _download(location: DataLocation) -> Path:
    """Fetch the four files with torchvision, aside, and move them into the cache when all are there."""
    looked = ", ".join(str(folder) for folder in _candidates(location))
    advice = "Set CONVOY_DATA to a folder that has the four IDX files (plain or .gz) in mnist/, or train with --data digits."
    if not location.download:
        raise DataError(f"MNIST is in none of {looked}. {advice}")
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise MissingDependencyError(f"MNIST is in none of {looked}, and fetching it needs torchvision. {advice}") from error
    kept = location.cache / "mnist"
    try:
        location.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=location.cache, prefix=".mnist.", suffix=".tmp") as aside:
            with contextlib.redirect_stdout(sys.stderr):  # torchvision tells its progress; stdout is for results
                fetched = MNIST(aside, download=True)
            shutil.rmtree(kept, ignore_errors=True)
            Path(fetched.raw_folder).rename(kept)
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError), a wrong checksum, a full disk
        reason = " ".join(str(error).split()).removesuffix(".")  # torchvision's reason is several lines long
        raise DataError(f"MNIST is in none of {looked}, and fetching it failed: {reason}. {advice}") from error
    return kept
