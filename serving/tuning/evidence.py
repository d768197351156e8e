"""What tuning leaves for people: the configuration, a report with table and plot, and every measurement."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from convoy.contract.errors import MissingDependencyError
from convoy.contract.files import new_folder, write_bytes
from convoy.serving.repository.config import CONFIG_FILE
from convoy.serving.tuning.objective import Comparison
from convoy.serving.tuning.search import Step
from convoy.serving.tuning.tuning import Tuning, medians

REPORT_FILE: Final = "report.md"
RECORDS_FILE: Final = "tuning.json"
PLOT_FILE: Final = "latency_throughput.svg"


def write_evidence(tuning: Tuning, folder: Path) -> None:
    """Write a folder with ``config.pbtxt``, ``report.md``, ``tuning.json`` and, where matplotlib is installed, a plot.

    Args:
        tuning: What tuning found.
        folder: Must not exist; it appears whole or not at all.

    Raises:
        FileExistsError: It exists.
    """
    with new_folder(folder) as aside:
        write_bytes(aside / CONFIG_FILE, tuning.config().to_bytes())
        write_bytes(aside / RECORDS_FILE, (json.dumps(as_dict(tuning), indent=2) + "\n").encode())
        try:
            from convoy.serving.tuning.plot import plot_tuning

            plot_tuning(tuning, aside / PLOT_FILE)
            plotted = True
        except MissingDependencyError:
            plotted = False
        write_bytes(aside / REPORT_FILE, report(tuning, plotted=plotted).encode())


def as_dict(tuning: Tuning) -> dict[str, Any]:
    """JSON's form of all that was found."""
    return {
        "model_name": tuning.subject.model_folder.name,
        "model_version": str(tuning.subject.version),
        "objective": str(tuning.objective),
        "latency_budget_ms": tuning.objective.latency_budget_ms,
        "concurrencies": list(tuning.objective.concurrencies),
        "protocol": tuning.protocol,
        "machine": machine(),
        "default": tuning.default.as_dict(),
        "chosen": tuning.chosen.as_dict(),
        "changed": tuning.changed,
        "gain": _comparison(tuning.proof),
        "n_tried": tuning.n_tried,
        "n_combinations": tuning.n_combinations,
        "steps": [
            {
                "axis": step.axis,
                "candidate": step.candidate.as_dict(),
                "incumbent": step.incumbent.as_dict(),
                "ratio": _comparison(step.comparison),
                "taken": step.taken,
            }
            for step in tuning.steps
        ],
        "measurements": [
            {"setting": record.setting.as_dict(), "concurrency": concurrency, **vars(point)}
            for record in tuning.records
            for concurrency, point in record.points.items()
        ],
    }


def machine() -> dict[str, Any]:
    """What it was measured on."""
    versions = {}
    for package in ("nvidia-pytriton", "onnxruntime-gpu", "onnxruntime", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "python": platform.python_version(),
        "versions": versions,
    }


def report(tuning: Tuning, *, plotted: bool) -> str:
    """The report, in Markdown."""
    where = machine()
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    parts = [
        f"# {tuning.subject.model_folder.name} version {tuning.subject.version}, tuned",
        verdict(tuning),
        f"Judged by {tuning.objective}; {tuning.protocol}, one image a request, closed loop. Load and server shared the machine.",
        f"{where['processor']}, {where['cores']} cores, {where['system']}, Python {where['python']}, {versions}; {where['time']}.",
        "## Before and after\n\nMedians of all rounds; a batch is images an execution.\n\n" + _table(tuning),
    ]
    parts.append(f"![latency over throughput]({PLOT_FILE})" if plotted else "No plot: matplotlib is not installed.")
    parts.append(
        f"## What was tried\n\n{tuning.n_tried} of {tuning.n_combinations} settings, each in turns with the best one so far. A "
        "ratio is the candidate's score over the incumbent's, median and range of the rounds.\n\n" + _steps(tuning.steps)
    )
    return "\n\n".join(parts) + "\n"


def verdict(tuning: Tuning) -> str:
    """What to do, in a sentence or two."""
    if tuning.proof is None:
        return f"The setting in force is the best that was found: {tuning.default}."
    rounds = f"{_percent(tuning.proof.low)} to {_percent(tuning.proof.high)} in {len(tuning.proof.ratios)} rounds"
    gain = f"{_percent(tuning.proof.value)} ({rounds})"
    if tuning.changed:
        return f"Serve with {tuning.chosen}: {gain} against {tuning.default}."
    return f"Keep {tuning.default}: {tuning.found} looked better in the search, but not in every round of the proof: {gain}."


def _percent(ratio: float) -> str:
    return "from nothing" if ratio == float("inf") else f"{ratio - 1:+.1%}"


def _table(tuning: Tuning) -> str:
    rows = ["| callers | setting | images/s | p50 ms | p99 ms | batch |", "|--:|---|--:|--:|--:|--:|"]
    settings = [("before", tuning.default), *([("after", tuning.chosen)] if tuning.changed else [])]
    found = {name: medians(tuning.records, setting) for name, setting in settings}
    for concurrency in tuning.objective.concurrencies:
        for name, points in found.items():
            point = points[concurrency]
            rows.append(
                f"| {concurrency} | {name} | {point.images_per_s:,.0f} | {point.p50_ms:.2f} | {point.p99_ms:.2f} | "
                f"{point.mean_batch_size:.1f}{'' if point.stable else ' (not stable)'} |"
            )
    return "\n".join(rows)


def _steps(steps: Sequence[Step]) -> str:
    rows = ["| axis | candidate | against | ratio | taken |", "|---|---|---|---|---|"]
    for step in steps:
        found = "cannot be served" if step.comparison is None else _ratio(step.comparison)
        rows.append(f"| {step.axis} | {step.candidate} | {step.incumbent} | {found} | {'yes' if step.taken else ''} |")
    return "\n".join(rows)


def _ratio(comparison: Comparison) -> str:
    return f"{comparison.value:.3f} ({comparison.low:.3f} to {comparison.high:.3f})"


def _comparison(comparison: Comparison | None) -> dict[str, Any] | None:
    """JSON has no infinity: a candidate that alone keeps the budget has null."""
    if comparison is None:
        return None

    def finite(value: float) -> float | None:
        return None if value == float("inf") else value

    return {
        "value": finite(comparison.value),
        "low": finite(comparison.low),
        "high": finite(comparison.high),
        "ratios": [finite(ratio) for ratio in comparison.ratios],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor")
