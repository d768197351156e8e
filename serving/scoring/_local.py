"""The engine of one machine: threads that read, decode and ask, several batches at once, with bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from queue import SimpleQueue
from typing import Any, Final

from convoy.contract.errors import ClientError, ScoringError
from convoy.serving.scoring._listing import InputRows, Inputs
from convoy.serving.scoring._scorer import Rows, Scorer
from convoy.serving.scoring._table import Answered

MOST_REFUSED: Final = 8
"""So many batches refused one after the other stop a run: the server is sick, and a table of nothing but errors helps nobody."""

MOST_BYTES_AHEAD: Final = 256 << 20
"""Of pixels that are read and not answered yet."""


@dataclass
class Refusals:
    """Counts batches that were refused one after the other."""

    n: int = 0

    def count(self, refused: ClientError | None) -> None:
        """Count a batch: why it was refused, or None.

        Raises:
            ScoringError: It is one too many.
        """
        self.n = 0 if refused is None else self.n + 1
        if refused is not None and self.n >= MOST_REFUSED:
            raise ScoringError(
                f"the server refused {MOST_REFUSED} batches one after the other. The last time: {refused}"
            ) from refused


@dataclass
class _Chunk:
    number: int
    start: int
    inputs: InputRows
    left: int
    batches: dict[int, Answered] = field(default_factory=dict)


def score_chunks(
    scorer: Scorer,
    listing: Inputs,
    chunks: Sequence[int],
    *,
    in_flight: int,
    stopped: Callable[[], bool],
    done: Callable[[Rows], None],
) -> Iterator[tuple[int, Any]]:
    """Score chunks; gives each with its ``pyarrow.Table`` as soon as it is whole.

    Args:
        scorer: Scores batches.
        listing: The inputs.
        chunks: Which chunks.
        in_flight: The most requests under way.
        stopped: Whether no further chunk shall be begun.
        done: Told of each batch.

    Raises:
        ClientError: The run cannot go on.
        ScoringError: The server refuses everything.
    """
    rows_a_batch = scorer.batch_rows
    most_ahead = max(2, MOST_BYTES_AHEAD // (rows_a_batch * prod(scorer.backend.interface.image.dims)))
    n_threads = min(most_ahead, in_flight + min(4, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="convoy-score")
    finished: SimpleQueue[Future[Rows]] = SimpleQueue()
    under_way: dict[Future[Rows], tuple[_Chunk, int]] = {}
    tasks = _tasks(listing, chunks, rows_a_batch, stopped)
    refusals = Refusals()
    try:
        while True:
            while len(under_way) < n_threads and (task := next(tasks, None)) is not None:
                chunk, start, inputs = task
                future = pool.submit(scorer.score, start, inputs)
                under_way[future] = (chunk, start)
                future.add_done_callback(finished.put)
            if not under_way:
                return
            future = finished.get()  # and not `wait`, which takes the longer the more are under way
            chunk, start = under_way.pop(future)
            rows = future.result()
            refusals.count(rows.refused)
            done(rows)
            assert rows.answered is not None
            chunk.batches[start] = rows.answered
            chunk.left -= rows.n
            if not chunk.left:
                ordered = [chunk.batches[start] for start in sorted(chunk.batches)]
                yield chunk.number, scorer.maker.table(chunk.start, chunk.inputs, ordered)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # of a finished run all are done; of a broken one nobody waits


def _tasks(
    listing: Inputs, chunks: Sequence[int], rows_a_batch: int, stopped: Callable[[], bool]
) -> Iterator[tuple[_Chunk, int, Any]]:
    for number in chunks:
        if stopped():
            return
        inputs = listing.chunk(number)
        start = number * listing.chunk_rows
        chunk = _Chunk(number, start, inputs, len(inputs))
        for i in range(0, len(inputs), rows_a_batch):
            yield chunk, start + i, inputs[i : i + rows_a_batch]
