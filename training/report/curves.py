"""Learning curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convoy.training.loop.listener import EpochRecord
from convoy.training.report.canvas import BLUE, GREY, RED, RULE, new_figure, set_title, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(history: Sequence[EpochRecord], *, best_epoch: int, test_top1_error: float, title: str) -> bytes:
    """Draw loss and error over the epochs, for training and validation, with the best epoch marked.

    Args:
        history: At least one record.
        best_epoch: The epoch whose weights were kept, from 1.
        test_top1_error: What they give on the test split, a fraction in [0, 1].
        title: What stands above.

    Returns:
        A PNG file.
    """
    figure = new_figure(11, 4.4)
    set_title(figure, title)
    places = {"left": 0.065, "right": 0.985, "bottom": 0.12, "top": 0.84, "wspace": 0.17}
    loss_axes, error_axes = figure.subplots(1, 2, gridspec_kw=places)

    _draw(loss_axes, history, [record.train_loss for record in history], [record.validation_loss for record in history])
    loss_axes.set_ylabel("cross entropy (nats)")
    loss_axes.set_title("Loss", loc="left", fontsize=11)

    train_percent = [100 * record.train_top1_error for record in history]
    validation_percent = [100 * record.validation_top1_error for record in history]
    _draw(error_axes, history, train_percent, validation_percent)
    error_axes.set_ylabel("top-1 error (%)")
    error_axes.set_title("Error", loc="left", fontsize=11)
    error_axes.axhline(
        100 * test_top1_error, color=RED, linewidth=1, linestyle=(0, (1, 2)), label=f"test {100 * test_top1_error:.2f} %"
    )

    for axes, values, unit in (
        (loss_axes, [record.validation_loss for record in history], ""),
        (error_axes, validation_percent, " %"),
    ):
        best = values[best_epoch - 1]
        axes.axvline(best_epoch, color=RED, linewidth=1, alpha=0.45)
        axes.plot(best_epoch, best, "o", color=RED, markersize=6, zorder=5, label=f"best epoch {best_epoch}: {best:.3g}{unit}")
        axes.legend(frameon=False, fontsize=9)
    return to_png(figure)


def _draw(axes: Axes, history: Sequence[EpochRecord], train: Sequence[float], validation: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    epochs = [record.epoch for record in history]
    marker: dict[str, Any] = {"marker": "." if len(epochs) <= 30 else ""}
    axes.plot(epochs, train, color=GREY, linewidth=1.6, label="train, while learning", **marker)
    axes.plot(epochs, validation, color=BLUE, linewidth=1.8, label="validation", **marker)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, max(epochs) + 0.5)
    # the last tenths of a percent are what counts, and a linear axis hides them behind the first epoch; the errors of a small
    # set reach 0, which a logarithm does not: the axis is linear from 0 to the smallest value above it
    smallest = min((value for value in (*train, *validation) if value > 0), default=1.0)
    if min(*train, *validation) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=smallest, linscale=0.4)
        axes.set_ylim(bottom=-0.1 * smallest)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value == 0 or value >= smallest else ""))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= smallest else ""))
    axes.grid(visible=True, which="major", color=RULE, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
