"""``convoy serve``: runs Triton on a model repository until it is stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from convoy.cli.console import json_option, print_json, remark

if TYPE_CHECKING:
    from convoy.serving.triton import TritonServer

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 3.0
"""A stop that takes longer says why."""


class _Stopped(BaseException):
    """A signal came before the server was up."""


@click.command()
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    envvar="CONVOY_REPOSITORY",
    help="The model repository.",
)
@click.option("--http-port", type=int, default=8000, show_default=True, help="Where REST listens; 0 for any free port.")
@click.option("--grpc-port", type=int, default=8001, show_default=True, help="Where gRPC listens; 0 for any free port.")
@click.option(
    "--metrics-port", type=int, default=8002, show_default=True, help="Where Prometheus metrics are; 0 for any free port."
)
@click.option("--log", "log_path", type=click.Path(path_type=Path, dir_okay=False), help="Append Triton's log to this file.")
@click.option("--verbose", is_flag=True, help="Copy Triton's log to stderr.")
@click.option("--keep-going", is_flag=True, help="Serve the other models where one cannot be loaded, and go on trying that one.")
@click.option(
    "--start-timeout", "start_timeout_s", type=float, default=120.0, show_default=True, help="Seconds until all must answer."
)
@json_option
def command(
    repository: Path,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    log_path: Path | None,
    verbose: bool,
    keep_going: bool,
    start_timeout_s: float,
    as_json: bool,
) -> None:
    """Run NVIDIA Triton on a model repository until stopped (Ctrl-C, or SIGTERM).

    Listens on 127.0.0.1. Says what is served once every model has answered its golden inputs as PyTorch did. Then follows the
    repository: what `convoy deploy` and `convoy rollback` change is loaded without dropping a request; a model whose process
    dies is loaded again; a server that crashes or is killed is started again.

    Exit status: 0 stopped, 1 a model cannot be served or the server died, 2 wrong use, or this machine lacks something
    (`convoy doctor`).
    """
    from convoy.serving.triton import TritonServer

    stop = threading.Event()
    patience = threading.Timer(_PATIENCE_S, remark, ["Still stopping: requests under way are given up to 15 s."])
    server = TritonServer(
        repository,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log_path=log_path,
        keep_going=keep_going,
        start_timeout_s=start_timeout_s,
    )
    try:
        with _signals(stop) as started:
            server.check()
            if not as_json:
                remark(f"Starting Triton on {repository} ...")
            with server, _copied_log(server, verbose):
                started.set()
                _introduce(server, repository, as_json)
                for name, reason in server.served.failures.items():
                    _say(f"{name} is not served: {reason}")
                from convoy.serving.triton import Supervisor  # loaded already, but for a little: the server's start did

                Supervisor(server, _say).run(stop)
                remark("Stopping ...")
                patience.start()
    except _Stopped:
        remark("Stopped before the server was up.")
    finally:
        patience.cancel()


@contextmanager
def _signals(stop: threading.Event) -> Iterator[threading.Event]:
    """Let signals set ``stop``, or raise ``_Stopped`` until the event that is given back is set."""
    started = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        first = not stop.is_set()
        stop.set()
        if first and not started.is_set():
            raise _Stopped

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _copied_log(server: TritonServer, verbose: bool) -> Iterator[None]:
    if not verbose:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=server.log.follow, args=(remark, done), name="triton-log")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _introduce(server: TritonServer, repository: Path, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "repository": str(repository),
                "urls": {"grpc": server.grpc_url, "http": server.http_url, "metrics": server.metrics_url},
                "models": [
                    {
                        "name": proof.model_name,
                        "version": proof.model_version,
                        "test_accuracy": proof.test_accuracy,
                        "n_goldens": proof.n_goldens,
                    }
                    for proof in server.served.proofs
                ],
                "failures": server.served.failures,
            }
        )
        return
    from convoy.serving.triton.watched import describe

    width = max(len(proof.model_name) for proof in server.served.proofs)
    click.echo("Serving")
    for proof in server.served.proofs:
        click.echo(f"  {proof.model_name:{width}}  {describe(proof)}")
    click.echo(f"gRPC     {server.grpc_url}\nREST     {server.http_url}\nmetrics  {server.metrics_url}")
    proofs = sorted(server.served.proofs, key=lambda proof: -proof.n_goldens)
    deployed = [proof.model_name for proof in proofs if (repository / proof.model_name / "config.pbtxt").exists()]
    name = (deployed or [proofs[0].model_name])[0]
    url = "" if server.ports["grpc"] == 8001 else f" --url {server.grpc_url}"
    predict = f"  convoy predict {name} IMAGE.png{url}\n" if deployed else ""  # others may not take images
    click.echo(f"Try\n{predict}  curl -s {server.http_url}/v2/models/{name}\nCtrl-C stops it.")


def _say(message: str) -> None:
    remark(f"{time.strftime('%H:%M:%S')} {message}")
