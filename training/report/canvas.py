"""Figures without a display, as PNG files."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY: Final = "#8a8f98"
BLUE: Final = "#1f5fbf"
RED: Final = "#c2410c"
RULE: Final = "#d9dce1"


def new_figure(width: float, height: float, *, dpi: int = 120, **options: Any) -> Figure:
    """An empty figure, sizes in inches.

    The Agg canvas by hand: no display is asked for, and pyplot's global state stays untouched.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, **options)
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # a class name in a script that the font lacks shows as boxes; the page beside the picture has it right
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def set_title(figure: Figure, title: str) -> None:
    """A title on the left, as on every picture of a run. A dollar sign is no formula."""
    figure.suptitle(plain(title), x=0.012, ha="left", fontsize=13, fontweight="bold")


def plain(text: str, most: int = 0) -> str:
    """Text as matplotlib shall draw it: letter by letter, cut to ``most`` characters where that is not 0."""
    text = " ".join(text.split())
    if most and len(text) > most:
        text = text[: most - 1] + "…"
    return text.replace("$", r"\$")
