"""Labelled images in three splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError
from convoy.contract.image import ImageSpec


class Images(Protocol):
    """Images that may be decoded when they are asked for. Where they are a numpy array, they all lie in memory, once."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, channels)."""
        ...

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice | npt.NDArray[np.intp], /) -> npt.NDArray[np.uint8]:
        """The images of a slice, or at given indices and in their order: uint8 (m, height, width, channels)."""
        ...


@dataclass(frozen=True)
class Subset:
    """Some of the images of another source, in an order of their own; none is decoded before it is asked for.

    Attributes:
        images: The other source.
        indices: Which of its images these are, shape (n,).
    """

    images: Images
    indices: npt.NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, channels)."""
        return len(self.indices), *self.images.shape[1:]

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: slice | npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        return self.images[self.indices[key]]


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8, shape (n, height, width, channels), raw pixels; an array, or anything that gives parts of one.
        labels: int64, shape (n,), indices into the data set's ``labels``.
        files: Where each image comes from a file: its path, from the data set's folder on; else empty.
        file_sha256: The digests of these files, uint8, shape (n, 32); None where there are no files.
    """

    images: Images
    labels: npt.NDArray[np.int64]
    files: tuple[str, ...] = ()
    file_sha256: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or len(self.images.shape) != 4 or self.labels.dtype != np.int64:
            raise DataError(
                "expected uint8 images of shape (n, height, width, channels) and int64 labels, "
                f"found {self.images.dtype} {self.images.shape} and {self.labels.dtype}."
            )
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(f"expected a label for each of {len(self.images)} images, found {self.labels.shape} labels.")
        if self.files and len(self.files) != len(self.labels):
            raise DataError(f"expected a file for each of {len(self.images)} images, found {len(self.files)} files.")
        if self.file_sha256 is not None and self.file_sha256.shape != (len(self.labels), hashlib.sha256().digest_size):
            raise DataError(f"expected a SHA-256 digest for each of {len(self.images)} files, found {self.file_sha256.shape}.")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.intp]) -> Split:
        """The images and labels at ``indices``, in that order; images that are not in memory are not decoded for it."""
        return Split(
            self.images[indices] if isinstance(self.images, np.ndarray) else Subset(self.images, indices),
            self.labels[indices],
            tuple(self.files[index] for index in indices) if self.files else (),
            None if self.file_sha256 is None else self.file_sha256[indices],
        )


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
        skipped: Files that were left out because they cannot be read: each one's path, a colon and why.
        remarks: What a person should know about the data: a sentence each.
    """

    name: str
    labels: tuple[str, ...]
    image: ImageSpec
    train: Split
    validation: Split
    test: Split
    skipped: tuple[str, ...] = field(default=(), kw_only=True)
    remarks: tuple[str, ...] = field(default=(), kw_only=True)

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

    def counts(self) -> dict[str, tuple[int, ...]]:
        """How many images each split has of each class, in the order of ``labels``."""
        n = len(self.labels)
        return {name: tuple(np.bincount(split.labels, minlength=n).tolist()) for name, split in self.splits.items()}

    def sha256(self) -> str:
        """The digest of all images and labels, split by split: the same data split alike has the same one.

        Of images that come from files, the files' own digests count, with the rule that makes pixels of them: it is the same
        whether they lie in memory or not, and large sets need not be decoded for it. Of others, the pixels count.
        """
        digest = hashlib.sha256()
        for split in self.splits.values():
            if split.file_sha256 is None:
                digest.update(np.ascontiguousarray(split.images[:]).data)
            else:
                digest.update(self.image.model_dump_json().encode())
                digest.update(np.ascontiguousarray(split.file_sha256).data)
            digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
        return digest.hexdigest()


def draw_stratified(
    labels: npt.NDArray[np.int64], fraction: float, generator: np.random.Generator, *, names: Sequence[str] = ()
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Draw a share of each class.

    Args:
        labels: int64, shape (n,).
        fraction: The share of all images that is drawn; of each class that share to the nearest image below or above, at least
            one and never all.
        generator: Where the randomness comes from.
        names: The names of the classes, for the message.

    Returns:
        The indices drawn and the rest, each in ascending order.

    Raises:
        DataError: A class has fewer than two images.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min(initial=2) < 2:
        least = int(classes[counts.argmin()])
        name = names[least] if names else least
        raise DataError(f"expected at least two images of class {name} to split them, found {counts.min()}.")
    quotas = fraction * counts
    shares = np.floor(quotas).astype(np.int64)
    # what rounding down leaves goes to the classes that lost most by it, so that the sum is the fraction of all
    left = round(fraction * len(labels)) - shares.sum()
    shares[np.argsort(shares - quotas, kind="stable")[:left]] += 1
    drawn = np.zeros(len(labels), dtype=bool)
    for label, share in zip(classes, np.clip(shares, 1, counts - 1), strict=True):
        drawn[generator.permutation(np.flatnonzero(labels == label))[:share]] = True
    return np.flatnonzero(drawn), np.flatnonzero(~drawn)
