"""A scoring run: its identity first, then chunk after chunk, each once, whatever is killed in between."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from typing_extensions import Self

from convoy.contract.errors import (
    AuthenticationError,
    ClientError,
    DataError,
    ModelNotFoundError,
    ScoringError,
    UsageError,
)
from convoy.contract.files import sha256_bytes
from convoy.serving.client import DEFAULT_URL, Client, Tls
from convoy.serving.client._amounts import check_box
from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring._backend import Backend, InProcess, Served
from convoy.serving.scoring._dataset import DataSet
from convoy.serving.scoring._drift import Reference, measure_drift, read_reference
from convoy.serving.scoring._identity import RunIdentity
from convoy.serving.scoring._listing import Listing
from convoy.serving.scoring._local import score_chunks
from convoy.serving.scoring._options import Engine, Options, path_of
from convoy.serving.scoring._progress import Progress, Tally, Waits
from convoy.serving.scoring._report import check_report_path, take_thumbnails, write_report
from convoy.serving.scoring._scorer import Scorer
from convoy.serving.scoring._statistics import Statistics
from convoy.serving.scoring._store import Store, open_store
from convoy.serving.scoring._table import Format
from convoy.serving.scoring._task import check_options, labels_fault, make_scorer, make_statistics, table_version_of
from convoy.serving.scoring._written import Written
from convoy.serving.scoring.source import Source, open_source

CHUNK_ROWS: Final = 1024
ROWS_PER_FILE: Final = 65_536
_MOST_UNWRITTEN: Final = 4
_MOST_WAITING: Final = 64
"""Chunks kept in memory until those before them are there; more are read from disk again."""


@dataclass(frozen=True)
class ScoreSummary:
    """What is in a data set, and what the run that finished it did.

    Attributes:
        model_name: The model.
        model_version: The one version that answered everything.
        model_sha256: The digest of its ONNX file, where the server tells it.
        source: What was scored.
        out: Where the data set is.
        n: Inputs, each with one row.
        n_scored: Inputs with an answer.
        n_failed: Inputs with an error in their row.
        n_resumed: Inputs whose rows an earlier run had made.
        skipped: What in the source is no input, counted by reason.
        duration_s: How long this run took.
        throughput_ips: Inputs a second that this run scored.
        n_labelled: Scored inputs whose true label is known.
        accuracy: The fraction of these whose label is the true one; None where there are none.
        statistics: The rest, as JSON's values; see ``Statistics``.
        drift: How far the answers lie from the reference, as JSON's values; None where none was named. See ``Drift``.
        report: The page that was written; None where none was asked for.
    """

    model_name: str
    model_version: str
    model_sha256: str | None
    source: str
    out: str
    n: int
    n_scored: int
    n_failed: int
    n_resumed: int
    skipped: Mapping[str, int]
    duration_s: float
    throughput_ips: float
    n_labelled: int
    accuracy: float | None
    statistics: Mapping[str, Any]
    drift: Mapping[str, Any] | None
    report: str | None


class ScoreRun:
    """A run: an iterable of the rows, ``pyarrow.RecordBatch`` by batch, in the order of the source.

    It begins with the first that is taken; those of earlier runs that it goes on with come too. What was taken is on disk. It can
    be iterated once. A loop that is left ends the run, with what is committed; so do ``close()`` and the end of a ``with`` block.

    Attributes:
        statistics: Of the rows that were taken.
    """

    def __init__(self, options: Options) -> None:
        import_arrow()
        if options.engine == "ray":
            from convoy.serving.scoring._ray import import_ray

            import_ray()
        self._options = options
        self._stop = threading.Event()
        self._ended = threading.Event()
        # Not held here: where the loop over them is left, nobody holds them, and the run ends at once.
        self._batches: weakref.ref[Generator[Any, None, None]] | None = None
        self._entered = False
        self._held: Generator[Any, None, None] | None = None  # within a `with` block, which lets go of it
        self._summary: ScoreSummary | None = None
        self.statistics: Statistics | None = None

    @property
    def summary(self) -> ScoreSummary:
        """What was done, once all was taken.

        Raises:
            UsageError: Not yet.
        """
        if self._summary is None:
            raise UsageError("the run has not ended: take its batches first, or call finish().")
        return self._summary

    def __iter__(self) -> Iterator[Any]:
        batches = None if self._batches is None else self._batches()
        if batches is None:
            if self._batches is not None:
                raise UsageError("a run can be taken once: call score(...) again, which goes on with what is there.")
            batches = self._run()
            self._batches = weakref.ref(batches)
            self._held = batches if self._entered else None
        return batches

    def finish(self) -> ScoreSummary:
        """Take what is left, and say what was done.

        Raises:
            ScoringError: The run cannot go on; what was scored stays, and the same call goes on from there.
        """
        if self._summary is None:
            for _ in self:
                pass
        return self.summary

    def stop(self) -> None:
        """End the run after the chunks in flight, with ``ScoringError``; from another thread, or a signal's handler."""
        self._stop.set()

    def close(self) -> None:
        """Give up, where not all was taken: nobody else is kept from going on, and what was committed stays.

        For the thread that takes the batches; another one calls ``stop()``.
        """
        if self._batches is None:
            self._batches = weakref.ref(self._run())  # which is gone at once, and so cannot begin
        batches = self._batches()
        self._held = None
        if batches is not None:
            batches.close()

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> Generator[Any, None, None]:
        options, began = self._options, time.monotonic()
        store = open_store(options.out, options.storage_options)
        check_report_path(options.report, options.out)
        source = open_source(
            options.source,
            labels_from_folders=options.labels_from_folders,
            column=options.column,
            label_column=options.label_column,
            storage_options=options.storage_options,
            stdin=options.stdin,  # type: ignore[arg-type]
        )
        DataSet.identity_in(store)  # before the lock is made: what is another's place stays as it is
        with ExitStack() as stack:
            stack.enter_context(store.claim())
            earlier = DataSet.identity_in(store)
            if earlier is not None:
                _as_asked(options, earlier).check_resumes(earlier, store.shown)
            backend = self._backend(earlier)
            stack.callback(backend.close)
            check_options(options, backend.interface)
            reference = _reference(options, backend)  # before the source is listed, which may take long
            listing = Listing(source, options.chunk_rows, self._stop.is_set)
            stack.callback(listing.close)
            _check_labels(options, listing, backend)
            identity = _identity(options, source, listing, backend)
            if earlier is not None:
                identity.check_resumes(earlier, store.shown)
                identity = earlier
            scorer = make_scorer(backend, source, options.top_k, identity.digest, options.box)
            dataset = DataSet(store, identity, scorer.maker.schema)
            self.statistics = make_statistics(backend.interface)
            written: Written | None = None
            try:
                written = Written(dataset, dataset.begin())
                missing = written.missing()
                if missing:
                    dataset.reopen()
                tally = Tally(options.on_progress, backend.version, identity.n, written.n_rows())
                tally.tell()
                with closing(self._tables_of(dataset, written, missing, scorer, listing, tally)) as tables:
                    for table in tables:
                        self.statistics.add(table)
                        yield from table.to_batches()
                if dataset.manifest() is None:
                    dataset.finish(self.statistics.to_dict())
            except (ClientError, DataError, ScoringError) as error:
                n = 0 if written is None else written.n_rows()
                raise ScoringError(
                    f"the run stopped: {_why(error, backend)} {n:,} of {identity.n:,} inputs have their row in {store.shown}, and "
                    "keep it. Run the same command again: it goes on from there."
                ) from error
            self._sum_up(identity, store, tally, began, reference, source, listing)

    def _tables_of(
        self, dataset: DataSet, written: Written, missing: list[int], scorer: Scorer, listing: Listing, tally: Tally
    ) -> Generator[Any, None, None]:
        """Every chunk's rows, in order, each once it is on disk."""
        with ExitStack() as stack:
            writer = ThreadPoolExecutor(1, thread_name_prefix="convoy-write")
            stack.callback(writer.shutdown, wait=True, cancel_futures=True)
            engine = self._engine(scorer, listing, missing, tally)
            if isinstance(engine, Generator):
                stack.callback(engine.close)
            stack.callback(self._ended.set)  # first of all: nobody waits for servers any more
            pending: list[Future[None]] = []

            def write(chunk: int, table: Any) -> None:
                scorer.backend.check()
                tally.ask(scorer.backend)
                dataset.write_chunk(chunk, table)
                written.add(chunk)

            yield from written.next_tables({})
            fresh: dict[int, Any] = {}
            for chunk, table in engine:
                if len(fresh) < _MOST_WAITING:
                    fresh[chunk] = table
                pending.append(writer.submit(write, chunk, table))
                while pending and (pending[0].done() or len(pending) > _MOST_UNWRITTEN):
                    pending.pop(0).result()
                yield from written.next_tables(fresh)
            for future in pending:
                future.result()
            yield from written.next_tables(fresh)
            if self._stop.is_set() and written.next_chunk < dataset.n_chunks:
                raise ScoringError("it was asked to stop.")

    def _engine(self, scorer: Scorer, listing: Listing, missing: list[int], tally: Tally) -> Iterator[tuple[int, Any]]:
        options = self._options
        if options.engine == "ray":
            from convoy.serving.scoring._ray import score_chunks_with_ray

            return score_chunks_with_ray(scorer, listing, missing, options=options, stopped=self._stop.is_set, done=tally.add)
        return score_chunks(scorer, listing, missing, in_flight=options.in_flight, stopped=self._stop.is_set, done=tally.add)

    def _backend(self, earlier: RunIdentity | None) -> Backend:
        """Who answers: with the version of the run that is gone on with, where there is one."""
        options = self._options
        version = options.model_version or ("" if earlier is None else earlier.model_version)
        if options.in_process is not None:
            return InProcess.load(options.in_process, options.model_name, version)
        client = options.client or Client(
            options.urls,
            timeout_s=options.timeout_s,
            headers=options.headers,
            tls=options.tls,
            merge=False,
            max_in_flight=options.in_flight,
        )
        # Not this run itself: threads that still ask would keep it alive when it is forgotten.
        stop, ended, waits = self._stop, self._ended, Waits(options.on_waiting)
        try:
            served = Served.pin(
                client,
                options.model_name,
                version,
                timeout_s=options.timeout_s,
                patience_s=options.patience_s,
                in_flight=options.in_flight,
                own=options.client is None,
                stopped=lambda: stop.is_set() or ended.is_set(),
                waiting=waits.note,
            )
        except BaseException as error:
            if options.client is None:
                client.close()
            if isinstance(error, ModelNotFoundError) and earlier is not None and not options.model_version:
                raise ScoringError(
                    f"{client.url}: the run was begun with version {version} of {options.model_name!r}, which is not served any "
                    "more; a data set holds the answers of one version only. Serve that version again, or score anew in another "
                    f"place. ({error})"
                ) from error
            raise
        return served

    def _sum_up(
        self,
        identity: RunIdentity,
        store: Store,
        tally: Tally,
        began: float,
        reference: Reference | None,
        source: Source,
        listing: Listing,
    ) -> None:
        """Say what was done; for people on a page too, where they asked for one."""
        options, statistics = self._options, self.statistics
        assert statistics is not None
        drift = None if reference is None else measure_drift(reference, statistics)
        duration_s = time.monotonic() - began
        summary = ScoreSummary(
            model_name=identity.model_name,
            model_version=identity.model_version,
            model_sha256=identity.model_sha256,
            source=identity.source,
            out=store.shown,
            n=statistics.n,
            n_scored=statistics.n_scored,
            n_failed=statistics.n_failed,
            n_resumed=tally.resumed,
            skipped=dict(identity.skipped),
            duration_s=duration_s,
            throughput_ips=(tally.done - tally.failed) / duration_s,
            n_labelled=statistics.n_labelled + statistics.n_foreign,
            accuracy=statistics.accuracy,
            statistics=statistics.to_dict(),
            drift=None if drift is None else drift.to_dict(),
            report=None if options.report is None else os.fspath(options.report),
        )
        if options.report is not None:
            try:
                write_report(options.report, summary, statistics, drift, take_thumbnails(source, listing, statistics, options.box))
            except OSError as error:
                raise ScoringError(
                    f"{options.report}: the report cannot be written: {error.strerror or error}. The data set {store.shown} is "
                    "whole. Run the same command again: it writes the report without scoring anew."
                ) from error
        self._summary = summary


