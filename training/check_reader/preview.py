"""Sheets of fields: synthetic ones beside real ones, to judge by eye whether they are alike; and any, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from convoy.contract.errors import DataError
from convoy.training.check_reader.field_image import SyntheticField
from convoy.training.check_reader.fields import Field

_CELL: Final = (232, 74)  # pixels, width and height
_TEXT_PX: Final = 12
_GREY, _WHITE, _BLACK, _BLUE = (120, 120, 120), (255, 255, 255), (0, 0, 0), (0, 70, 200)


def draw_sheet(
    synthetic: Sequence[SyntheticField], real: Sequence[Field] = (), *, columns: int = 3, zoom: int = 1, spans: bool = False
) -> Image.Image:
    """Synthetic fields on the left, real ones on the right, each with its text above it, at the same scale.

    Args:
        synthetic: Fields with the text that is written.
        real: Fields with their digits; without any the sheet has one half.
        columns: How many fields stand side by side in each half.
        zoom: How many times as large they are drawn.
        spans: Mark the columns that each character of a synthetic field takes.

    Returns:
        RGB; ``save`` writes it as a PNG. What is wider than its cell is cut.

    Raises:
        DataError: There are no fields, or columns or zoom are below 1.
    """
    if not (synthetic or real) or columns < 1 or zoom < 1:
        raise DataError(
            f"expected fields, and columns and zoom of 1 or more; found {len(synthetic) + len(real)}, {columns}, {zoom}."
        )
    halves: list[Sequence[SyntheticField | Field]] = [half for half in (synthetic, real) if half]
    width, height = _CELL[0] * zoom, _CELL[1] * zoom + _TEXT_PX
    rows = max(-(-len(half) // columns) for half in halves)
    sheet = Image.new("RGB", (len(halves) * columns * width, rows * height), _GREY)
    draw = ImageDraw.Draw(sheet)
    for at_half, half in enumerate(halves):
        for at, field in enumerate(half):
            row, column = divmod(at, columns)
            x, y = (at_half * columns + column) * width, row * height
            text = field.text if isinstance(field, SyntheticField) else field.digits
            draw.text((x + 2, y), text.replace("€", "EUR"), fill=_WHITE if isinstance(field, SyntheticField) else _BLACK)
            shown = _enlarged(field.image, zoom)
            if spans and isinstance(field, SyntheticField):
                _underline(shown, field.spans, zoom)
            sheet.paste(shown, (x, y + _TEXT_PX))
    return sheet


def draw_captioned(images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], *, columns: int = 3) -> Image.Image:
    """Fields in rows, each with its caption above it.

    Args:
        images: uint8 (height, width); at least one. What is wider or higher than its cell is brought down to it.
        captions: Of each.
        columns: How many fields stand side by side.
    """
    width, height = _CELL[0] + _TEXT_PX, _CELL[1] + _TEXT_PX
    sheet = Image.new("RGB", (min(columns, len(images)) * width, -(-len(images) // columns) * height), _GREY)
    draw = ImageDraw.Draw(sheet)
    for place, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        y, x = place // columns * height, place % columns * width
        draw.text((x + 2, y), caption.replace("€", "EUR"), fill=_WHITE)
        shown = Image.fromarray(pixels)
        shown.thumbnail((width - 4, _CELL[1] - 4), Image.Resampling.BILINEAR)
        sheet.paste(shown.convert("RGB"), (x + 2, y + _TEXT_PX))
    return sheet


def _enlarged(image: npt.NDArray[np.uint8], zoom: int) -> Image.Image:
    shown = Image.fromarray(image[: _CELL[1], : _CELL[0] - 4])
    return shown.resize((shown.width * zoom, shown.height * zoom), Image.Resampling.NEAREST).convert("RGB")


def _underline(shown: Image.Image, spans: Sequence[tuple[int, int]], zoom: int) -> None:
    """Mark the columns of each character at the upper edge, in turn on two levels."""
    draw = ImageDraw.Draw(shown)
    for i, (start, stop) in enumerate(spans):
        level = (2 * (i % 2) + 1) * zoom
        draw.line((start * zoom, level, stop * zoom - 1, level), fill=_BLUE, width=zoom)
