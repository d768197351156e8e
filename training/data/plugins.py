"""Data sets that other packages bring, by entry point.

::

    # pyproject.toml of the package
    [project.entry-points."convoy.datasets"]
    stamps = "my_package.stamps:load"

    # my_package/stamps.py
    def load(*, seed: int, validation_fraction: float, location: DataLocation) -> Dataset: ...
"""

from __future__ import annotations

from typing import Final, Protocol

from convoy.contract.errors import DataError
from convoy.training import plugins
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


def load_plugin(name: str, *, seed: int, validation_fraction: float, location: DataLocation) -> Dataset:
    """The data set that a package adds under ``name``.

    Raises:
        MissingDependencyError: The package cannot be imported, or two add it.
        DataError: It gives something else than a data set, or fails.
    """
    loader: DatasetLoader | None = plugins.find(GROUP, name, what="a function that loads a Dataset", fits=callable)
    if loader is None:
        raise DataError(f"the data set {name!r}: no package adds it any more.")
    try:
        dataset = loader(seed=seed, validation_fraction=validation_fraction, location=location)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the data set {name!r} ({GROUP}) failed: {type(error).__name__}: {error}. "
            "Repair or uninstall the package that adds it."
        ) from error
    if not isinstance(dataset, Dataset):
        raise DataError(f"the data set {name!r} ({GROUP}): expected a Dataset, found {type(dataset).__name__}.")
    return dataset
