"""Receptive fields, drawn on an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.contract.errors import UsageError
from convoy.training.anatomy.anatomy import Anatomy
from convoy.training.anatomy.formula import times
from convoy.training.anatomy.outline import Row
from convoy.training.anatomy.reach import COLUMNS, ROWS, Reach

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OUTLINE: Final = "#c2410c"
_PANELS_PER_ROW: Final = 6
_MAX_PANELS: Final = 24


def draw_fields(anatomy: Anatomy, rows: Sequence[Row], *, title: str) -> bytes:
    """Draw, for each layer whose features have places, what the feature in its middle sees: a panel each.

    The image is a real one that comes with scikit-learn. What the feature sees stands out bright, the rest is dimmed; the frame
    is the receptive field as if the image had no border, cut at it. Of layers that see the same, the first is drawn.

    Args:
        anatomy: The network.
        rows: The layers and blocks to draw.
        title: What stands above.

    Returns:
        A PNG file.

    Raises:
        UsageError: No receptive field is known that has a place.
    """
    # the Agg canvas by hand: no display is asked for, and pyplot's global state stays untouched
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _choose(anatomy, rows)
    if not panels:
        raise UsageError("--plot: expected a layer whose features have places and whose receptive fields are known; found none.")
    channels, height_px, width_px = anatomy.image_dims
    image = sample_image(height_px, width_px, channels)
    columns = min(max(1, round(_PANELS_PER_ROW * height_px / width_px)), _PANELS_PER_ROW, len(panels))
    lines = -(-len(panels) // columns)
    panel = min(2.3 * max(1.0, width_px / height_px), 7.0)  # inches wide
    size = (max(5.0, panel * columns), (panel * height_px / width_px + 0.45) * lines + 0.5)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.axis("off")
    for axes, (row, reach) in zip(grid, panels, strict=False):
        _draw(axes, image, row, reach)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def sample_image(height_px: int, width_px: int, channels: int) -> npt.NDArray[np.uint8]:
    """A real image that comes with scikit-learn; uint8 (H, W, channels).

    Where it is grey, a handwritten digit, or a line of them where it is wide; else a photo.
    """
    if channels == 1:
        from sklearn.datasets import load_digits

        n = max(1, round(width_px / height_px))
        digits = np.hstack([np.pad(digit, 2) for digit in load_digits().images[2 : 2 + n]])  # 8x8, 0 to 16; MNIST's have a border
        grey = Image.fromarray((digits * (255 / 16)).astype(np.uint8)).resize((width_px, height_px), Image.Resampling.BICUBIC)
        return np.asarray(grey)[:, :, None]
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image("china.jpg"))
    side = min(photo.size)
    left = (photo.width - side) // 2
    return np.asarray(photo.crop((left, 0, left + side, side)).resize((width_px, height_px), Image.Resampling.BICUBIC))


def _choose(anatomy: Anatomy, rows: Sequence[Row]) -> list[tuple[Row, Reach]]:
    panels: list[tuple[Row, Reach]] = []
    seen: set[bytes] = set()
    for row in rows:
        reach = anatomy.reaches[row.last]
        if row.field is None or not row.field.is_map or reach is None:
            continue
        sight = reach.mask(*_middle(reach)).tobytes()
        if sight not in seen:
            seen.add(sight)
            panels.append((row, reach))
    if len(panels) <= _MAX_PANELS:
        return panels
    chosen = np.linspace(0, len(panels) - 1, _MAX_PANELS).round().astype(int)
    return [panels[index] for index in chosen]


def _middle(reach: Reach) -> tuple[int, int]:
    return reach.n_positions(ROWS) // 2, reach.n_positions(COLUMNS) // 2


def _draw(axes: Axes, image: npt.NDArray[np.uint8], row: Row, reach: Reach) -> None:
    from matplotlib.patches import Rectangle

    assert row.field is not None  # chosen for it
    mask = reach.mask(*_middle(reach))
    pixels = image.astype(np.float64) / 255
    pixels = 0.25 + 0.75 * (pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2))  # black is seen to be dimmed, too
    axes.imshow(np.where(mask[:, :, None], pixels, 0.35 * pixels), interpolation="nearest")
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(ys):
        corner = (xs[0] - 0.5, ys[0] - 0.5)
        extent = (xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1)
        axes.add_patch(Rectangle(corner, *extent, fill=False, edgecolor=_OUTLINE, linewidth=1.6, clip_on=False))
    height, width = row.field.size_px
    jump = "" if row.field.jump_px is None else f", jump {times(row.field.jump_px[: len(set(row.field.jump_px))])}"
    axes.set_title(f"{row.name or row.kind}\n{height}x{width}{jump}", loc="left", fontsize=8.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
