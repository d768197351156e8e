"""Values by name, in memory as far as they fit and on disk beyond."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MEMORY_BYTES = 256 << 20


class Values(Mapping[str, npt.NDArray[Any]]):
    """Arrays by name. What is beyond the memory limit is written to a temporary folder and mapped back when it is read.

    Args:
        memory_bytes: How much stays in memory. The folder goes when the object does.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._left_bytes = memory_bytes
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._files: dict[str, Path] = {}
        self._folder: Path | None = None
        self._n_written = 0

    def add(self, name: str, value: npt.NDArray[Any]) -> None:
        """Keep a copy of ``value``."""
        self.drop(name)
        if value.nbytes <= self._left_bytes:
            self._left_bytes -= value.nbytes
            self._arrays[name] = np.array(value, order="C")
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="convoy-trace-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._n_written += 1
        path = self._folder / f"{self._n_written}.npy"
        np.save(path, value)
        self._files[name] = path

    def drop(self, name: str) -> None:
        """Forget a value; what was never there is no error."""
        if (value := self._arrays.pop(name, None)) is not None:
            self._left_bytes += value.nbytes
        if (path := self._files.pop(name, None)) is not None:
            path.unlink(missing_ok=True)

    @property
    def n_on_disk(self) -> int:
        """How many values lie on disk."""
        return len(self._files)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name in self._arrays:
            return self._arrays[name]
        path = self._files[name]
        # An empty or 0-d array cannot be mapped; neither is ever large.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))

    def __iter__(self) -> Iterator[str]:
        yield from self._arrays
        yield from self._files

    def __len__(self) -> int:
        return len(self._arrays) + len(self._files)
