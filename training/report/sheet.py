"""Contact sheets: many small images with a caption under each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.training.report.canvas import new_figure, plain, to_png

_TILE_PX: Final = 120  # the longer side of an image
_GAP_PX: Final = 14
_MARGIN_PX: Final = 16
_TITLE_PX: Final = 44
_LINE_PX: Final = 15  # a line of a caption
_HEADING_PX: Final = 50
_DPI: Final = 100


def draw_sheet(
    images: Sequence[npt.NDArray[np.uint8]],
    captions: Sequence[str] | None,
    *,
    columns: int,
    title: str,
    headings: Sequence[str] = (),
) -> bytes:
    """Lay images out in rows, small ones enlarged so that single pixels show as squares.

    Args:
        images: uint8 (H, W, 1) or (H, W, 3), all of one shape; at least one.
        captions: Of each, up to two lines; None leaves no room for them.
        columns: Images in a row.
        title: What stands above.
        headings: Of the first columns.

    Returns:
        A PNG file.
    """
    tiles = [_tile(image) for image in images]
    height, width = tiles[0].shape[:2]
    below = 0 if captions is None else 2 * _LINE_PX + 6
    rows, columns = -(-len(tiles) // columns), min(columns, len(tiles))
    step_x = max(width, _TILE_PX if captions is not None else _HEADING_PX if headings else 0) + _GAP_PX
    step_y = height + below + _GAP_PX
    top = _TITLE_PX + (_LINE_PX + 4 if headings else 0)
    total_x = max(2 * _MARGIN_PX + columns * step_x - _GAP_PX, _MARGIN_PX * 2 + 11 * len(title))
    total_y = top + rows * step_y + _MARGIN_PX - _GAP_PX
    page = np.full((total_y, total_x, 3), 255, dtype=np.uint8)
    places = [(_MARGIN_PX + i % columns * step_x, top + i // columns * step_y) for i in range(len(tiles))]
    for (x, y), tile in zip(places, tiles, strict=True):
        page[y - 1 : y + height + 1, x - 1 : x + width + 1] = 217  # a hairline, so that white images have an edge
        page[y : y + height, x : x + width] = tile
    figure = new_figure(total_x / _DPI, total_y / _DPI, dpi=_DPI)
    figure.figimage(page, resize=False)

    def write(x: float, y: float, text: str, size: float, weight: str = "normal") -> None:
        figure.text(x / total_x, 1 - y / total_y, text, fontsize=size, va="top", fontweight=weight)

    write(_MARGIN_PX, 13, plain(title), 13, "bold")
    for i, heading in enumerate(headings):
        write(_MARGIN_PX + i * step_x, top - _LINE_PX - 5, plain(heading), 9)
    for (x, y), caption in zip(places, captions or (), strict=False):
        write(x, y + height + 4, caption, 8)
    return to_png(figure)


def _tile(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image in colour, enlarged by a whole number or brought down to the size of a tile."""
    colours = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    longer = max(image.shape[:2])
    if longer <= _TILE_PX:
        factor = max(1, _TILE_PX // longer)
        return colours.repeat(factor, axis=0).repeat(factor, axis=1)
    picture = Image.fromarray(np.ascontiguousarray(colours))
    picture.thumbnail((_TILE_PX, _TILE_PX), Image.Resampling.BILINEAR)
    return np.asarray(picture)
