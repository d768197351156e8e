"""``convoy score``: classify a whole set into a Parquet file."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from convoy.cli.connection import Connection, naming_the_served, server_options
from convoy.cli.console import json_option, print_json, progress, remark

if TYPE_CHECKING:
    from convoy.serving.scoring import ScoreSummary


@click.command("score")
@click.argument("model_name", metavar="MODEL")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.parquet", type=click.Path(path_type=Path))
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="List the N likeliest classes."
)
@click.option("--labels-from-folders", is_flag=True, help="Take SOURCE's sub-folders as true labels; tells the accuracy.")
@click.option(
    "--in-flight", type=click.IntRange(1, 256), default=4, show_default=True, metavar="N", help="Batches at the server at once."
)
@click.option("--force", is_flag=True, help="Replace OUT where it is there already.")
@server_options
@json_option
def command(
    model_name: str,
    source: Path,
    out: Path,
    top_k: int,
    labels_from_folders: bool,
    in_flight: int,
    force: bool,
    model_version: str,
    server: Connection,
    as_json: bool,
) -> None:
    """Classify every image of SOURCE with MODEL through a running server, and write one row an input to OUT.parquet.

    SOURCE is a folder (with its sub-folders), a text file with one path a line, or uint8 images as .npy, .npz or IDX. An input that
    cannot be read has its reason in the column `error`. One version of the model scores everything. OUT.parquet appears whole at
    the end or not at all.

    Exit status: 0 every input was scored, 1 some rows hold an error or the run stopped, 2 wrong use.

    \b
      convoy score lenet5 scans/ scans.parquet
      convoy score lenet5 testset/ testset.parquet --labels-from-folders
    """  # noqa: D301  # the backspace is click's mark for lines to leave as they are
    from convoy.contract.errors import ScoringError
    from convoy.serving.scoring import score

    try:
        naming = naming_the_served(server.urls, server.timeout_s, server.headers)
        with _stoppable(), naming, server.client() as client, _shown(model_name) as on_progress:
            summary = score(
                model_name,
                source,
                out,
                client=client,
                model_version=model_version,
                top_k=top_k,
                labels_from_folders=labels_from_folders,
                in_flight=in_flight,
                force=force,
                timeout_s=server.timeout_s,
                on_progress=on_progress,
            )
    except KeyboardInterrupt as interrupt:
        remark(f"\nconvoy: the run was stopped before its end: nothing was written to {out}.")
        raise click.Abort from interrupt  # of which click writes no empty line
    if as_json:
        print_json(asdict(summary))
    else:
        _print(summary)
    if summary.n_failed:
        raise ScoringError(f"{summary.n_failed} of {summary.n} inputs could not be scored; the column `error` of {out} says why.")


@contextmanager
def _shown(model_name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told how far the run is."""
    with progress(unit="images") as bar:
        task = bar.add_task(f"scoring with {model_name}", total=None)
        started = time.monotonic()

        def show(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-9)
            bar.update(task, description=f"scoring with {model_name}, {rate:,.0f} images/s", completed=done, total=total)

        yield show


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM (`docker stop`, a batch system's limit) ends a run as cleanly as Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(summary: ScoreSummary) -> None:
    from convoy.serving.scoring import describe_skipped

    failed = f", {summary.n_failed:,} failed" if summary.n_failed else ""
    click.echo(
        f"{summary.n_scored:,} of {summary.n:,} inputs scored{failed} with {summary.model_name} version {summary.model_version} "
        f"in {summary.duration_s:.1f} s ({summary.throughput_ips:,.0f} images/s)"
    )
    if summary.accuracy is not None:
        click.echo(f"accuracy: {summary.accuracy:.2%} of {summary.n_labelled:,} labelled images")
    if summary.skipped:
        click.echo(f"skipped: {describe_skipped(summary.skipped)}")
    click.echo(f"written: {summary.out}")
