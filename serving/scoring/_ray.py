"""The engine of many machines: Ray Data hands chunks to workers, and the driver alone writes what they bring.

The items of the pipeline are numbers of chunks. What a chunk holds lies with the *desk*, a small actor with the listing on its
disk: a worker asks it when it begins a chunk, so that no listing, however long, lies in Ray's object store. The desk also knows
when the run is to stop. Ray starts a killed worker anew and gives its chunk out again; which chunks are done is what the data set
says, not Ray.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import convoy
from convoy.contract import errors
from convoy.contract.errors import (
    ClientError,
    ConvoyError,
    DataError,
    MissingDependencyError,
    ScoringError,
    UsageError,
)
from convoy.contract.files import sha256_bytes
from convoy.serving.client import Client, Tls
from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring._backend import Backend, Served
from convoy.serving.scoring._listing import InputRows, Listing
from convoy.serving.scoring._local import Refusals, score_chunks
from convoy.serving.scoring._scorer import Rows, Scorer
from convoy.serving.scoring._table import from_staged, to_staged
from convoy.serving.scoring._task import make_scorer
from convoy.serving.scoring.source import open_source

if TYPE_CHECKING:
    from convoy.serving.scoring._options import Options

_PIECE_BYTES: Final = 8 << 20
_STORE_BYTES: Final = 256 << 20
_WATCH_S: Final = 0.2
_PAUSE_S: Final = 0.5
_MOST_QUEUED: Final = 2
"""Chunks that a worker is given at once: the next one waits while one is scored."""
MOST_AT_ONCE: Final = 2000
"""Chunks in one pipeline: Ray Data plans all of its items, some milliseconds each, before it begins with the first."""


@dataclass(frozen=True)
class _Description:
    """What a worker needs to score as the driver would; it travels to other machines."""

    convoy_version: str
    run: str
    urls: str | Sequence[str]
    tls: Tls | None
    headers: Mapping[str, str] | None
    timeout_s: float
    patience_s: float
    in_flight: int
    model_name: str
    model_version: str
    model_sha256: str | None
    interface_sha256: str
    top_k: int
    source: str
    source_kind: str
    labels_from_folders: bool
    column: str | None
    label_column: str | None
    box: tuple[int, int, int, int] | None
    storage_options: Mapping[str, Any] | None
    chunk_rows: int


def import_ray() -> Any:
    """``ray``, with its data part.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise MissingDependencyError(
            f"--engine ray needs Ray, which cannot be imported ({error}). Install it: pip install '.[ray]' in Convoy's folder"
        ) from error
    return ray


def score_chunks_with_ray(
    scorer: Scorer,
    listing: Listing,
    chunks: Sequence[int],
    *,
    options: Options,
    stopped: Callable[[], bool],
    done: Callable[[Rows], None],
) -> Iterator[tuple[int, Any]]:
    """Score chunks on the workers of a Ray cluster; gives each with its ``pyarrow.Table`` as it arrives, in any order.

    Args:
        scorer: How the driver would score them.
        listing: The inputs.
        chunks: Which chunks.
        options: Of the run.
        stopped: Whether no further chunk shall be begun.
        done: Told of each batch.

    Raises:
        ClientError: The run cannot go on.
        ScoringError: The server refuses everything, or Ray gives up.
        MissingDependencyError: Ray is not installed.
    """
    if not chunks:
        return
    ray = import_ray()
    description = _describe(scorer, options)
    left = dict.fromkeys(chunks)
    refusals = Refusals()
    with _connected(ray, options.workers), _quiet(ray):
        while left and not stopped():
            n_left = len(left)
            broken: Exception | None = None
            try:
                these = list(islice(left, MOST_AT_ONCE))
                with _at_a_desk(ray, listing, these) as desk:
                    for chunk, data, report in _results(ray, desk, description, len(these), options.workers, stopped):
                        if chunk not in left:
                            continue
                        del left[chunk]
                        table = from_staged(data)
                        for rows in _batches(report):
                            refusals.count(rows.refused)
                            done(rows)
                        yield chunk, table
            except ray.exceptions.RayError as error:
                broken = error
            if len(left) == n_left and not stopped():  # nothing has come of it: the next try would not fare better
                raise ScoringError(f"Ray gave up: {_reason(broken)}") from broken


def _describe(scorer: Scorer, options: Options) -> _Description:
    backend = scorer.backend
    return _Description(
        convoy_version=convoy.__version__,
        run=scorer.maker.schema.metadata[b"convoy.run"].decode(),
        urls=options.urls,
        tls=options.tls,
        headers=options.headers,
        timeout_s=options.timeout_s,
        patience_s=options.patience_s,
        in_flight=options.in_flight,
        model_name=backend.model_name,
        model_version=backend.version,
        model_sha256=backend.digest,
        interface_sha256=sha256_bytes(backend.interface.to_bytes()),
        top_k=options.top_k,
        source=options.source,
        source_kind=scorer.source.kind,
        labels_from_folders=options.labels_from_folders,
        column=options.column,
        label_column=options.label_column,
        box=options.box,
        storage_options=options.storage_options,
        chunk_rows=options.chunk_rows,
    )


