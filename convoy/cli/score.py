"""``convoy score``: classify or read a whole set into a data set, each input exactly once."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.box import box_option
from convoy.cli.connection import Connection, naming_the_served, server_options
from convoy.cli.console import json_option, print_json, remark

_SECRET: Final = {"--header": ":", "--storage-option": "="}
"""Options whose values are not shown, and what stands between name and value."""

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from convoy.serving.scoring import Progress, ScoreRun, ScoreSummary

_TELL_EVERY_S: Final = 60.0
_INTERRUPTED: Final = 130  # as of every command that Ctrl-C ends


@click.command("score")
@click.argument("model_name", metavar="MODEL")
@click.argument("source")
@click.argument("out")
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="List the N likeliest classes or amounts.",
)
@click.option("--labels-from-folders", is_flag=True, help="Take SOURCE's sub-folders as true labels; tells the accuracy.")
@click.option("--column", metavar="NAME", help="The column (or .npz array) of SOURCE with the images or their paths.")
@click.option("--label-column", metavar="NAME", help="The column (or .npz array) of SOURCE with true labels; of tar shards: cls.")
@box_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["parquet", "csv", "jsonl"]),
    default="parquet",
    show_default=True,
    help="What the files of OUT are.",
)
@click.option("--rows-per-file", type=click.IntRange(min=1), metavar="N", help="Rows of each file of OUT.  [default: 65,536]")
@click.option(
    "--chunk-rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Inputs that are committed together: what a kill may cost.  [default: 1,024]",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    metavar="N",
    help="The most requests under way (of each worker, with --engine ray); how many there are adapts to the server.",
)
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for servers that are gone.",
)
@click.option("--in-process", is_flag=True, help="Ask no server: run the model of --repository with ONNX Runtime, here.")
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    envvar="CONVOY_REPOSITORY",
    help="The model repository of --in-process.",
)
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="This process, or a Ray cluster."
)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, metavar="N", help="Workers of --engine ray.")
@click.option(
    "--storage-option",
    "storage_options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=lambda _context, _parameter, values: _storage_options(values),
    help="What fsspec is told of URLs: an endpoint, a profile. May be given more than once.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Write a page for people: histograms, accuracy, confusions, the inputs that stand out.",
)
@click.option(
    "--reference", metavar="RUN", help="Tell the drift from RUN: the OUT of an earlier run, or a run folder of `convoy train`."
)
@server_options
@json_option
def command(
    model_name: str,
    source: str,
    out: str,
    top_k: int,
    labels_from_folders: bool,
    column: str | None,
    label_column: str | None,
    box: tuple[int, int, int, int] | None,
    form: Any,
    rows_per_file: int | None,
    chunk_rows: int | None,
    in_flight: int,
    patience_s: float,
    in_process: bool,
    repository: Path,
    engine: Any,
    workers: int,
    storage_options: Mapping[str, Any],
    report: Path | None,
    reference: str | None,
    model_version: str,
    server: Connection,
    as_json: bool,
) -> None:
    """Classify or read every image of SOURCE with MODEL, and write one row an input into the data set OUT.

    SOURCE is a folder (with its sub-folders), a pattern ('scans/**/*.png'), a list of paths (.txt, .csv, or - for stdin), Parquet
    with images or paths, tar shards (WebDataset), or uint8 images as .npy, .npz or IDX; here or behind a URL (s3://, gs://).

    OUT is a folder, or a URL, of Parquet files. Each input has exactly one row; one that cannot be read has its reason in the
    column `error`. One version of the model scores everything. A run that was stopped or killed goes on where it was when the same
    command is given again; a finished one is summed up anew. Ctrl-C stops after the chunks in flight, a second one at once.

    Exit status: 0 every input was scored, 1 some rows hold an error or the run stopped, 2 wrong use, 130 interrupted (Ctrl-C,
    SIGTERM).

    \b
      convoy score lenet5 scans/ scans.scored
      convoy score lenet5 testset/ testset.scored --labels-from-folders
      convoy score lenet5 s3://bucket/shards-{000..099}.tar s3://bucket/scored
      convoy score check-reader fields/ fields.scored --top-k 3
      convoy score check-reader forms/ amounts.scored --box 1130,240,420,90
    """  # noqa: D301  # the backspace is click's mark for lines to leave as they are
    from convoy.contract.errors import ScoringError
    from convoy.serving.scoring import score

    with naming_the_served(server.urls, server.timeout_s, server.headers), _shown(model_name) as view:
        run = score(
            model_name,
            source,
            out,
            url=server.urls,
            tls=server.tls(),
            in_process=repository if in_process else None,
            model_version=model_version,
            top_k=top_k,
            labels_from_folders=labels_from_folders,
            column=column,
            label_column=label_column,
            box=box,
            chunk_rows=chunk_rows,
            rows_per_file=rows_per_file,
            format=form,
            in_flight=in_flight,
            timeout_s=server.timeout_s,
            patience_s=patience_s,
            headers=server.headers,
            storage_options=storage_options,
            engine=engine,
            workers=workers,
            on_progress=view.show,
            on_waiting=lambda why: view.wait(why, patience_s),
            report=report,
            reference=reference,
        )
        with _stoppable(run) as stopped:
            try:
                summary = run.finish()
            except ScoringError as error:
                if not stopped():
                    raise
                remark(f"convoy: {error}\n  {_again()}")
                raise SystemExit(_INTERRUPTED) from None
            except KeyboardInterrupt as interrupt:
                remark(f"\nStopped at once. What was committed is in {out}; this goes on from there:\n  {_again()}")
                raise click.Abort from interrupt
    if as_json:
        print_json(asdict(summary))
    else:
        _print(summary)
    if summary.n_failed:
        raise ScoringError(f"{summary.n_failed} of {summary.n} inputs could not be scored; the column `error` of {out} says why.")


class _View:
    """A live view of the run on stderr; where that is no terminal a line now and then.

    Args:
        model_name: The model.
        bar: The view's bar.
        task: Its task.
        live: Whether stderr is a terminal.
    """

    def __init__(self, model_name: str, bar: Bar, task: TaskID, *, live: bool) -> None:
        self._model_name, self._bar, self._task, self._live = model_name, bar, task, live
        self._began = self._told = time.monotonic()
        self._state = ""

    def show(self, progress: Progress) -> None:
        """Show how far the run is."""
        now = time.monotonic()
        rate = (progress.done - progress.resumed) / max(now - self._began, 1e-9)
        self._state = f"{rate:,.0f}/s"
        if progress.latencies_ms:
            ordered = sorted(progress.latencies_ms)
            p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
            self._state += f", p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        if progress.failed:
            self._state = f"{progress.failed:,} failed, {self._state}"
        if progress.queue_ms is not None:
            self._state += f", queue {progress.queue_ms:.1f} ms"
        name = f"{self._model_name} {progress.model_version}"
        self._bar.update(self._task, description=name, completed=progress.done, total=progress.n, state=self._state)
        if not self._live and now - self._told >= _TELL_EVERY_S:
            self._told = now
            remark(f"{progress.done:,} of {progress.n:,} inputs, {self._state}")

    def wait(self, why: str, patience_s: float) -> None:
        """Say that servers are waited for; with "" that they answer again."""
        self._bar.update(self._task, state="waiting for the server" if why else self._state)
        said = f"Waiting up to {patience_s:g} s for the server: {why}" if why else "The server answers."
        self._bar.console.print(said, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _shown(model_name: str) -> Iterator[_View]:
    """The view of a run, as long as the ``with`` block lasts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    console = Console(file=sys.stderr)
    # What comes first stands there on any terminal; the last column has what room is left.
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=16),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("left", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[state]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    live = console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=not live, refresh_per_second=4, expand=True) as bar:
        yield _View(model_name, bar, bar.add_task(model_name, total=None, state="listing the source"), live=live)


