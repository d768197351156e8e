"""One input, and a set of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ImageError

MOST_BYTES: Final = 256 * 1024 * 1024
"""A file of more bytes is not read: no image that a classifier takes is so large, and many threads read at once."""

Loaded: TypeAlias = "bytes | npt.NDArray[np.uint8] | ImageError"
"""An encoded image, the pixels (H, W, C) of an array's image, or why there is neither."""


@dataclass(frozen=True, slots=True)
class Entry:
    r"""One input, in text and numbers that any table or JSON file can hold.

    Attributes:
        key: Its name in the table. Bytes that are no UTF-8 and control characters are shown as ``\xff`` and ``\n``. A list may name
            the same input twice.
        locator: What its source needs to find it again.
        size: Its bytes, encoded; -1 where they are not known.
        stamp: Changes when the content does; empty where nothing tells. Of the whole file where a file holds many inputs.
        true_label: Its class, where the source says so and was asked.
    """

    key: str
    locator: str
    size: int
    stamp: str
    true_label: str | None


class Source(Protocol):
    """A set of inputs in a stable order.

    Attributes:
        spec: What ``open_source`` was given.
        kind: folder, list, parquet, array, tar, or paths.
        skipped: What is no input, counted by reason; complete once ``entries`` is exhausted.
    """

    @property
    def spec(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def skipped(self) -> Mapping[str, int]: ...

    def entries(self) -> Iterator[Entry]:
        """List the inputs as they are found. No image is read.

        Raises:
            DataError: A folder, a list or a file of images cannot be read.
        """

    def load(self, entries: Sequence[Entry]) -> Iterator[Loaded]:
        """Read inputs: one answer for each entry, in order. Safe under threads.

        Raises:
            SourceChangedError: A file that holds many inputs is no longer the one that was listed.
        """

    def block(self, start: int, stop: int) -> npt.NDArray[np.uint8] | None:
        """The images ``start`` to ``stop`` of an array, uint8, shape (n, H, W) or (n, H, W, C), a view where possible; else None.

        Raises:
            SourceChangedError: The array's file is no longer the one that was opened.
        """
