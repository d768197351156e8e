"""Data sets by name or by folder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec, to_pixels
from convoy.training import plugins
from convoy.training.data.cifar10 import load_cifar10
from convoy.training.data.dataset import Dataset, Split
from convoy.training.data.digits import load_digits
from convoy.training.data.folder import load_folder
from convoy.training.data.location import DataLocation
from convoy.training.data.mnist import load_fashion_mnist, load_mnist
from convoy.training.data.photographs import Progress
from convoy.training.data.plugins import GROUP, load_plugin

_LOADERS: Final[Mapping[str, Callable[[int, float, DataLocation], Dataset]]] = MappingProxyType(
    {
        "digits": lambda seed, fraction, _: load_digits(seed=seed, validation_fraction=fraction),
        "mnist": lambda seed, fraction, location: load_mnist(location, seed=seed, validation_fraction=fraction),
        "fashion-mnist": lambda seed, fraction, location: load_fashion_mnist(location, seed=seed, validation_fraction=fraction),
        "cifar10": lambda seed, fraction, location: load_cifar10(location, seed=seed, validation_fraction=fraction),
    }
)


def dataset_names() -> tuple[str, ...]:
    """The names of all data sets, those of other packages included."""
    return (*_LOADERS, *(name for name in plugins.names(GROUP) if name not in _LOADERS))


def check_dataset_name(name_or_folder: str | Path) -> str:
    """What a run shall record: the name of a data set, or the absolute path of a folder.

    A name that is known wins over a folder of that name; ``./NAME`` always means the folder.

    Raises:
        UsageError: It is neither.
    """
    name = os.fspath(name_or_folder)
    if isinstance(name_or_folder, str) and name in dataset_names():
        return name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if isinstance(name_or_folder, Path) or folder.is_absolute() or len(Path(name).parts) > 1 or name.startswith("."):
        found = "a file" if folder.exists() else "nothing"
        raise UsageError(f"{name}: expected a folder with one sub-folder of images a class, found {found} there.")
    close = difflib.get_close_matches(name, dataset_names(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(dataset_names())}."
    raise UsageError(f"there is no data set {name!r}, and no folder of that name here: {hint}")


def load_dataset(
    name_or_folder: str | Path,
    *,
    seed: int = 0,
    validation_fraction: float = 0.1,
    location: DataLocation | None = None,
    image_size_px: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Load a data set.

    The same data, seed and fraction give the same splits in the same order; the test split depends on the data alone.

    Args:
        name_or_folder: One of ``dataset_names()``, or a folder (see ``docs/data.md``); ``./NAME`` always means a folder.
        seed: Which images make the validation split.
        validation_fraction: The share of the images outside the test split that is held back for validation.
        location: Where to look; the command line passes ``DataLocation.from_environment()``. None: downloads and their cache
            alone.
        image_size_px: Height and width to which images are brought; None leaves them as the data set has them.
        skip_bad: Whether files of a folder that cannot be read are left out, and named in ``Dataset.skipped``.
        progress: Is told how many files of a folder are decoded, of how many.

    Raises:
        UsageError: There is no such data set or folder.
        DataError: It cannot be found, downloaded or read.
        MissingDependencyError: The package that adds it cannot be imported.
    """
    name, where = check_dataset_name(name_or_folder), location or DataLocation()
    if name in _LOADERS:
        return _resized(_LOADERS[name](seed, validation_fraction, where), image_size_px)
    if not Path(name).is_absolute():
        dataset = load_plugin(name, seed=seed, validation_fraction=validation_fraction, location=where)
        return _resized(dataset, image_size_px)
    return load_folder(
        Path(name),
        seed=seed,
        validation_fraction=validation_fraction,
        image_size_px=image_size_px,
        skip_bad=skip_bad,
        progress=progress,
    )


def _resized(dataset: Dataset, image_size_px: int | None) -> Dataset:
    """The data set with its images at another size, brought there as the client would bring them."""
    if image_size_px is None or dataset.image.dims[:2] == (image_size_px, image_size_px):
        return dataset
    image = dataset.image.model_copy(update={"height_px": image_size_px, "width_px": image_size_px})
    return replace(
        dataset,
        image=image,
        train=_resized_split(dataset.train, image),
        validation=_resized_split(dataset.validation, image),
        test=_resized_split(dataset.test, image),
    )


def _resized_split(split: Split, image: ImageSpec) -> Split:
    images = np.empty((len(split), *image.dims), dtype=np.uint8)
    for row in range(len(split)):
        images[row] = to_pixels(split.images[row : row + 1][0], image)
    return replace(split, images=images)
