"""What a run scores: the inputs of its source, listed once, in chunks."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Final, Protocol, overload

import numpy as np

from convoy.contract.errors import ScoringError
from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring.source import ArraySource, Entry, Source

_DIGEST_CHARS: Final = 16


class InputRows(Sequence[Entry]):
    """Inputs in a row of a listing; made of its columns as they are asked for.

    Args:
        batch: A batch of the listing's file, a ``pyarrow.RecordBatch``.

    Attributes:
        batch: Likewise; ``key`` and ``true_label`` go from here into the table as they are.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @overload
    def __getitem__(self, place: int) -> Entry: ...

    @overload
    def __getitem__(self, place: slice) -> InputRows: ...

    def __getitem__(self, place: int | slice) -> Entry | InputRows:
        if isinstance(place, slice):
            start, stop, _ = place.indices(len(self))
            return InputRows(self.batch.slice(start, max(0, stop - start)))
        return Entry(*(column[place].as_py() for column in self.batch.columns))

    def __iter__(self) -> Iterator[Entry]:
        columns = [column.to_pylist() for column in self.batch.columns]
        return (Entry(*values) for values in zip(*columns, strict=True))


class Inputs(Protocol):
    """Inputs in chunks."""

    @property
    def chunk_rows(self) -> int:
        """How many make a chunk; the last may have fewer."""
        ...

    def chunk(self, chunk: int) -> InputRows:
        """The inputs of a chunk."""
        ...


class Listing:
    """The inputs of a source, on disk but for what is asked for. Safe under threads once it is made.

    Args:
        source: What is listed.
        chunk_rows: How many inputs make a chunk.
        stopped: Whether to give up.

    Raises:
        ScoringError: It was stopped, or the disk is full.
        DataError: The source cannot be read.

    Attributes:
        n: How many there are.
        chunk_rows: How many make a chunk; the last may have fewer.
        digests: One a chunk, of names, places, sizes, stamps and labels: what changes when the source does.
        skipped: What in the source is no input, counted by reason.
    """

    def __init__(self, source: Source, chunk_rows: int, stopped: Callable[[], bool] = lambda: False) -> None:
        arrow = import_arrow()
        self.chunk_rows = chunk_rows
        self.n = 0
        self.digests: list[str] = []
        schema = _schema()
        with _on_disk():
            self._file = tempfile.TemporaryFile(prefix="convoy-listing-")  # noqa: SIM115  # as long as the listing
        try:
            writer = arrow.ipc.new_file(self._file, schema)
            for batch, digest in (
                _array_chunks(source, chunk_rows) if isinstance(source, ArraySource) else _chunks(source, chunk_rows)
            ):
                if stopped():
                    raise ScoringError("the run was stopped before anything was scored.")
                self.digests.append(digest)
                self.n += batch.num_rows
                with _on_disk():
                    writer.write_batch(batch)
            self.skipped: Mapping[str, int] = dict(source.skipped)
            with _on_disk():
                writer.close()
                self._file.flush()
            self._reader: Any = arrow.ipc.open_file(
                arrow.memory_map(f"/proc/self/fd/{self._file.fileno()}") if _HAS_PROC else self._file
            )
        except BaseException:
            with suppress(OSError):
                self._file.close()
            raise

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return len(self.digests)

    def rows_of(self, chunk: int) -> int:
        """How many inputs a chunk has."""
        return min(self.chunk_rows, self.n - chunk * self.chunk_rows)

    def chunk(self, chunk: int) -> InputRows:
        """The inputs of a chunk."""
        return InputRows(self._reader.get_batch(chunk))

    def pieces(self, n_bytes: int) -> Iterator[bytes]:
        """All of its file, piece after piece: an Arrow file with one batch a chunk."""
        start = 0
        while piece := os.pread(self._file.fileno(), n_bytes, start):
            yield piece
            start += len(piece)

    def close(self) -> None:
        """Give its disk back."""
        self._reader = None
        self._file.close()


def _schema() -> Any:
    arrow = import_arrow()
    text = arrow.string()
    return arrow.schema([("key", text), ("locator", text), ("size", arrow.int64()), ("stamp", text), ("true_label", text)])


def rows_of_entries(entries: Sequence[Entry]) -> InputRows:
    """Inputs as those of a listing."""
    arrow, schema = import_arrow(), _schema()
    columns = list(zip(*[(e.key, e.locator, e.size, e.stamp, e.true_label) for e in entries], strict=True)) or [()] * len(schema)
    return InputRows(arrow.record_batch([arrow.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema))


def _chunks(source: Source, chunk_rows: int) -> Iterator[tuple[Any, str]]:
    """The batches of a listing, and their digests."""
    entries = source.entries()
    while chunk := list(islice(entries, chunk_rows)):
        columns = list(zip(*[(e.key, e.locator, e.size, e.stamp, e.true_label) for e in chunk], strict=True))
        yield rows_of_entries(chunk).batch, _digest(columns)


def _array_chunks(source: ArraySource, chunk_rows: int) -> Iterator[tuple[Any, str]]:
    """The same of an array, whose inputs are told apart by their numbers alone: a million of them take no time."""
    arrow, schema = import_arrow(), _schema()
    for start in range(0, len(source), chunk_rows):
        n = min(chunk_rows, len(source) - start)
        labels = source.labels(start, start + n)
        number = arrow.array(np.arange(start, start + n)).cast(arrow.string())
        size, stamp = arrow.repeat(source.image_bytes, n), arrow.repeat(source.version, n)
        columns = [number, number, size.cast(arrow.int64()), stamp, arrow.array(labels, arrow.string())]
        yield (
            arrow.record_batch(columns, schema),
            _digest([[start, n, source.image_bytes], [source.version], labels if labels[0] is not None else []]),
        )


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScoringError(
            f"{tempfile.gettempdir()}: the list of inputs cannot be written: {error.strerror or error}. Make room there, or name "
            "another folder in TMPDIR."
        ) from error


def _digest(columns: Sequence[Sequence[Any]]) -> str:
    """A digest of values, column by column: their lengths, and their text; None is no text, and longer than any."""
    digest = hashlib.sha256()
    for column in columns:
        texts = [str(value) for value in column] if column and isinstance(column[0], int) else column
        lengths = np.array([-1 if text is None else len(text) for text in texts], "<i8")
        digest.update(lengths.tobytes())
        digest.update("".join([text for text in texts if text is not None]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:_DIGEST_CHARS]


def _has_proc() -> bool:
    from pathlib import Path

    return Path("/proc/self/fd").is_dir()


_HAS_PROC: Final = _has_proc()
