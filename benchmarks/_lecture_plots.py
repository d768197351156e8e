"""The pictures of the lecture's page."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from benchmarks._lecture_page import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OURS, _LECTURE, _GRID = "#1f5fbf", "#c2410c", "#d9dce1"
_COLOURS: Final = ("#1f5fbf", "#c2410c", "#4d7c0f", "#7e22ce", "#0f766e", "#8a8f98")


def draw_mnist(found: Mapping[str, Outcome]) -> bytes:
    """Each network's test error, the lecture's and ours, with intervals and seeds; a PNG file."""
    rows = [outcome for outcome in found.values() if outcome.row.section == "digits"][::-1]
    figure, (axes,) = _figure(9, 0.36 * len(rows) + 1.2, 1)
    for y, outcome in enumerate(rows):
        low, high = outcome.interval
        axes.plot([low, high], [y, y], color=_OURS, linewidth=5, alpha=0.25, solid_capstyle="butt")
        axes.plot(outcome.values, [y] * len(outcome.values), "|", color=_OURS, markersize=8)
        axes.plot(outcome.mean, y, "o", color=_OURS, markersize=5)
        axes.annotate(f"{outcome.mean:.2f}", (outcome.mean, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        if outcome.row.lecture is not None:
            axes.plot(outcome.row.lecture, y, "D", color=_LECTURE, markersize=6, markerfacecolor="none")
            axes.annotate(
                f"{outcome.row.lecture:g}", (outcome.row.lecture, y), (8, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.plot([], [], "D", color=_LECTURE, markerfacecolor="none", label="lecture")
    axes.plot([], [], "o", color=_OURS, label="ours: mean, seeds, 95 % interval")
    axes.set_yticks(range(len(rows)), [outcome.row.title for outcome in rows])
    axes.set_ylim(-0.7, len(rows) - 0.2)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("error on MNIST's 10,000 test images (%)")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return _png(figure)


def draw_convergence(found: Mapping[str, Outcome]) -> bytes:
    """The training errors of each activation over the epochs, a line a seed; a PNG file."""
    figure, (axes,) = _figure(8, 4, 1)
    fastest: dict[str, Outcome] = {}
    for outcome in sorted((each for each in found.values() if each.row.section == "sigmoid"), key=lambda each: each.mean):
        fastest.setdefault(outcome.row.title.partition(",")[0], outcome)
    rows = sorted(fastest.values(), key=lambda outcome: outcome.mean)
    for colour, outcome in zip(_COLOURS, rows, strict=False):
        for i, run in enumerate(outcome.runs):
            percent = [100 * error for error in run.train_errors]
            label = outcome.row.title if i == 0 else None
            axes.plot(range(1, len(percent) + 1), percent, color=colour, linewidth=1.4, alpha=0.8, label=label)
    axes.axhline(25, color="#8a8f98", linewidth=1, linestyle=(0, (4, 3)), label="25 %")
    axes.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100, 200]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 100)
    axes.set_xlabel("epoch, of 23 steps")
    axes.set_ylabel("training error (%)")
    axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def draw_overfitting(found: Mapping[str, Outcome]) -> bytes:
    """Test loss and test error over the epochs, the mean of the seeds, and where early stopping stops; a PNG file."""
    figure, (loss, error) = _figure(11, 4.2, 2)
    rows = [outcome for outcome in found.values() if outcome.row.section == "regularisation"]
    for colour, outcome in zip(_COLOURS, [each for each in rows if each.row.judged == "last"], strict=False):
        losses = _means([run.held_out_losses for run in outcome.runs])
        errors = [100 * value for value in _means([run.held_out_errors for run in outcome.runs])]
        epochs = range(1, len(losses) + 1)
        loss.plot(epochs, losses, color=colour, linewidth=1.5, label=outcome.row.title)
        error.plot(epochs, errors, color=colour, linewidth=1.5, label=outcome.row.title)
    for outcome in [each for each in rows if each.row.judged == "best"]:
        for i, run in enumerate(outcome.runs):
            style: dict[str, Any] = {
                "color": "#111827",
                "markersize": 8,
                "label": "early stopping, a seed each" if i == 0 else None,
            }
            loss.plot(run.epoch, run.test_loss, "x", **style)
            error.plot(run.epoch, 100 * run.test_top1_error, "x", **style)
    loss.set_ylabel("test loss (nats)")
    error.set_ylabel("test error (%)")
    error.set_ylim(6, 18)  # the first epochs are above
    for axes in (loss, error):
        axes.set_xlabel("epoch")
    loss.legend(frameon=False, fontsize=8)
    return _png(figure)


def _means(courses: list[tuple[float, ...]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*courses, strict=False)]


def _figure(width: float, height: float, n_axes: int) -> tuple[Figure, list[Axes]]:
    # the Agg canvas by hand: no display is asked for, and pyplot's global state stays untouched
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    made = list(figure.subplots(1, n_axes, squeeze=False)[0])
    for axes in made:
        axes.grid(visible=True, which="major", color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, made


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
