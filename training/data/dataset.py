"""Labelled images in three splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError
from convoy.contract.image import ImageSpec


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8, shape (n, height, width, channels), raw pixels.
        labels: int64, shape (n,), indices into the data set's ``labels``.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.labels.dtype != np.int64:
            raise DataError(
                "expected uint8 images of shape (n, height, width, channels) and int64 labels, "
                f"found {self.images.dtype} {self.images.shape} and {self.labels.dtype}."
            )
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(f"expected a label for each of {len(self.images)} images, found {self.labels.shape} labels.")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.intp]) -> Split:
        """The images and labels at ``indices``, in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """A labelled set of images.

    Attributes:
        name: Its name.
        labels: Class names; a label is an index into them.
        image: How any image becomes such pixels.
        train: What the weights are fitted to.
        validation: What chooses the best epoch.
        test: What is measured once, at the end.
    """

    name: str
    labels: tuple[str, ...]
    image: ImageSpec
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            if len(split) == 0:
                raise DataError(f"{self.name}: expected images in the {name} split, found none.")
            if split.images.shape[1:] != self.image.dims:
                raise DataError(f"{self.name}: expected {name} images {self.image.dims}, found {split.images.shape[1:]}.")
            if split.labels.min() < 0 or split.labels.max() >= len(self.labels):
                raise DataError(
                    f"{self.name}: expected labels 0 to {len(self.labels) - 1} in the {name} split, "
                    f"found {split.labels.min()} to {split.labels.max()}."
                )

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def sha256(self) -> str:
        """The digest of all pixels and labels, split by split: the same data split alike has the same one."""
        digest = hashlib.sha256()
        for split in self.splits.values():
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
        return digest.hexdigest()


def draw_stratified(
    labels: npt.NDArray[np.int64], fraction: float, generator: np.random.Generator
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Draw a share of each class.

    Args:
        labels: int64, shape (n,).
        fraction: The share of all images that is drawn; of each class that share to the nearest image below or above, at least
            one and never all.
        generator: Where the randomness comes from.

    Returns:
        The indices drawn and the rest, each in ascending order.

    Raises:
        DataError: A class has fewer than two images.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min(initial=2) < 2:
        raise DataError(f"expected at least two images of class {classes[counts.argmin()]} to split them, found {counts.min()}.")
    quotas = fraction * counts
    shares = np.floor(quotas).astype(np.int64)
    # what rounding down leaves goes to the classes that lost most by it, so that the sum is the fraction of all
    left = round(fraction * len(labels)) - shares.sum()
    shares[np.argsort(shares - quotas, kind="stable")[:left]] += 1
    drawn = np.zeros(len(labels), dtype=bool)
    for label, share in zip(classes, np.clip(shares, 1, counts - 1), strict=True):
        drawn[generator.permutation(np.flatnonzero(labels == label))[:share]] = True
    return np.flatnonzero(drawn), np.flatnonzero(~drawn)