def score(
    model_name: str,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    url: str | Sequence[str] = DEFAULT_URL,
    tls: Tls | None = None,
    client: Client | None = None,
    in_process: str | os.PathLike[str] | None = None,
    model_version: str = "",
    top_k: int = 5,
    labels_from_folders: bool = False,
    column: str | None = None,
    label_column: str | None = None,
    box: tuple[int, int, int, int] | None = None,
    chunk_rows: int | None = None,
    rows_per_file: int | None = None,
    format: Format = "parquet",  # noqa: A002
    in_flight: int = 16,
    timeout_s: float = 30.0,
    patience_s: float = 60.0,
    headers: Mapping[str, str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    engine: Engine = "local",
    workers: int = 2,
    stdin: IO[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_waiting: Callable[[str], None] | None = None,
    report: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
) -> ScoreRun:
    """Classify every image of a set into a data set of Parquet files, each exactly once.

    Every input has exactly one row, one that cannot be read too. One version scores everything: the one that answers first, asked
    for by name from then on. A run that was killed, at any instant, goes on where it was when it is called again as before.

    Args:
        model_name: A model that ``convoy deploy`` wrote.
        source: What is scored: see ``convoy.serving.scoring.source.open_source``.
        out: The folder of the data set, or a URL: new, empty, or of a run that is to go on.
        url: The server, or several with the same models.
        tls: Whom to trust, and who we are, where TLS stands before the server.
        client: A client to use in place of ``url``, ``tls`` and ``headers``; it stays open.
        in_process: Score with ONNX Runtime alone, with the model of this repository; no server is asked.
        model_version: The version to score with; the server's choice where it is empty, or that of the run that goes on.
        top_k: How many candidates each row lists.
        labels_from_folders: Take the first folder below ``source`` as each image's true label.
        column: The column of the source that holds the images or their paths.
        label_column: The column of the source that holds true labels.
        box: Where the field lies on each image, for models that read amounts: left, top, width and height in pixels, from the top
            left corner. None: all of it is the field.
        chunk_rows: Inputs that are committed together: no more of them are scored twice after a kill than are in flight. None:
            ``CHUNK_ROWS``, or fewer where ``rows_per_file`` is.
        rows_per_file: Rows of each file; a multiple of ``chunk_rows``. None: ``ROWS_PER_FILE``, or near it.
        format: ``parquet``, ``csv`` or ``jsonl``.
        in_flight: The most requests under way, of each worker with ``ray``; how many there are adapts to the server.
        timeout_s: How long one request may take.
        patience_s: How long to wait for servers that are gone, at the start too.
        headers: Sent with every request.
        storage_options: What fsspec is given for URLs of ``source`` and ``out``.
        engine: ``local``: this process; ``ray``: the workers of a Ray cluster, each of which reads the source by itself. The
            cluster is that of ``RAY_ADDRESS``, or that of this machine, or one of our own for as long as the run lasts.
        workers: Ray workers.
        stdin: What the source ``-`` reads; standard input where it is None.
        on_progress: Told of each batch.
        on_waiting: Told why servers are waited for, and with "" when they answer again; from any thread.
        report: An HTML file for people, written at the end; inputs that stand out are read again for it. On a data set that is
            there already, it is written without scoring anew.
        reference: A data set of an earlier run, or a run folder of ``convoy train``: how far the answers lie from it is told.

    Returns:
        The run. It begins when its batches are taken, or with ``finish()``.

    Raises:
        UsageError: An argument is wrong, something else is in ``out``, or another run was begun there.
        MissingDependencyError: pyarrow (or what a URL, ONNX Runtime or Ray needs) is not installed.
        DataError: The source cannot be read, or holds nothing.
        ClientError: The server does not answer at the start.
        ScoringError: The run cannot go on (server or version gone, disk full); what was scored stays.
    """
    if chunk_rows is None:
        chunk_rows = min(CHUNK_ROWS, rows_per_file) if isinstance(rows_per_file, int) and rows_per_file > 0 else CHUNK_ROWS
    elif isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int) or chunk_rows < 1:
        raise UsageError(f"chunk_rows: expected a whole number from 1, found {chunk_rows!r}.")
    return ScoreRun(
        Options(
            model_name=model_name,
            source=path_of(source, "source"),
            out=path_of(out, "out"),
            urls=url,
            tls=tls,
            client=client,
            in_process=None if in_process is None else Path(path_of(in_process, "in_process")),
            model_version=model_version,
            top_k=top_k,
            labels_from_folders=labels_from_folders,
            column=column,
            label_column=label_column,
            box=check_box(box),
            chunk_rows=chunk_rows,
            rows_per_file=ROWS_PER_FILE // chunk_rows * chunk_rows or chunk_rows if rows_per_file is None else rows_per_file,
            format=format,
            in_flight=in_flight,
            timeout_s=timeout_s,
            patience_s=patience_s,
            headers=headers,
            storage_options=storage_options,
            engine=engine,
            workers=workers,
            stdin=stdin,
            on_progress=on_progress,
            on_waiting=on_waiting,
            report=None if report is None else Path(path_of(report, "report")),
            reference=None if reference is None else os.fspath(reference),
        )
    )


def _reference(options: Options, backend: Backend) -> Reference | None:
    if options.reference is None:
        return None
    if options.reference.rstrip("/") == options.out.rstrip("/"):
        raise UsageError(f"{options.out}: a run is not its own reference: expected another data set, or a run folder.")
    model = (backend.model_name, backend.version, backend.digest)
    return read_reference(options.reference, backend.interface.labels, model=model, storage_options=options.storage_options)


def _identity(options: Options, source: Source, listing: Listing, backend: Backend) -> RunIdentity:
    return RunIdentity(
        table_version=table_version_of(backend.interface),
        source=options.source,
        source_kind=source.kind,
        n=listing.n,
        chunk_rows=options.chunk_rows,
        rows_per_file=options.rows_per_file,
        listing=tuple(listing.digests),
        skipped=dict(listing.skipped),
        model_name=backend.model_name,
        model_version=backend.version,
        model_sha256=backend.digest,
        interface_sha256=sha256_bytes(backend.interface.to_bytes()),
        top_k=options.top_k,
        labels=_labels(options),
        column=options.column,
        box=options.box,
        format=options.format,
    )


def _as_asked(options: Options, earlier: RunIdentity) -> RunIdentity:
    """An earlier run with what is asked for now: to be refused before a server is asked and the source is listed."""
    asked = {
        "source": options.source,
        "model_name": options.model_name,
        "model_version": options.model_version or earlier.model_version,
        "chunk_rows": options.chunk_rows,
        "rows_per_file": options.rows_per_file,
        "top_k": options.top_k,
        "labels": _labels(options),
        "column": options.column,
        "box": options.box,
        "format": options.format,
    }
    return earlier.model_copy(update=asked)


def _labels(options: Options) -> str:
    return "folders" if options.labels_from_folders else f"column {options.label_column}" if options.label_column else ""


def _check_labels(options: Options, listing: Listing, backend: Backend) -> None:
    """See early that true labels are the model's: of labels that are none of its, no accuracy can be told."""
    if not options.labels_from_folders and options.label_column is None:
        return
    found: set[str] = set()
    fault = labels_fault(found, backend.interface)
    for chunk in range(listing.n_chunks):
        labels = {entry.true_label for entry in listing.chunk(chunk) if entry.true_label is not None}
        if not (fault := labels_fault(labels, backend.interface)):
            return
        found |= labels
        if len(found) > 1000:
            break
    where = "sub-folders is named as" if options.labels_from_folders else f"labels ({options.label_column}) is"
    what = "an amount" if backend.interface.task == "amount-reading" else f"a class of {backend.model_name!r}"
    raise UsageError(f"{options.source}: none of its {where} {what}: expected {fault}, found {sorted(found)[:5] or 'none'}.")


def _why(error: Exception, backend: Backend) -> str:
    """Why a run stopped, as the beginning of a message."""
    if isinstance(error, ModelNotFoundError):
        return f"version {backend.version} is not served any more, and a data set holds the answers of one version only. {error}"
    if isinstance(error, AuthenticationError):
        return f"the server does not let this client in any more. {error}"
    return str(error)
