"""The plot of a tuning: latency over throughput, before and after."""

from __future__ import annotations

from pathlib import Path

from convoy.contract.errors import MissingDependencyError
from convoy.serving.tuning.tuning import Tuning, medians

_COLOURS = {"before": "#7a7a7a", "after": "#0072b2"}
_LEAST_MS = 0.05


def plot_tuning(tuning: Tuning, path: Path) -> None:
    """Draw p50 and p99 over images a second, a point for each number of callers.

    Args:
        tuning: What tuning found.
        path: Where: its suffix says the format.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ModuleNotFoundError as error:
        raise MissingDependencyError("plots need matplotlib: pip install matplotlib.") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    settings = {"before": tuning.default, **({"after": tuning.chosen} if tuning.changed else {})}
    for name, setting in settings.items():
        points = medians(tuning.records, setting)
        rates = [points[callers].images_per_s for callers in tuning.objective.concurrencies]
        for quantile, style in (("p50", "-o"), ("p99", "--s")):
            latencies = [max(_LEAST_MS, getattr(points[callers], f"{quantile}_ms")) for callers in tuning.objective.concurrencies]
            axes.plot(rates, latencies, style, color=_COLOURS[name], label=f"{name}, {quantile}", markersize=5)
            if quantile == "p50":
                for callers, rate, latency in zip(tuning.objective.concurrencies, rates, latencies, strict=True):
                    axes.annotate(str(callers), (rate, latency), xytext=(6, -12), textcoords="offset points", color=_COLOURS[name])
    if tuning.objective.latency_budget_ms is not None:
        axes.axhline(tuning.objective.latency_budget_ms, color="#d55e00", linewidth=1, label="latency budget")
    axes.set(xlabel="images/s", ylabel="latency, ms", yscale="log", xlim=(0, None))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    axes.set_title(f"{tuning.subject.model_folder.name}: latency over throughput; numbers are callers")
    figure.savefig(path)
