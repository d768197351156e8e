"""``convoy bench``: throughput and latency of a served model beside the limit of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.connection import naming_the_served
from convoy.cli.console import json_option, print_json, remark, stdout_console

if TYPE_CHECKING:
    from convoy.serving.load import Load, Target
    from convoy.serving.load.measurement import Measurement, Window
    from convoy.serving.load.report import BenchReport

_POSITIVE = click.FloatRange(min=0, min_open=True)


def _whole_numbers(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """``1,4,16``."""
    try:
        return None if value is None else tuple(int(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected whole numbers between commas, such as 1,4,16, found {value!r}.") from None


def _numbers(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """``500,1000.5``."""
    try:
        return None if value is None else tuple(float(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers between commas, such as 500,1000, found {value!r}.") from None


def _shapes(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """``INPUT=3,224,224``, any number of times; nothing behind the sign is a scalar's shape."""
    shapes = {}
    for value in values:
        name, separator, dims = value.rpartition("=")
        words = dims.split(",") if dims else []
        if not (separator and name) or not all(word.isascii() and word.isdigit() for word in words):
            raise click.BadParameter(
                f"expected an input and its shape without the batch, such as input=3,224,224, found {value!r}."
            )
        shapes[name] = tuple(int(word) for word in words)
    return shapes


