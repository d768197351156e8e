"""An array of images in one file."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError, SourceChangedError, UsageError
from convoy.serving.scoring.source._entry import Entry, Loaded
from convoy.serving.scoring.source._filesystem import FileInfo, Location, reason_of
from convoy.serving.scoring.source._idx import open_idx
from convoy.serving.scoring.source._name import printable
from convoy.serving.scoring.source._numpy import open_npy, open_npz
from convoy.serving.scoring.source._shards import check_version
from convoy.serving.scoring.source._spool import Spool


class ArraySource:
    """uint8 images, shape (N, H, W) or (N, H, W, C). Key and locator are the index.

    A file of this machine is mapped where it is not compressed; what is compressed or remote is copied to a temporary file first,
    which is mapped.

    Args:
        spec: As given.
        location: The file.
        info: What is known of it.
        form: ``npy``, ``npz``, ``idx`` or ``idx.gz``.
        column: The array of images in ``.npz``.
        label_column: The array of labels in ``.npz``.

    Raises:
        UsageError: It holds no such arrays.
        DataError: It is damaged.
    """

    kind = "array"
    skipped: Mapping[str, int] = {}  # nothing is ever skipped

    def __init__(
        self,
        spec: str,
        location: Location,
        info: FileInfo,
        form: str,
        *,
        column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        self.spec = spec
        self._location = location
        self._version = info.version
        self._labels: npt.NDArray[Any] | None = None
        if (column or label_column) and form != "npz":
            raise UsageError(f"{location}: expected no column: only the arrays of .npz files, and tables, have names.")
        try:
            with location.files.open(location.path) as file:
                self._mapped = not location.files.remote and form != "idx.gz"
                images = self._read(file, form, column, label_column)
        except OSError as error:
            raise DataError(f"{location}: cannot be read: {reason_of(error)}") from error
        well_shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
        if images.dtype != np.uint8 or not well_shaped or 0 in images.shape[1:]:
            raise UsageError(
                f"{location}: expected uint8 images of shape (N, H, W) or (N, H, W, C) with 1, 3 or 4 channels, "
                f"found {images.dtype} {images.shape}."
            )
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @property
    def version(self) -> str:
        """The stamp of every image."""
        return self._version

    @property
    def image_bytes(self) -> int:
        """The size of every image."""
        return int(np.prod(self._images.shape[1:]))

    def labels(self, start: int, stop: int) -> list[str | None]:
        """The true labels of some images."""
        if self._labels is None:
            return [None] * (stop - start)
        return [printable(str(label)) for label in self._labels[start:stop]]

    def entries(self) -> Iterator[Entry]:
        """One an image, in order."""
        size, version = self.image_bytes, self._version
        for index in range(len(self)):
            (label,) = self.labels(index, index + 1)
            yield Entry(str(index), str(index), size, version, label)

    def load(self, entries: Sequence[Entry]) -> Iterator[Loaded]:
        """Views of the array, shape (H, W, C): the last axis is 1 for grey, or a width of 3 would look like colours."""
        for version in {entry.stamp for entry in entries}:
            self._check(version)
        for entry in entries:
            image = self._images[int(entry.locator)]
            yield image[..., None] if image.ndim == 2 else image

    def block(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """A view."""
        self._check(self._version)
        return self._images[start:stop]

    def _check(self, version: str) -> None:
        if self._mapped:
            check_version(self._location.files, self._location.path, version)
        elif version != self._version:  # of a copy only the question remains whether it is of the file that was listed
            raise SourceChangedError(
                f"{self._location}: it changed since it was listed: expected {version} (stamp:bytes), found {self._version}. "
                "Put the old file back, or start a new run."
            )

    def _read(self, file: IO[bytes], form: str, column: str | None, label_column: str | None) -> npt.NDArray[Any]:
        shown = str(self._location)
        if not self._mapped:
            try:
                if form == "idx.gz":
                    with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
                        spool = Spool.of(unzipped)
                else:
                    spool = Spool.of(file)
            except (OSError, EOFError, zlib.error) as error:
                what = "unzipped" if form == "idx.gz" else "copied"
                raise DataError(f"{shown}: cannot be {what} to a temporary file: {error}") from error
            file = spool.open()
        if form == "npz":
            images, self._labels = open_npz(file, column, label_column, shown)
            return images
        return open_npy(file, shown) if form == "npy" else open_idx(file, shown)
