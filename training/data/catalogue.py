"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from convoy.contract.errors import UsageError
from convoy.training.data.dataset import Dataset
from convoy.training.data.digits import load_digits
from convoy.training.data.location import DataLocation
from convoy.training.data.mnist import load_mnist

_LOADERS: Final[Mapping[str, Callable[[int, float, DataLocation], Dataset]]] = MappingProxyType(
    {
        "digits": lambda seed, validation_fraction, _: load_digits(seed=seed, validation_fraction=validation_fraction),
        "mnist": lambda seed, validation_fraction, location: load_mnist(
            location, seed=seed, validation_fraction=validation_fraction
        ),
    }
)


def dataset_names() -> tuple[str, ...]:
    """The names of all data sets."""
    return tuple(_LOADERS)


def check_dataset_name(name: str) -> str:
    """Return ``name`` where there is such a data set.

    Raises:
        UsageError: There is none.
    """
    if name not in _LOADERS:
        close = difflib.get_close_matches(name, _LOADERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_LOADERS)}."
        raise UsageError(f"there is no data set {name!r}: {hint}")
    return name


def load_dataset(name: str, *, seed: int = 0, validation_fraction: float = 0.1, location: DataLocation | None = None) -> Dataset:
    """Load a data set whole into memory.

    The same name, seed and fraction give the same splits in the same order; the test split depends on the name alone.

    Args:
        name: ``digits`` or ``mnist``.
        seed: Which images make the validation split.
        validation_fraction: The share of the images outside the test split that is held back for validation.
        location: Where to look; the command line passes ``DataLocation.from_environment()``. None: downloads and their cache
            alone.

    Raises:
        UsageError: There is no such data set.
        DataError: It cannot be found, downloaded or read.
    """
    return _LOADERS[check_dataset_name(name)](seed, validation_fraction, location or DataLocation())
