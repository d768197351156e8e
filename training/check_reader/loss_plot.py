"""The loss over the epochs of a reader's two phases, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from convoy.training.check_reader.reader_records import EpochFacts
from convoy.training.report.canvas import BLUE, GREY, RULE, new_figure, set_title, to_png


def draw_losses(history: Sequence[EpochFacts]) -> bytes:
    """Draw the loss of each epoch, phase by phase.

    Args:
        history: At least one epoch.

    Returns:
        A PNG file.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    figure = new_figure(7.2, 3.6)
    set_title(figure, "Loss of distorted fields, while learning")
    axes = figure.subplots(gridspec_kw={"left": 0.1, "right": 0.97, "bottom": 0.14, "top": 0.86})
    for colour, phase in ((GREY, "synthetic"), (BLUE, "real")):
        places = [place for place, epoch in enumerate(history, start=1) if epoch.phase == phase]
        if places:
            losses = [history[place - 1].loss for place in places]
            marker = "." if len(history) <= 30 else ""
            axes.plot(places, losses, color=colour, linewidth=1.8, marker=marker, label=f"{phase} fields")
    if min(epoch.loss for epoch in history) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(0.5, len(history) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss of a field (nats)")
    axes.grid(visible=True, which="both", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return to_png(figure)
