"""``bench``: a model under several loads, one after the other, beside the limit of this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from convoy.serving.load.limit import in_process_limit
from convoy.serving.load.measurement import Measurement, Window
from convoy.serving.load.measuring import measure
from convoy.serving.load.report import BenchReport, MachineLimit
from convoy.serving.load.target import Target, value_ranges
from convoy.serving.load.traffic import Load

MODEL_FILE: Final = "model.onnx"


def bench(
    target: Target,
    loads: Sequence[Load],
    *,
    private: bool = False,
    model_path: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_window: Callable[[Load, Window], None] | None = None,
    on_measurement: Callable[[Measurement], None] | None = None,
    **options: Any,
) -> BenchReport:
    """Put loads on a model, one after the other, and measure this machine's limit for it before and after.

    Args:
        target: The model.
        loads: The loads.
        private: Whether its server was started for this.
        model_path: The model's file, for the limit; None measures no limit.
        say: Is told what is done, in words.
        on_window: Is told each window as it ends.
        on_measurement: Is told each measurement as it ends.
        **options: As ``measure`` has them.

    Raises:
        ConvoyError: As ``measure`` and ``in_process_limit`` do.
    """
    before = None
    limits: dict[str, Any] = {
        "shapes": target.shapes,
        "ranges": value_ranges(target.config),
        "providers": providers_of(target),
    }
    if model_path is not None:
        say("measuring the limit of this machine: ONNX Runtime in process")
        before = in_process_limit(model_path, max_batch_size=target.max_batch_size, **limits)
    measurements = []
    for load in loads:
        say(f"{load}")
        told = None if on_window is None else (lambda window, load=load: on_window(load, window))
        measurements.append(measure(target, load, on_window=told, **options))
        if on_measurement is not None:
            on_measurement(measurements[-1])
    limit = None
    if model_path is not None and before is not None:
        say("measuring the limit of this machine again")
        best = before.best
        sizes = [best.batch_size if target.max_batch_size else 0]
        after = in_process_limit(model_path, batch_sizes=sizes, threads=[best.threads], seconds=1.0, **limits)
        limit = MachineLimit(before, after.best)
    return BenchReport(
        url=target.url,
        model_name=target.model_name,
        model_version=target.answered_version,
        private=private,
        measurements=tuple(measurements),
        limit=limit,
    )


def model_file(repository: Path, target: Target) -> Path | None:
    """The file behind the version that answered, where the repository holds it; None where it does not."""
    name = target.config.get("default_model_filename") or MODEL_FILE
    path = repository / target.model_name / target.answered_version / str(name)
    return path if target.answered_version and path.is_file() else None


def is_local(url: str) -> bool:
    """Whether a server's URL names this machine's loopback, so that its limit is this machine's."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def providers_of(target: Target) -> tuple[str, ...]:
    """ONNX Runtime's execution providers for a model: those of the processors on which the server runs it."""
    kinds = {group.get("kind") for group in target.config.get("instance_group", [])}
    return ("CUDAExecutionProvider", "CPUExecutionProvider") if "KIND_GPU" in kinds else ("CPUExecutionProvider",)
