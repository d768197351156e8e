"""The reliability diagram: does 80 % mean right in 80 of 100?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convoy.training.report.calibration import N_BINS, Reliability
from convoy.training.report.canvas import BLUE, GREY, RED, RULE, new_figure, set_title, to_png
from convoy.training.report.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_reliability(test: Predictions, temperature: float, *, title: str) -> bytes:
    """Draw accuracy over confidence on the test split, as the network gives it and at the temperature.

    Args:
        test: The answers to the test split.
        temperature: 1 draws one diagram.
        title: What stands above.

    Returns:
        A PNG file.
    """
    temperatures = (1.0,) if temperature == 1 else (1.0, temperature)
    n = len(temperatures)
    figure = new_figure(5.4 * n, 5.6)
    set_title(figure, title)
    places = {"left": 0.13 / n, "right": 1 - 0.03 / n, "bottom": 0.09, "top": 0.885, "hspace": 0.07, "wspace": 0.19}
    above, below = figure.subplots(2, n, squeeze=False, height_ratios=(3.4, 1), sharex=True, gridspec_kw=places)
    for column, value in enumerate(temperatures):
        reliability = Reliability.of(test, value)
        name = "softmax(logits)" if value == 1 else f"softmax(logits / {value:.3f})"
        above[column].set_title(f"{name}: ECE {100 * reliability.ece:.2f} %", loc="left", fontsize=11)
        _draw_bins(above[column], reliability)
        _draw_counts(below[column], reliability)
    return to_png(figure)


def _draw_bins(axes: Axes, reliability: Reliability) -> None:
    edges = np.arange(N_BINS) / N_BINS
    filled = reliability.counts > 0
    accuracy, confidence = 100 * reliability.accuracy, 100 * reliability.confidence
    axes.bar(100 * edges[filled], accuracy[filled], 100 / N_BINS, align="edge", color=BLUE, alpha=0.85, edgecolor="white")
    axes.vlines(confidence[filled], accuracy[filled], confidence[filled], color=RED, linewidth=2.4, label="gap to the confidence")
    axes.plot(confidence[filled], confidence[filled], "o", color=RED, markersize=3.5)
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0, label="as often right as said")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 118)  # room for the legend
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("right (%)")
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
    axes.grid(visible=True, color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_counts(axes: Axes, reliability: Reliability) -> None:
    edges = 100 * np.arange(N_BINS) / N_BINS
    axes.bar(edges, reliability.counts, 100 / N_BINS, align="edge", color=GREY, edgecolor="white")
    axes.set_yscale("symlog", linthresh=1)  # a bin of one image shows beside one of ten thousand
    top = 3 * int(reliability.counts.max())
    ticks = [10**power for power in range(0, 12, 2) if 10**power <= top]
    axes.set_ylim(0, top)
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("images")
    axes.spines[["top", "right"]].set_visible(False)
