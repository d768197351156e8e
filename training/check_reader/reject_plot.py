"""The curve of coverage against error: how many amounts a machine may read by itself, and how often it is wrong then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from convoy.contract.reject import Curve
from convoy.training.report.canvas import BLUE, GREY, RED, RULE, new_figure, set_title, to_png

PAPER: Final = (0.82, 0.01)
"""The paper's operating point: 82 % of business checks read, 1 % of all wrong, 17 % for a person (section X.C)."""
_COLOURS: Final = (BLUE, RED, "#15803d", "#7e22ce", GREY)


def draw_reject_curve(curves: Mapping[str, Curve]) -> bytes:
    """Draw curves into one picture, beside the paper's operating point.

    Args:
        curves: By name.

    Returns:
        A PNG file.
    """
    figure = new_figure(7.2, 4.6)
    set_title(figure, "Amounts read without a person, and errors among them")
    axes = figure.subplots(gridspec_kw={"left": 0.1, "right": 0.97, "bottom": 0.12, "top": 0.88})
    for colour, (name, curve) in zip(_COLOURS * 9, curves.items(), strict=False):
        axes.plot(100 * curve.coverage, 100 * curve.error, color=colour, linewidth=1.8, drawstyle="steps-post", label=name)
    read, wrong = PAPER
    accepted = read + wrong
    axes.plot(
        [100 * accepted], [100 * wrong / accepted], "D", color="black", markersize=5, label="LeCun and others 1998, business checks"
    )
    axes.set_xlim(0, 100)
    highest = max((float(curve.error[-1]) for curve in curves.values() if len(curve.error)), default=0.0)
    axes.set_ylim(0, 100 * min(max(1.15 * highest, 0.03), 1.0))
    axes.set_xlabel("accepted (% of fields)")
    axes.set_ylabel("wrong (% of accepted)")
    axes.grid(visible=True, color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return to_png(figure)
