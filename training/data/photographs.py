"""Image files as pixels: decoded by several threads, kept decoded as far as a bound on memory allows."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ImageError
from convoy.contract.image import ImageSpec, to_pixels
from convoy.training.data.memory import available_bytes

Progress: TypeAlias = Callable[[int, int], None]
"""Is told how many images of how many are decoded."""

MEMORY_FRACTION: Final = 0.25  # of what is available: the network, its gradients and other people need some too
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_CHUNK: Final = 64  # files between two reports of progress


class Photographs:
    """The pixels of image files, in their order; what ``Images`` asks for.

    All files are read and decoded once, when the value is made: so every damaged file is known before training starts. The
    first of them are kept decoded, up to a bound in bytes; the others are decoded again whenever they are asked for. (A cache
    that throws out the oldest would hit less often when every epoch asks for every image once.)

    Pixels are made by ``to_pixels`` from the whole image, as the client makes them. JPEG's own reduced sizes would decode
    faster, to other pixels than those that are served.

    Attributes:
        paths: The files that can be read.
        image: How they become pixels.
        file_sha256: The digests of their bytes, uint8, shape (n, 32).
        damaged: The files that cannot be read, by their place among the files that were given, with why. They are not in
            ``paths``.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        image: ImageSpec,
        *,
        max_bytes: int | None = None,
        n_threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Read and decode all files once.

        Args:
            paths: The files.
            image: How they become pixels.
            max_bytes: What the pixels that are kept may take; None: a quarter of the memory that is available.
            n_threads: How many decode at a time; None: one a core. The pixels are the same with any number.
            progress: Is told how far it is.
        """
        self.image = image
        self._n_threads = n_threads or _n_cores()
        bound = int(MEMORY_FRACTION * available_bytes()) if max_bytes is None else max_bytes
        n_kept = min(len(paths), bound // int(np.prod(image.dims)))
        self._kept = np.empty((n_kept, *image.dims), dtype=np.uint8)  # the system gives the memory when it is written to
        digests = np.zeros((len(paths), _DIGEST_BYTES), dtype=np.uint8)
        self.damaged: dict[int, ImageError] = {}
        good: list[int] = []
        for index, result in enumerate(self._first(paths, progress)):
            if isinstance(result, ImageError):
                self.damaged[index] = result
                continue
            pixels, digests[index] = result
            if len(good) < n_kept:
                self._kept[len(good)] = pixels
            good.append(index)
        self._kept = self._kept[: len(good)]
        self.paths = tuple(paths[index] for index in good)
        self.file_sha256 = digests[good]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, channels)."""
        return len(self.paths), *self.image.dims

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        return self._kept.dtype

    @property
    def in_memory(self) -> npt.NDArray[np.uint8] | None:
        """All pixels, uint8 (n, height, width, channels); None where they are more than the bound."""
        return self._kept if len(self._kept) == len(self.paths) else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: slice | npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        """The images of a slice, or at given indices and in their order.

        Raises:
            ImageError: A file is gone or damaged since it was read first.
        """
        indices = np.arange(len(self.paths))[key]
        images = np.empty((len(indices), *self.image.dims), dtype=np.uint8)
        kept = indices < len(self._kept)
        images[kept] = self._kept[indices[kept]]
        rows = np.flatnonzero(~kept)
        if len(rows) == 0:
            return images

        def decode(row: int) -> None:
            images[row] = to_pixels(self.paths[indices[row]], self.image)

        # a pool a call, which takes a hundredth of the time of a batch: nothing that a fork or a pickle would break stays
        with ThreadPoolExecutor(self._n_threads) as pool:
            for _ in pool.map(decode, rows.tolist()):
                pass
        return images

    def _first(
        self, paths: Sequence[Path], progress: Progress | None
    ) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | ImageError]:
        with warnings.catch_warnings(), ThreadPoolExecutor(self._n_threads) as pool:
            warnings.filterwarnings("ignore", module=r"PIL\.")  # oddities of files that can be read all the same
            for start in range(0, len(paths), _CHUNK):  # in chunks: what is decoded and not yet stored is bounded
                yield from pool.map(self._read, paths[start : start + _CHUNK])
                if progress is not None:
                    progress(min(start + _CHUNK, len(paths)), len(paths))

    def _read(self, path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | ImageError:
        """Pixels and digest of one file, or why there are none."""
        try:
            pixels = to_pixels(path, self.image)
            digest = hashlib.sha256(path.read_bytes()).digest()
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"{path}: cannot be read: {error.strerror or error}")
        return pixels, np.frombuffer(digest, dtype=np.uint8)


def _n_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
