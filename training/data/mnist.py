"""MNIST and Fashion-MNIST: 60,000 and 10,000 grey images of 28x28 pixels each, in four IDX files."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from convoy.contract.errors import DataError, MissingDependencyError
from convoy.training.data import digits
from convoy.training.data.dataset import Dataset, Split, draw_stratified
from convoy.training.data.digits import IMAGE
from convoy.training.data.idx import read_idx
from convoy.training.data.location import DataLocation

_FILES: Final = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class _Source:
    """One of the two sets.

    Attributes:
        name: Its name in the catalogue; of the folder in the cache too.
        title: Its name in messages.
        labels: Its classes.
        torchvision: The class of ``torchvision.datasets`` that fetches it.
        folders: Where it lies below the person's own data.
        system: Where a package of the operating system puts it.
        advice: What to do where it is not there.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    torchvision: str
    folders: tuple[str, ...]
    system: tuple[Path, ...] = ()
    advice: str = ""


_MNIST: Final = _Source(
    name="mnist",
    title="MNIST",
    labels=digits.LABELS,
    torchvision="MNIST",
    folders=("mnist", "mnist/raw", "MNIST/raw"),
    advice="Set CONVOY_DATA to a folder that has the four IDX files (plain or .gz) in mnist/, or train with the digits that need "
    "no files: --data digits; for a reader of amounts --set handwriting=digits.",
)
_FASHION: Final = _Source(
    name="fashion-mnist",
    title="Fashion-MNIST",
    labels=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    torchvision="FashionMNIST",
    folders=("fashion-mnist", "fashion-mnist/raw", "FashionMNIST/raw"),
    system=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's package dataset-fashion-mnist
    advice="Set CONVOY_DATA to a folder that has the four IDX files (plain or .gz) in fashion-mnist/; "
    "Debian and Ubuntu have them as the package dataset-fashion-mnist.",
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
    return _load(_MNIST, location, seed, validation_fraction)


def load_fashion_mnist(location: DataLocation, *, seed: int = 0, validation_fraction: float = 0.1) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747): clothes and shoes in MNIST's form.

    Looked for as ``load_mnist`` does, in folders called ``fashion-mnist`` or ``FashionMNIST``, then where Debian's package
    ``dataset-fashion-mnist`` puts it.

    Args:
        location: Where to look.
        seed: Which of the 60,000 make the validation split.
        validation_fraction: Their share.

    Returns:
        28x28 grey, light on dark; the test split is the official one.

    Raises:
        DataError: The files are not there and cannot be fetched, or one is damaged.
        MissingDependencyError: They must be fetched and torchvision is not installed.
    """
    return _load(_FASHION, location, seed, validation_fraction)


def _load(source: _Source, location: DataLocation, seed: int, validation_fraction: float) -> Dataset:
    folder = _find(source, location) or _download(source, location)
    training = _read(source, folder, "train")
    in_validation, in_train = draw_stratified(training.labels, validation_fraction, np.random.default_rng(seed))
    return Dataset(
        name=source.name,
        labels=source.labels,
        image=IMAGE,
        train=training.take(in_train),
        validation=training.take(in_validation),
        test=_read(source, folder, "t10k"),
    )


def _read(source: _Source, folder: Path, part: str) -> Split:
    images_path = _locate(folder, f"{part}-images-idx3-ubyte")
    labels_path = _locate(folder, f"{part}-labels-idx1-ubyte")
    if images_path is None or labels_path is None:
        raise DataError(f"{folder}: expected the {part} images and labels of {source.title}; a file is gone.")
    images, labels = read_idx(images_path, n_dims=3), read_idx(labels_path, n_dims=1)
    if images.shape[1:] != IMAGE.dims[:2]:
        raise DataError(f"{images_path}: expected images of 28x28 pixels, found {images.shape[1]}x{images.shape[2]}.")
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images):,} labels, as many as images in {images_path}; found {len(labels):,}."
        )
    if labels.max(initial=0) >= len(source.labels):
        raise DataError(f"{labels_path}: expected labels 0 to 9, found {labels.max()}.")
    return Split(images[..., np.newaxis], labels.astype(np.int64))


def _candidates(source: _Source, location: DataLocation) -> list[Path]:
    own = [] if location.root is None else [location.root / folder for folder in source.folders]
    return [*own, *source.system, location.cache / source.name]


def _find(source: _Source, location: DataLocation) -> Path | None:
    """The first folder that has the files; a folder that has only some of them is an error, not a reason to look elsewhere."""
    for folder in _candidates(source, location):
        there = [name for name in _FILES if _locate(folder, name) is not None]
        if len(there) == len(_FILES):
            return folder
        if there:
            missing = [name for name in _FILES if name not in there]
            raise DataError(f"{folder}: expected the four files of {source.title} (plain or .gz), missing: {', '.join(missing)}.")
    return None


def _locate(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _download(source: _Source, location: DataLocation) -> Path:
    """Fetch the four files with torchvision, aside, and move them into the cache when all are there."""
    absent = f"{source.title} is in none of {', '.join(str(folder) for folder in _candidates(source, location))}"
    if not location.download:
        raise DataError(f"{absent}. {source.advice}")
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingDependencyError(f"{absent}, and fetching it needs torchvision. {source.advice}") from error
    kept = location.cache / source.name
    try:
        location.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=location.cache, prefix=f".{source.name}.", suffix=".tmp") as aside:
            with contextlib.redirect_stdout(sys.stderr):  # torchvision tells its progress; stdout is for results
                fetched = getattr(datasets, source.torchvision)(aside, download=True)
            shutil.rmtree(kept, ignore_errors=True)
            Path(fetched.raw_folder).rename(kept)
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError), a wrong checksum, a full disk
        reason = " ".join(str(error).split()).removesuffix(".")  # torchvision's reason is several lines long
        raise DataError(f"{absent}, and fetching it failed: {reason}. {source.advice}") from error
    return kept