@contextmanager
def _stoppable(run: ScoreRun) -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM (`docker stop`, a batch system's limit) ends a run in order, the second at once."""
    n = 0

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal n
        n += 1
        if n > 1:
            raise KeyboardInterrupt
        remark("\nStopping after the chunks in flight; once more stops at once.")
        run.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: n > 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _again() -> str:
    """The command that goes on: the same again, as a shell takes it. Values of headers and storage options may be secret."""
    import shutil

    name = Path(sys.argv[0]).name
    words = [sys.executable, "-m", "convoy"] if name == "__main__.py" else ["convoy"]
    if name == "convoy" and shutil.which(name) is None:
        words = [sys.argv[0]]
    before = ""
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if option in _SECRET and equals:
            words.append(f"{option}={_without_secret(option, value)}")
        else:
            words.append(_without_secret(before, word) if before in _SECRET else word)
        before = word if before not in _SECRET else ""
    return shlex.join(words)


def _without_secret(option: str, value: str) -> str:
    name, mark, _ = value.partition(_SECRET[option])
    return f"{name}{mark}..." if mark else "..."


def _storage_options(values: tuple[str, ...]) -> dict[str, Any]:
    import json

    options: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"expected NAME=VALUE, found {text!r}.")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _print(summary: ScoreSummary) -> None:
    from convoy.cli.scored import describe_answers
    from convoy.serving.scoring import describe_skipped

    failed = f", {summary.n_failed:,} failed" if summary.n_failed else ""
    rate = f" ({summary.throughput_ips:,.0f} images/s)" if summary.throughput_ips else ""
    resumed = f" ({summary.n_resumed:,} by earlier runs)" if summary.n_resumed else ""
    click.echo(
        f"{summary.n_scored:,} of {summary.n:,} inputs scored{resumed}{failed} with {summary.model_name} version "
        f"{summary.model_version} in {summary.duration_s:.1f} s{rate}"
    )
    for line in describe_answers(summary):
        click.echo(line)
    if summary.skipped:
        click.echo(f"skipped: {describe_skipped(summary.skipped)}")
    click.echo(f"written: {summary.out}")
    if summary.report is not None:
        click.echo(f"report: {summary.report}")
