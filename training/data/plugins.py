"""Data sets that other packages bring, by entry point.

::

    # pyproject.toml of the package
    [project.entry-points."convoy.datasets"]
    stamps = "my_package.stamps:load"

    # my_package/stamps.py
    def load(*, seed: int, validation_fraction: float, location: DataLocation) -> Dataset: ...
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol

from convoy.contract.errors import DataError
from convoy.training.data.dataset import Dataset
from convoy.training.data.location import DataLocation

GROUP: Final = "convoy.datasets"


class DatasetLoader(Protocol):
    """What an entry point of ``convoy.datasets`` names."""

    def __call__(self, *, seed: int, validation_fraction: float, location: DataLocation) -> Dataset:
        """The data set.

        Args:
            seed: Which of the images outside the test split make the validation split; the test split does not depend on it.
            validation_fraction: Their share.
            location: Where to look for files.

        Raises:
            DataError: It cannot be found, downloaded or read.
        """
        ...


def plugins() -> dict[str, EntryPoint]:
    """The entry points by name; none of their packages is imported."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def load_plugin(entry: EntryPoint, *, seed: int, validation_fraction: float, location: DataLocation) -> Dataset:
    """The data set of an entry point.

    Raises:
        DataError: Its package cannot be imported, or it gives something else.
    """
    package = f" of the package {entry.dist.name}" if entry.dist is not None else ""
    name = f"the data set {entry.name!r}{package} ({entry.value})"
    try:
        loader: DatasetLoader = entry.load()
    except Exception as error:  # anything may happen in a module of somebody else
        raise DataError(f"{name} cannot be imported: {type(error).__name__}: {error}. Repair or remove the package.") from error
    try:
        dataset = loader(seed=seed, validation_fraction=validation_fraction, location=location)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name} failed: {type(error).__name__}: {error}.") from error
    if not isinstance(dataset, Dataset):
        raise DataError(f"{name}: expected a convoy.training.data.Dataset, found {type(dataset).__name__}.")
    return dataset
