"""What of a run is on disk: chunks, and the files that are made of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from convoy.contract.errors import ScoringError
from convoy.serving.scoring._dataset import DataSet, Stored


class Written:
    """Which chunks are on disk, and the rows of the next; makes files of chunks as they are full."""

    def __init__(self, dataset: DataSet, stored: Stored) -> None:
        stored = _without_damaged(dataset, stored)
        self._dataset = dataset
        self._chunks = {chunk for part in stored.parts for chunk in dataset.chunks_of(part)} | stored.chunks
        self._parts = set(stored.parts)
        self._lock = threading.Lock()
        self._read: tuple[int, Any] = (-1, None)
        self.next_chunk = 0
        for part in range(dataset.n_parts):
            self._fill(part)

    def missing(self) -> list[int]:
        """The chunks that are not on disk."""
        with self._lock:
            return [chunk for chunk in range(self._dataset.n_chunks) if chunk not in self._chunks]

    def n_rows(self) -> int:
        """How many rows are on disk."""
        with self._lock:
            return sum(map(self._dataset.rows_of, self._chunks))

    def add(self, chunk: int) -> None:
        """A chunk is on disk."""
        with self._lock:
            self._chunks.add(chunk)
        self._fill(self._dataset.part_of(chunk))

    def _fill(self, part: int) -> None:
        chunks = self._dataset.chunks_of(part)
        with self._lock:
            if part in self._parts or not all(chunk in self._chunks for chunk in chunks):
                return
        tables = [self._dataset.read_chunk(chunk) for chunk in chunks]
        if any(table is None for table in tables):
            raise ScoringError("rows that were just written cannot be read again: is the disk sound?")
        self._dataset.write_part(part, tables)
        with self._lock:
            self._parts.add(part)

    def next_tables(self, fresh: dict[int, Any]) -> Iterator[Any]:
        """The rows of the chunks that are on disk and come next; ``fresh`` has some of them in memory."""
        while True:
            with self._lock:
                if self.next_chunk not in self._chunks:
                    return
            chunk = self.next_chunk
            table = fresh.pop(chunk, None)
            yield table if table is not None else self._from_disk(chunk)
            self.next_chunk += 1

    def _from_disk(self, chunk: int) -> Any:
        part = self._dataset.part_of(chunk)
        with self._lock:
            is_filed = part in self._parts
        table = None if is_filed else self._dataset.read_chunk(chunk)
        if table is not None:
            return table
        if self._read[0] != part:
            self._read = (part, self._dataset.read_part(part))
        start = sum(self._dataset.rows_of(other) for other in self._dataset.chunks_of(part) if other < chunk)
        return self._read[1].slice(start, self._dataset.rows_of(chunk))


def _without_damaged(dataset: DataSet, stored: Stored) -> Stored:
    """What is there, without chunks that a crash of the machine has damaged: they are scored again."""
    damaged = {chunk for chunk in stored.chunks if dataset.read_chunk(chunk) is None}
    for chunk in damaged:
        dataset.remove_chunk(chunk)
    return Stored(stored.parts, stored.chunks - damaged)