def _results(
    ray: Any, desk: Any, description: _Description, n_chunks: int, workers: int, stopped: Callable[[], bool]
) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """What the workers bring: number, rows, report. An error that a worker reports is raised here."""
    pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=_MOST_QUEUED)
    # One block an item, so that each chunk's rows come as soon as they are there. Ray Data starts actors that die anew, without
    # end, and gives them their items again.
    pipeline = ray.data.range(n_chunks, override_num_blocks=n_chunks).map_batches(
        Worker,
        fn_constructor_args=(description, desk),
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=1,
    )
    arrived: set[int] = set()
    with _watched(ray, desk, stopped) as begun:
        for table in pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            for chunk, data, text in zip(*(table.column(name).to_pylist() for name in ("chunk", "rows", "report")), strict=True):
                report = json.loads(text)
                if "error" in report:
                    raise _error(*report["error"])
                arrived.add(chunk)
                if data:
                    yield chunk, data, report
            if begun and begun[0] <= arrived:
                return


class Worker:
    """Scores chunks; Ray Data makes one in each of its actors."""

    def __init__(self, description: _Description, desk: Any) -> None:
        self._description = description
        self._desk = desk
        self._scorer: Scorer | None = None

    def __call__(self, items: Any) -> Any:
        """Score the one chunk whose place among all is in ``items``."""
        import ray

        arrow = import_arrow()
        rows, report = b"", dict[str, Any]()
        chunk, batch = ray.get(self._desk.chunk.remote(items.column("id")[0].as_py()))
        if batch is not None:
            try:
                if self._scorer is None:
                    self._scorer = _open(self._description, self._stopped)
                rows, report = _score(self._scorer, _One(self._description.chunk_rows, InputRows(batch)), chunk, self._description)
            except ConvoyError as error:
                report = {"error": [type(error).__name__, str(error)]}
        return arrow.table(
            {
                "chunk": arrow.array([chunk], arrow.int64()),
                "rows": arrow.array([rows], arrow.large_binary()),
                "report": arrow.array([json.dumps(report)], arrow.large_string()),
            }
        )

    def _stopped(self) -> bool:
        import ray

        return bool(ray.get(self._desk.is_stopped.remote()))


class Desk:
    """Keeps the listing on its own disk; says what is in a chunk until the run is stopped.

    Args:
        chunks: The numbers of the chunks that are to be scored.
    """

    def __init__(self, chunks: Sequence[int]) -> None:
        self._chunks = chunks
        self._file = tempfile.TemporaryFile(prefix="convoy-listing-")  # noqa: SIM115  # as long as the desk
        self._reader: Any = None
        self._begun: set[int] = set()
        self._stopped = False

    def take(self, piece: bytes) -> None:
        """Take the next piece of the listing's file; an empty one is the end."""
        if piece:
            self._file.write(piece)
        else:
            self._file.flush()
            self._reader = import_arrow().ipc.open_file(self._file)

    def chunk(self, place: int) -> tuple[int, Any]:
        """The number of the chunk at a place, and its listing: it counts as begun. None where no further one shall be."""
        number = self._chunks[place]
        if self._stopped and number not in self._begun:
            return number, None
        self._begun.add(number)
        return number, self._reader.get_batch(number)

    def stop(self) -> set[int]:
        """Let no further chunk be begun; tell which ones were."""
        self._stopped = True
        return self._begun

    def is_stopped(self) -> bool:
        """Whether the run is to stop."""
        return self._stopped


@dataclass(frozen=True)
class _One:
    """The inputs of one chunk, where those of all are asked for."""

    chunk_rows: int
    entries: InputRows

    def chunk(self, chunk: int) -> InputRows:  # noqa: ARG002  # there is one
        """The inputs of the chunk."""
        return self.entries


def _open(description: _Description, stopped: Callable[[], bool]) -> Scorer:
    """On a worker: the driver's scorer again; refuses to be another one."""
    here = f"the Ray worker on {socket.gethostname()}"
    _agree(here, "Convoy", description.convoy_version, convoy.__version__)
    try:
        source = open_source(
            description.source,
            labels_from_folders=description.labels_from_folders,
            column=description.column,
            label_column=description.label_column,
            storage_options=description.storage_options,
        )
    except (DataError, UsageError) as error:
        raise ScoringError(
            f"{here} cannot open the source: {error} Each worker reads it by itself: paths must be on a file system that all of "
            "them share, or URLs."
        ) from error
    _agree(here, "the source's kind", description.source_kind, source.kind)
    backend = _pinned(description, stopped)
    _agree(here, "the model's digest", description.model_sha256, backend.digest)
    found = sha256_bytes(backend.interface.to_bytes())
    _agree(here, "the digest of its labels and image rule", description.interface_sha256, found)
    return make_scorer(backend, source, description.top_k, description.run, description.box)


