"""A field with the characters that were read under their places: in a terminal, and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from rich.text import Text

    from convoy.contract.field import FieldPixels
    from convoy.serving.client import Amount

_MOST_COLUMNS: Final = 96  # of a terminal
_MOST_LINES: Final = 10
_SHADES: Final = " ░▒▓█"
_PLAIN_SHADES: Final = " .:*#"

_HEIGHT_PX: Final = 112  # of the field in a picture
_MARGIN_PX: Final = 16
_GLYPH_PX: Final = 40
_SMALL_PX: Final = 20
_PAPER: Final = (255, 255, 255)
_INK: Final = (32, 32, 32)
_ACCEPTED: Final = (0, 120, 60)
_TO_A_PERSON: Final = (190, 80, 0)


@dataclass(frozen=True)
class Span:
    """Where a character stands on a field, as fractions of its width."""

    character: str
    left: float
    right: float

    @property
    def middle(self) -> float:
        """Halfway between its ends."""
        return (self.left + self.right) / 2


def spans_of(field: FieldPixels, amount: Amount) -> list[Span]:
    """The characters' places on the field."""
    width = field.width_px / field.scale  # columns of the image
    return [
        Span(one.character, (one.left_px - field.left_px) / width, (one.right_px - field.left_px) / width)
        for one in amount.characters
    ]


def draw_lines(field: FieldPixels, amount: Amount, *, columns: int, in_colour: bool, unicode: bool) -> list[Text]:
    """The field as lines of a terminal, and a line with the characters under their places.

    Args:
        field: The field.
        amount: What was read.
        columns: How wide the terminal is.
        in_colour: Whether it shows greys; else shades stand for ink.
        unicode: Whether it shows blocks; else ASCII stands for them.
    """
    from rich.text import Text

    grey = field.pixels[:, : field.width_px, 0]
    height, width = grey.shape
    wide = max(1, min(columns, _MOST_COLUMNS, round(width * 2 * _MOST_LINES / height)))
    lines = max(1, min(_MOST_LINES, round(wide * height / width / 2)))
    drawn: list[Text] = []
    if in_colour and unicode:
        for upper, lower in _resized(grey, wide, 2 * lines).reshape(lines, 2, wide):
            line = Text()
            for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
                line.append("▀", f"rgb({above},{above},{above}) on rgb({below},{below},{below})")
            drawn.append(line)
    else:
        shades = _SHADES if unicode else _PLAIN_SHADES
        ink = np.abs(grey.astype(np.int16) - int(np.median(grey))).astype(np.float64)
        strength = _resized((255 * ink / max(1.0, ink.max())).astype(np.uint8), wide, lines).astype(np.float64)
        strength /= max(1.0, strength.max())
        levels = np.minimum((strength * len(shades)).astype(int), len(shades) - 1).tolist()
        drawn = [Text("".join(shades[level] for level in row).rstrip()) for row in levels]
    return [*drawn, Text(_under(spans_of(field, amount), wide))]


def draw_picture(field: FieldPixels, amount: Amount) -> Image:
    """The field with the characters under their places, and what they say."""
    from PIL import Image, ImageDraw, ImageFont

    grey = field.pixels[:, : field.width_px, 0]
    factor = _HEIGHT_PX / grey.shape[0]
    width = max(1, round(grey.shape[1] * factor))
    small = ImageFont.load_default(_SMALL_PX)
    verdict = "accepted" if amount.accepted else "to a person"
    said = f"{'nothing' if amount.value is None else amount.value}   {amount.confidence:.2%}   {verdict}"
    colour = _ACCEPTED if amount.accepted else _TO_A_PERSON
    inner = max(width, round(small.getlength(said)))
    below = _MARGIN_PX + _HEIGHT_PX + 10
    picture = Image.new("RGB", (inner + 2 * _MARGIN_PX, below + _GLYPH_PX + _SMALL_PX + 2 * _MARGIN_PX + 8), _PAPER)
    resized = Image.fromarray(np.ascontiguousarray(grey)).resize((width, _HEIGHT_PX), Image.Resampling.LANCZOS)
    picture.paste(resized.convert("RGB"), (_MARGIN_PX, _MARGIN_PX))
    drawing = ImageDraw.Draw(picture)
    spans = spans_of(field, amount)
    # all of one size, though the columns that decide a character may be few: as large as the nearest two middles let them be
    room = min((after.middle - before.middle for before, after in pairwise(spans)), default=1.0) * width
    font = ImageFont.load_default(min(_GLYPH_PX, max(12, round(1.6 * room))))
    for span in spans:
        _draw_span(drawing, span, width, below, colour)
        drawing.text((_MARGIN_PX + span.middle * width, below + 8 + _GLYPH_PX), span.character, fill=_INK, font=font, anchor="ms")
    drawing.text((_MARGIN_PX, below + 8 + _GLYPH_PX + _MARGIN_PX), said, fill=colour, font=small)
    return picture


def _draw_span(drawing: ImageDraw, span: Span, width: int, top: int, colour: tuple[int, int, int]) -> None:
    """A bracket under the columns of a character, which leaves its neighbours' brackets apart."""
    left, right = _MARGIN_PX + span.left * width + 1, _MARGIN_PX + span.right * width - 2
    if right > left:
        drawing.line([(left, top - 6), (left, top), (right, top), (right, top - 6)], fill=colour, width=2)


def _resized(grey: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    from PIL import Image

    resized = Image.fromarray(np.ascontiguousarray(grey)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized, np.uint8)


def _under(spans: list[Span], columns: int) -> str:
    """The characters in a line, each under its place, or next to the one before where there is no room."""
    cells: list[str] = []
    for span in spans:
        cells += " " * (min(int(span.middle * columns), columns - 1) - len(cells))
        cells.append(span.character)
    return "".join(cells)
