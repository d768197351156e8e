"""The confusion matrix as a picture, for two classes as for a thousand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.training.report.canvas import new_figure, plain, set_title, to_png

MAX_COUNTED: Final = 20
"""Up to so many classes every cell shows its count."""
MAX_NAMED: Final = 60
"""Up to so many classes every row and column has its name."""
_LETTERS: Final = 18


def draw_confusion(confusion: npt.NDArray[np.int64], labels: Sequence[str], *, title: str) -> bytes:
    """Draw how often each class was taken for each other.

    A cell's shade is its share of the row, on a scale of square roots: the diagonal of a good classifier would hide a mistake in
    a hundred on a linear one.

    Args:
        confusion: int64 (classes, classes), rows: shown, columns: taken for.
        labels: Class names.
        title: What stands above.

    Returns:
        A PNG file.
    """
    from matplotlib.colors import PowerNorm

    n = len(labels)
    side = min(10.5, max(5.2, 1.8 + 0.52 * n)) if n <= MAX_COUNTED else 10.5
    figure = new_figure(side + 1.2, side, dpi=110, layout="constrained")
    set_title(figure, title)
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest", aspect="equal")
    axes.set_xlabel("taken for")
    axes.set_ylabel("shows")
    step = 1 if n <= MAX_NAMED else max(1, round(n / 25 / 5) * 5)
    names = [plain(label, _LETTERS) for label in labels]
    places = np.arange(0, n, step)
    size = 10 if n <= MAX_COUNTED else 7 if n <= MAX_NAMED else 8
    turned = n > MAX_COUNTED or max(map(len, names)) > 4
    axes.set_xticks(places, [names[i] for i in places], rotation=90 if turned else 0, fontsize=size)
    axes.set_yticks(places, [names[i] for i in places], fontsize=size)
    axes.tick_params(length=0 if step == 1 else 3)
    axes.spines[:].set_visible(False)
    if n <= MAX_COUNTED:
        axes.set_xticks(np.arange(1, n) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, n) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        for (i, j), count in np.ndenumerate(confusion):
            if count:
                light = shares[i, j] > 0.36
                axes.text(j, i, f"{count:,}", ha="center", va="center", fontsize=9.5, color="white" if light else "#1b1f24")
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "10 %", "25 %", "50 %", "100 %"], fontsize=9)
    bar.set_label("share of the row", fontsize=9)
    bar.outline.set_visible(False)
    return to_png(figure)
