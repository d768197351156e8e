"""A scoring run: decode, send, write, all at once, in order, with bounded memory and one version of the model."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, cast

from convoy.contract.errors import ModelNotFoundError, ScoringError, UnavailableError, UsageError
from convoy.serving.client import DEFAULT_URL, Client
from convoy.serving.scoring._batch import ENDS_THE_RUN, Batch, Scorer
from convoy.serving.scoring._source import Source, open_source
from convoy.serving.scoring._table import TableFile, check_out, import_arrow, make_schema

MAX_FAILED_BATCHES: Final = 8
"""So many batches refused one after the other stop a run: the server is sick, and a table of nothing but errors helps nobody."""


@dataclass(frozen=True)
class ScoreSummary:
    """What a scoring run did.

    Attributes:
        model_name: The model.
        model_version: The one version that answered everything.
        model_sha256: The digest of its ONNX file, where the server tells it.
        source: What was scored.
        out: The table.
        n: Inputs, each with one row.
        n_scored: Inputs with an answer.
        n_failed: Inputs with an error in their row.
        skipped: What in the source is no input, counted by reason.
        duration_s: How long the run took.
        throughput_ips: Scored images a second.
        n_labelled: Scored inputs whose true label is known.
        accuracy: The fraction of these whose label is the true one; None where there are none.
    """

    model_name: str
    model_version: str
    model_sha256: str | None
    source: str
    out: str
    n: int
    n_scored: int
    n_failed: int
    skipped: Mapping[str, int]
    duration_s: float
    throughput_ips: float
    n_labelled: int
    accuracy: float | None


def score(
    model_name: str,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    url: str = DEFAULT_URL,
    client: Client | None = None,
    model_version: str = "",
    top_k: int = 5,
    labels_from_folders: bool = False,
    force: bool = False,
    in_flight: int = 4,
    timeout_s: float = 30.0,
    headers: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ScoreSummary:
    """Classify every image of a set through a running server into one Parquet file.

    Every input has exactly one row, one that cannot be read too. One version scores everything: the one that answers first, asked
    for by name from then on. The file appears whole at the end, or not at all.

    Args:
        model_name: A model that ``convoy deploy`` wrote.
        source: A folder, a text file with one path a line, or uint8 images as ``.npy``, ``.npz`` or IDX.
        out: The Parquet file to write.
        url: The server.
        client: A client to use in place of ``url`` and ``headers``; it stays open.
        model_version: The version to score with; the server's choice where it is empty.
        top_k: How many candidates each row lists.
        labels_from_folders: Take the first folder below ``source`` as each image's true label.
        force: Replace ``out`` where it is there already.
        in_flight: How many batches may be with the server at once.
        timeout_s: How long one batch may take.
        headers: Sent with every request.
        on_progress: Called with the inputs done and the inputs in all, at the start and after each batch.

    Returns:
        What was done.

    Raises:
        UsageError: An argument is wrong, or ``out`` is there already.
        MissingDependencyError: pyarrow is not installed.
        DataError: The source cannot be read, or holds nothing.
        ClientError: The server does not answer at the start; nothing is written.
        ScoringError: The run cannot go on (server or version gone, disk full); nothing is written.
    """
    started = time.monotonic()
    import_arrow()
    source, out = Path(source), Path(out)
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or not 1 <= in_flight <= 256:
        raise UsageError(f"in_flight: expected a whole number from 1 to 256, found {in_flight!r}.")
    check_out(out, force=force)
    inputs = open_source(source, labels_from_folders=labels_from_folders)
    own = None if client is not None else Client(url, timeout_s=timeout_s, headers=headers)
    try:
        scorer = Scorer.pin(client or cast(Client, own), model_name, model_version, top_k, timeout_s, in_flight)
        _check_classes(inputs, scorer, source)
        tally = _Tally(inputs.n, on_progress)
        metadata = {"convoy.model_name": model_name, "convoy.model_version": scorer.version}
        schema = make_schema(with_true_label=labels_from_folders, metadata=metadata)
        with TableFile(out, schema) as table, closing(_in_order(inputs, scorer, in_flight)) as batches:
            for batch in batches:
                tally.add(batch)
                table.add(batch.rows)
    finally:
        if own is not None:
            own.close()  # of a run that was interrupted, this ends the calls under way too
    duration_s = time.monotonic() - started
    return ScoreSummary(
        model_name=model_name,
        model_version=scorer.version,
        model_sha256=scorer.digest,
        source=str(source),
        out=str(out),
        n=tally.done,
        n_scored=tally.scored,
        n_failed=tally.done - tally.scored,
        skipped=dict(inputs.skipped),
        duration_s=duration_s,
        throughput_ips=tally.scored / duration_s,
        n_labelled=tally.labelled,
        accuracy=tally.right / tally.labelled if tally.labelled else None,
    )


def _in_order(inputs: Source, scorer: Scorer, in_flight: int) -> Generator[Batch, None, None]:
    """Score the source batch by batch, several at a time, and give them in order. No more than a few batches are ever in memory."""
    items = inputs.items()
    batches = iter(lambda: list(islice(items, scorer.max_batch_size)), [])
    threads = in_flight + min(4, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="convoy-score")
    pending: deque[Future[Batch]] = deque()
    done = 0
    try:
        for batch in batches:
            pending.append(pool.submit(scorer.score, batch))
            if len(pending) >= 2 * threads:
                finished = pending.popleft().result()
                done += len(finished.rows)
                yield finished
        while pending:
            finished = pending.popleft().result()
            done += len(finished.rows)
            yield finished
    except ENDS_THE_RUN as error:
        what = "the server does not let this client in any more"
        if isinstance(error, (ModelNotFoundError, UnavailableError)):
            what = f"version {scorer.version} is not served any more, and a table holds the answers of one version only"
            if isinstance(error, UnavailableError):
                what = f"no server answers, or {what}"
        raise ScoringError(
            f"the run stopped after {done} of {inputs.n} inputs and wrote nothing: {what}. Run the same command again when it is "
            f"served. {error}"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # of a finished run all are done; of a broken one nobody waits


class _Tally:
    """Counts as rows come, tells the caller, and stops a run that gets nothing but refusals."""

    def __init__(self, n: int, on_progress: Callable[[int, int], None] | None) -> None:
        self.done = self.scored = self.labelled = self.right = 0
        self._n = n
        self._on_progress = on_progress
        self._refused_in_a_row = 0
        self._tell()

    def add(self, batch: Batch) -> None:
        """Count a batch.

        Raises:
            ScoringError: It is the last of too many refused ones in a row.
        """
        self._refused_in_a_row = self._refused_in_a_row + 1 if batch.refused else 0
        if batch.refused is not None and self._refused_in_a_row >= MAX_FAILED_BATCHES:
            raise ScoringError(
                f"the run stopped after {self.done} of {self._n} inputs and wrote nothing: the server refused {MAX_FAILED_BATCHES} "
                f"batches one after the other. The last time: {batch.refused}"
            ) from batch.refused
        for row in batch.rows:
            scored = row["error"] is None
            self.scored += scored
            if scored and row["true_label"] is not None:
                self.labelled += 1
                self.right += row["label"] == row["true_label"]
        self.done += len(batch.rows)
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.done, self._n)


def _check_classes(inputs: Source, scorer: Scorer, source: Path) -> None:
    unknown = [name for name in inputs.classes if name not in scorer.interface.labels]
    if unknown:
        raise UsageError(
            f"{source}: the folders {', '.join(map(repr, unknown[:5]))}{' ...' if len(unknown) > 5 else ''} are no labels of model "
            f"{scorer.model_name!r}, which knows {', '.join(map(repr, scorer.interface.labels[:12]))}"
            f"{' ...' if len(scorer.interface.labels) > 12 else ''}. Rename them, or score without --labels-from-folders."
        )
