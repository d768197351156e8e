"""A preview of the augmentation: what the network sees in place of the training images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from convoy.training.report.sheet import draw_sheet


def draw_augmented(rows: npt.NDArray[np.uint8], *, title: str) -> bytes:
    """Draw originals on the left and their draws behind them.

    Args:
        rows: uint8 (images, 1 + draws, H, W, C).
        title: What stands above.

    Returns:
        A PNG file.
    """
    n_columns = rows.shape[1]
    headings = ["original", *(f"draw {i}" for i in range(1, n_columns))]
    return draw_sheet(list(rows.reshape(-1, *rows.shape[2:])), None, columns=n_columns, title=title, headings=headings)
