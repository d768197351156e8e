"""What a run scores: the inputs of its source, listed once, in chunks."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring.source import Entry, Source

_DIGEST_CHARS: Final = 16


class Listing:
    """The inputs of a source, on disk but for what is asked for. Safe under threads once it is made.

    Attributes:
        n: How many there are.
        chunk_rows: How many make a chunk; the last may have fewer.
        digests: One a chunk, of names, places, sizes, stamps and labels: what changes when the source does.
        skipped: What in the source is no input, counted by reason.
    """

    def __init__(self, source: Source, chunk_rows: int) -> None:
        arrow = import_arrow()
        self.chunk_rows = chunk_rows
        self.n = 0
        self.digests: list[str] = []
        schema = arrow.schema(
            [
                ("key", arrow.string()),
                ("locator", arrow.string()),
                ("size", arrow.int64()),
                ("stamp", arrow.string()),
                ("true_label", arrow.string()),
            ]
        )
        self._file = tempfile.TemporaryFile(prefix="convoy-listing-")  # noqa: SIM115  # as long as the listing
        with arrow.ipc.new_file(self._file, schema) as writer:
            entries = source.entries()
            while chunk := list(islice(entries, chunk_rows)):
                columns = list(zip(*[(e.key, e.locator, e.size, e.stamp, e.true_label) for e in chunk], strict=True))
                batch = arrow.record_batch([arrow.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)
                self.digests.append(_digest(columns))
                self.n += len(chunk)
                writer.write_batch(batch)
        self.skipped: Mapping[str, int] = dict(source.skipped)
        self._file.flush()
        self._reader: Any = arrow.ipc.open_file(
            arrow.memory_map(f"/proc/self/fd/{self._file.fileno()}") if _HAS_PROC else self._file
        )

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return len(self.digests)

    def rows_of(self, chunk: int) -> int:
        """How many inputs a chunk has."""
        return min(self.chunk_rows, self.n - chunk * self.chunk_rows)

    def chunk(self, chunk: int) -> list[Entry]:
        """The inputs of a chunk."""
        columns = [column.to_pylist() for column in self._reader.get_batch(chunk).columns]
        return [Entry(*values) for values in zip(*columns, strict=True)]

    def close(self) -> None:
        """Give its disk back."""
        self._reader = None
        self._file.close()


def _digest(columns: Sequence[Sequence[Any]]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        for value in column:
            text = "-" if value is None else f"{len(str(value))}:{value}"
            digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:_DIGEST_CHARS]


def _has_proc() -> bool:
    from pathlib import Path

    return Path("/proc/self/fd").is_dir()


_HAS_PROC: Final = _has_proc()
