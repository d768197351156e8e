"""``convoy tune``: finds the batching configuration of a model by measurement."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convoy.cli.console import json_option, print_json, remark
from convoy.cli.deploy import repository_option

if TYPE_CHECKING:
    from convoy.serving.tuning.search import Step


@click.command("tune")
@click.argument("model")
@repository_option
@click.option("--latency-budget-ms", type=float, help="Find the most images/s whose p99 latency stays within this.")
@click.option("--concurrency", default="1,16,64", show_default=True, help="Numbers of callers to measure with, with commas.")
@click.option("--protocol", type=click.Choice(["grpc", "http"]), default="grpc", show_default=True, help="How the load is sent.")
@click.option("--shape", "shapes", multiple=True, metavar="INPUT=N,N", help="The shape of an input whose extents are open.")
@click.option("--window", "window_s", type=float, default=0.5, show_default=True, help="Seconds of a measurement's window.")
@click.option("--rounds", type=click.IntRange(3, 99), default=6, show_default=True, help="Rounds of the proof at the end.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the evidence goes.  [default: tuning/MODEL-TIME]")
@click.option("--apply", is_flag=True, help="Write what was found into the repository, too.")
@json_option
def command(
    model: str,
    repository: Path,
    latency_budget_ms: float | None,
    concurrency: str,
    protocol: str,
    shapes: tuple[str, ...],
    window_s: float,
    rounds: int,
    out: Path | None,
    apply: bool,
    as_json: bool,
) -> None:
    """Find the batch sizes, queue delay, instances and threads that serve MODEL best on this machine.

    Real load runs on a private server, each candidate in turns with the best setting so far. Without a budget, best is the most
    images/s over all numbers of callers (their geometric mean). The setting in force stays unless another one beats it in every
    round of a proof at the end. Takes minutes; nothing else should run on the machine.

    Writes a folder with the configuration, a report with table and plot, and all measurements. A running `convoy serve` takes the
    configuration up once --apply has written it.

    Exit status: 0 done (changed or not), 1 the model cannot be served or no setting keeps the budget, 2 wrong use.
    """
    from convoy.serving.tuning.contest import Method
    from convoy.serving.tuning.evidence import as_dict, verdict, write_evidence
    from convoy.serving.tuning.objective import Objective
    from convoy.serving.tuning.tuning import Subject, axes_of, tune

    method = Method(Objective(_numbers(concurrency), latency_budget_ms), protocol, window_s)
    subject = Subject.of(repository, model)
    out = out or Path("tuning") / f"{model}-{time.strftime('%Y%m%d-%H%M%S')}"
    if out.exists():
        raise click.UsageError(f"--out: expected a folder that is not there yet, found {out}.")
    machine = {"cores": _cores(), "n_gpus": _gpus()}
    axes = axes_of(subject, method, **machine)
    remark(f"Tuning {model} version {subject.version} by {method.objective} ({protocol}).")
    remark("Axes: " + "; ".join(f"{axis.name} ({len(axis.choices)})" for axis in axes) + ". Each line is a candidate.")
    tuning = tune(
        subject, method, **machine, shapes=dict(map(_shape, shapes)), final_rounds=rounds, on_step=None if as_json else _show
    )
    write_evidence(tuning, out)
    if apply and tuning.changed:
        from convoy.serving.repository import Repository

        Repository(repository).configure(model, subject.config.to_bytes(), tuning.config().to_bytes())
    if as_json:
        print_json({**as_dict(tuning), "out": str(out), "applied": apply and tuning.changed})
        return
    click.echo(verdict(tuning))
    click.echo(f"Evidence: {out}/report.md")
    if tuning.changed and not apply:
        click.echo(
            f"Next: cp {out}/config.pbtxt {subject.model_folder}/config.pbtxt   (a running `convoy serve` takes it up by itself)"
        )


def _show(step: Step) -> None:
    if step.comparison is None:
        remark(f"  {step.axis}: {step.candidate}: cannot be served")
        return
    found = step.comparison
    remark(
        f"  {step.axis}: {step.candidate}: {found.value - 1:+.1%} ({found.low - 1:+.1%} to {found.high - 1:+.1%})"
        f"{' <- taken' if step.taken else ''}"
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise click.UsageError(f"--concurrency: expected whole numbers with commas, such as 1,16,64, found {text!r}.") from None


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, extents = text.partition("=")
    try:
        return name, tuple(int(extent) for extent in extents.split(","))
    except ValueError:
        raise click.UsageError(f"--shape: expected INPUT=N,N, such as image=224,224,3, found {text!r}.") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> int:
    """GPUs that the model's server would use: ``KIND_AUTO`` takes one where ONNX Runtime can."""
    import onnxruntime

    return (
        1 if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and Path("/proc/driver/nvidia/gpus").is_dir() else 0
    )