def _agree(here: str, what: str, expected: str | None, found: str | None) -> None:
    if expected != found:
        raise ScoringError(f"{here}: expected {what} {expected}, as the driver has it, found {found}. All must be alike.")


def _pinned(description: _Description, stopped: Callable[[], bool]) -> Backend:
    """The model; a server that is gone just now is waited for, as later ones are: this worker may be one that was started anew."""
    client = Client(
        description.urls,
        timeout_s=description.timeout_s,
        headers=description.headers,
        tls=description.tls,
        merge=False,
        max_in_flight=description.in_flight,
    )
    try:
        return Served.pin(
            client,
            description.model_name,
            description.model_version,
            timeout_s=description.timeout_s,
            patience_s=description.patience_s,
            in_flight=description.in_flight,
            own=True,
            stopped=stopped,
        )
    except BaseException:
        client.close()
        raise


def _score(scorer: Scorer, inputs: _One, chunk: int, description: _Description) -> tuple[bytes, dict[str, Any]]:
    """Rows and report of one chunk."""
    batches: list[tuple[int, int, float, list[str] | None]] = []

    def note(rows: Rows) -> None:
        refused = None if rows.refused is None else [type(rows.refused).__name__, str(rows.refused)]
        batches.append((rows.n, rows.n_failed, rows.latency_ms, refused))

    scored = score_chunks(scorer, inputs, [chunk], in_flight=description.in_flight, stopped=lambda: False, done=note)
    ((_, table),) = scored
    return to_staged(table), {"batches": batches}


def _batches(report: Mapping[str, Any]) -> Iterator[Rows]:
    """The batches behind a chunk's report. Which rows were whose is not known any more, only how many."""
    for n, n_failed, latency_ms, refused in report["batches"]:
        error = None if refused is None else _error(*refused)
        yield Rows(n, n_failed, latency_ms, error if isinstance(error, ClientError) else None, None)


def _error(name: str, message: str) -> ConvoyError:
    """An error that happened elsewhere."""
    kind = getattr(errors, name, None)
    return kind(message) if isinstance(kind, type) and issubclass(kind, ConvoyError) else ScoringError(f"{name}: {message}")


def _reason(error: Exception | None) -> str:
    """Ray's message without the traces of its processes."""
    if error is None:
        return "it ended without a word."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]


@contextmanager
def _at_a_desk(ray: Any, listing: Listing, chunks: Sequence[int]) -> Iterator[Any]:
    desk = ray.remote(num_cpus=0, max_restarts=0)(Desk).remote(chunks)
    try:
        for piece in listing.pieces(_PIECE_BYTES):
            ray.get(desk.take.remote(piece))  # one at a time: the object store holds no more than one
        ray.get(desk.take.remote(b""))
        yield desk
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(desk)


@contextmanager
def _watched(ray: Any, desk: Any, stopped: Callable[[], bool]) -> Iterator[list[set[int]]]:
    """Tell the desk when the run is to stop; then the list holds which chunks were begun."""
    begun: list[set[int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_WATCH_S):
            if stopped():
                with contextlib.suppress(ray.exceptions.RayError):
                    begun.append(ray.get(desk.stop.remote()))
                return

    watcher = threading.Thread(target=watch, name="convoy-ray-stop", daemon=True)
    watcher.start()
    try:
        yield begun
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _connected(ray: Any, workers: int) -> Iterator[None]:
    """The cluster of RAY_ADDRESS, or of this machine, or one of our own for as long as the run lasts."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise UsageError(
            f"RAY_ADDRESS: expected a cluster that this machine belongs to, found {address}: Ray Data does not run through Ray's "
            "client. Run `convoy score` on a node of the cluster: ray job submit -- convoy score ..."
        )
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what Ray Data does on purpose
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init("auto", **quiet)
        except ConnectionError as error:
            if address:
                raise ScoringError(
                    f"the Ray cluster at {address} (RAY_ADDRESS) does not answer: {error}. Is it up, and where it asks for a "
                    "token, are RAY_AUTH_MODE=token and the token set here?"
                ) from error
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            n = max(os.cpu_count() or 1, workers + 1)
            ray.init("local", num_cpus=n, include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in the place of ours
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Ray Data's bars and reports would mix with ours."""
    context = ray.data.DataContext.get_current()
    wanted = {"enable_progress_bars": False, "print_on_execution_start": False}
    logger = logging.getLogger("ray.data")
    with ExitStack() as stack:
        for name, value in wanted.items():
            if hasattr(context, name):
                stack.callback(setattr, context, name, getattr(context, name))
                setattr(context, name, value)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        yield