@click.command("bench")
@click.argument("model_name", metavar="MODEL")
@click.option("--url", help="Measure this server: grpc://HOST:PORT or http://HOST:PORT.  [default: a private server]")
@click.option("--model-version", default="", metavar="VERSION", help="The version to ask.  [default: the server's choice]")
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    envvar="CONVOY_REPOSITORY",
    help="Where the model's file is.",
)
@click.option(
    "--protocol",
    type=click.Choice(["grpc", "http"]),
    help="How to speak to a private server; grpc by default. A --url says it itself.",
)
@click.option(
    "--concurrency",
    metavar="N,N,...",
    callback=_whole_numbers,
    help="Requests in flight, a measurement each.  [default: 1,4,16,64]",
)
@click.option(
    "--rate", metavar="N,N,...", callback=_numbers, help="Requests a second that come at random times, a measurement each."
)
@click.option(
    "--max-outstanding",
    type=click.IntRange(1, 16384),
    default=512,
    show_default=True,
    help="Requests unanswered at once, with --rate.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Images a request.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=N,N,...",
    callback=_shapes,
    help="An input's shape without the batch, where the model leaves it open.",
)
@click.option("--window", "window_s", type=_POSITIVE, default=1.0, show_default=True, help="Seconds a window.")
@click.option(
    "--max-windows", type=click.IntRange(3, 10_000), default=10, show_default=True, help="Give up on a stable result after these."
)
@click.option(
    "--warm-up", "warm_up_s", type=click.FloatRange(min=0), default=0.5, show_default=True, help="Seconds before the first."
)
@click.option(
    "--processes", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N", help="Processes that make the load."
)
@click.option(
    "--streams", type=click.IntRange(min=1), default=6, show_default=True, metavar="N", help="gRPC calls that share a connection."
)
@click.option("--timeout", "timeout_s", type=_POSITIVE, default=30.0, show_default=True, help="Seconds to wait for an answer.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the arrivals and of the input's values.")
@click.option("--no-limit", is_flag=True, help="Leave the limit of this machine out.")
@click.option(
    "--plot", "plot_path", type=click.Path(path_type=Path), metavar="FILE", help="Draw latency over throughput (.png, .svg)."
)
@json_option
def command(
    model_name: str,
    url: str | None,
    model_version: str,
    repository: Path,
    protocol: str | None,
    concurrency: tuple[int, ...] | None,
    rate: tuple[float, ...] | None,
    max_outstanding: int,
    shapes: dict[str, tuple[int, ...]],
    no_limit: bool,
    plot_path: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure throughput and latency of MODEL under load, beside the limit of this machine.

    Without --url a private server is started on the model alone and stopped afterwards. With --concurrency that many requests are
    in flight at any time (closed loop: for throughput). With --rate requests come at random times whether or not others have been
    answered (open loop: for latency), which counts from the moment when a request was due.

    Each load runs in windows until the last three agree within 10 %. The limit is ONNX Runtime alone in one process, before and
    after the loads; it needs the model's file in --repository, and a server on this machine.

    Exit status: 0 done, 1 requests failed or the server did, 2 wrong use.

    \b
      convoy bench lenet5
      convoy bench lenet5 --url http://localhost:8000 --concurrency 1,16 --plot lenet5.png
      convoy bench lenet5 --rate 500,1000,2000
    """  # noqa: D301  # the backspace is click's mark for lines to leave as they are
    from convoy.contract.errors import ClientError
    from convoy.serving.load import Closed, Open, Target
    from convoy.serving.load.benching import bench, is_local, model_file
    from convoy.serving.load.plot import check_plot_path, plot

    if url is not None and protocol is not None:
        raise click.UsageError(f"--protocol goes with a private server; --url {url} says how to speak to it (grpc://, http://).")
    loads: list[Load] = [Closed(n) for n in concurrency or (() if rate else (1, 4, 16, 64))]
    loads += [Open(each, max_outstanding) for each in rate or ()]
    if plot_path is not None:
        check_plot_path(plot_path)
    wanted = {name: options.pop(name) for name in ("batch_size", "timeout_s", "streams")}
    with _server(repository, model_name, url, protocol) as at, naming_the_served(at, wanted["timeout_s"]):
        target = Target.of(at, model_name, model_version=model_version, shapes=shapes, seed=options["seed"], **wanted)
        path = None if no_limit else _limit_path(model_file(repository, target), repository, target, local=is_local(at))
        report = bench(
            target,
            loads,
            private=url is None,
            model_path=path,
            say=lambda words: remark(f"{words} ..."),
            on_window=_tell,
            **options,
        )
    if plot_path is not None:
        plot(report, plot_path)
        remark(f"Written: {plot_path}")
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if report.n_errors:
        raise ClientError(f"{report.n_errors:,} requests failed. The first one: {report.first_error}")


@contextmanager
def _server(repository: Path, model_name: str, url: str | None, protocol: str | None) -> Iterator[str]:
    """The URL of the server to measure."""
    if url is not None:
        yield url
        return
    from convoy.serving.load.private import private_server

    remark(f"Starting a private Triton on {repository / model_name} ...")
    with private_server(repository, model_name) as server:
        yield server.http_url if protocol == "http" else server.grpc_url


def _limit_path(path: Path | None, repository: Path, target: Target, *, local: bool) -> Path | None:
    """The file for the limit; says why there is none."""
    if not local:
        remark("The server is on another machine: the limit of this one says nothing about it, and is left out.")
        return None
    if path is None:
        version = f" version {target.answered_version}" if target.answered_version else ""
        remark(f"{repository} has no file of {target.model_name}{version}: the limit of this machine is left out.")
    return path


def _tell(load: Load, window: Window) -> None:
    latency = f"p50 {window.latency_ms.p50:.2f} ms, p99 {window.latency_ms.p99:.2f} ms" if window.latency_ms else "no answer"
    failed = f", {window.n_errors} failed" if window.n_errors else ""
    remark(f"  {load}: {window.requests_per_s:,.0f} requests/s, {latency}{failed}")


def _print(report: BenchReport) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["load", "req/s", "images/s", "p50 ms", "p99 ms", "mean batch", "queue ms", "of the limit", "generator CPU", "stable"]
    if report.n_errors:
        columns.append("failed")
    for column in columns:
        table.add_column(column, justify="left" if column == "load" else "right", no_wrap=True)
    for measurement in report.measurements:
        row = _row(report, measurement)
        table.add_row(*row, *([f"{measurement.n_errors:,}"] if report.n_errors else []))
    stdout_console().print(table)
    for line in _notes(report):
        click.echo(line)


def _row(report: BenchReport, measurement: Measurement) -> list[str]:
    latency, server, share = measurement.latency_ms, measurement.server, report.share_of_limit(measurement)
    return [
        str(measurement.load),
        f"{measurement.requests_per_s:,.0f}",
        f"{measurement.images_per_s:,.0f}",
        f"{latency.p50:.2f}" if latency else "-",
        f"{latency.p99:.2f}" if latency else "-",
        f"{server.mean_batch_size:.1f}" if server else "-",
        f"{server.queue_us / 1e3:.2f}" if server else "-",
        f"{share:.0%}" if share is not None else "-",
        f"{measurement.generator_cpu:.0%}",
        "yes" if measurement.stable else "no",
    ]


def _notes(report: BenchReport) -> Iterator[str]:
    """What a reader of the table must know."""
    version = f" version {report.model_version}" if report.model_version else ""
    first = report.measurements[0]
    images = "1 image" if first.batch_size == 1 else f"{first.batch_size} images"
    server = "a private server" if report.private else report.url
    yield f"\n{report.model_name}{version} on {server}, {'gRPC' if first.protocol == 'grpc' else 'REST'}, {images} a request"
    if report.limit is not None:
        best = report.limit.before.best
        threads = "1 thread" if best.threads == 1 else f"{best.threads} threads"
        yield (
            f"limit: {report.limit.images_per_s:,.0f} images/s, ONNX Runtime in process with batches of {best.batch_size} and "
            f"{threads} ({report.limit.drift - 1:+.0%} after the loads)"
        )
    for measurement in report.measurements:
        if measurement.generator_was_the_limit:
            yield (
                f"{measurement.load}: the load generator took {measurement.generator_cpu:.0%} of a core: it may have been the "
                f"limit. Try --processes {measurement.n_processes + 1}."
            )
        if not measurement.kept_up:
            late, unsent = measurement.n_held, measurement.n_unsent
            yield (
                f"{measurement.load}: the server did not keep up: {late:,} requests waited for their turn to be sent, and "
                f"{unsent:,} never had it; the latencies would grow with the time."
            )
        if measurement.server is not None and measurement.server.n_cache_hits:
            n_hits = measurement.server.n_cache_hits
            yield f"{measurement.load}: the response cache answered {n_hits:,} requests: they ran no model."
    if not all(measurement.stable for measurement in report.measurements):
        yield "not stable: the last windows differ by more than 10 %; a longer --window, or a quieter machine, may help."
