"""The latency-throughput plot of a model under load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from convoy.contract.errors import MissingDependencyError, UsageError
from convoy.contract.files import write_bytes
from convoy.serving.load.measurement import Measurement
from convoy.serving.load.traffic import Closed

if TYPE_CHECKING:
    from convoy.serving.load.report import BenchReport

SUFFIXES: Final = (".png", ".svg")

_P50, _P99, _LIMIT, _GRID, _INK = "#1f5fa8", "#d1661f", "#777777", "#e4e4e4", "#222222"


def check_plot_path(path: Path) -> Path:
    """Return ``path`` where a plot can be written to it.

    Raises:
        UsageError: Its name ends in neither ``.png`` nor ``.svg``, or its folder is not there.
        MissingDependencyError: matplotlib is not installed.
    """
    from importlib import util

    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}.")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder.")
    if util.find_spec("matplotlib") is None:
        raise MissingDependencyError("Plots are drawn with matplotlib: pip install matplotlib.")
    return path


def plot(report: BenchReport, path: Path) -> None:
    """Draw latency (p50 and p99) over throughput, one point a load, with this machine's limit as a line.

    Args:
        report: What was measured.
        path: Where to write it; its suffix says whether as PNG or as SVG.

    Raises:
        UsageError: As ``check_plot_path`` does, or nothing was measured.
        MissingDependencyError: matplotlib is not installed.
    """
    import io

    check_plot_path(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    measured = [one for one in report.measurements if one.latency_ms is not None]
    if not measured:
        raise UsageError("plot: no load was answered, so that there is nothing to draw.")
    with rc_context({"svg.hashsalt": "convoy", "font.size": 10}):
        figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        closed = sorted((one for one in measured if isinstance(one.load, Closed)), key=lambda one: one.load.concurrency)  # type: ignore[union-attr]
        opened = sorted((one for one in measured if not isinstance(one.load, Closed)), key=lambda one: one.load.rate_per_s)  # type: ignore[union-attr]
        _draw(axes, closed, "o-", "requests in flight")
        _draw(axes, opened, "s--", "arrivals/s")
        _frame(axes, report)
        drawn = io.BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        figure.savefig(drawn, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path, drawn.getvalue())


def _draw(axes: Any, measured: Sequence[Measurement], style: str, of: str) -> None:
    """Two lines: p50 and p99 of one kind of load, each point named by its load."""
    if not measured:
        return
    rates = [one.images_per_s for one in measured]
    for name, colour in (("p50", _P50), ("p99", _P99)):
        values = [getattr(one.latency_ms, name) for one in measured]
        axes.plot(rates, values, style, color=colour, markersize=6, linewidth=1.6, label=f"{name}, by {of}", zorder=3)
    for one, rate in zip(measured, rates, strict=True):
        load = f"{one.load.concurrency}" if isinstance(one.load, Closed) else f"{one.load.rate_per_s:g}/s"
        assert one.latency_ms is not None
        axes.annotate(
            load + ("" if one.stable else "*"),
            (rate, one.latency_ms.p99),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=_INK,
        )


def _frame(axes: Any, report: BenchReport) -> None:
    """Axes, limit, title and legend. Both axes are logarithmic: loads are doubled, and so is what comes of them."""
    from matplotlib.ticker import LogLocator, NullLocator

    if report.limit is not None:
        best = report.limit.before.best
        threads = "1 thread" if best.threads == 1 else f"{best.threads} threads"
        axes.axvline(report.limit.images_per_s, color=_LIMIT, linewidth=1.4, linestyle=":", zorder=2)
        axes.annotate(
            f"ONNX Runtime in process:\n{report.limit.images_per_s:,.0f} images/s\n(batches of {best.batch_size}, {threads})",
            (report.limit.images_per_s, 0.03),
            xycoords=("data", "axes fraction"),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
            color=_LIMIT,
        )
    for axis, margin in ((axes.xaxis, {"x": 0.08}), (axes.yaxis, {"y": 0.15})):
        axes.margins(**margin)
        getattr(axes, f"set_{axis.axis_name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}")
    axes.set_xlabel("throughput in images/s")
    axes.set_ylabel("latency in ms")
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    version = f" version {report.model_version}" if report.model_version else ""
    protocol, batch = report.measurements[0].protocol, report.measurements[0].batch_size
    axes.set_title(
        f"{report.model_name}{version}: {'gRPC' if protocol == 'grpc' else 'REST'}, {batch} image{'s' * (batch > 1)} a request",
        loc="left",
        fontsize=11,
    )
    axes.figure.legend(frameon=False, loc="outside lower center", ncols=4, fontsize=9)
    if not all(one.stable for one in report.measurements):
        axes.set_title("* not stable", loc="right", fontsize=9)
