"""Fields that hold no amount: what a form, a scanner or a wrong cut shows in place of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from convoy.training.check_reader.handwriting import Handwriting, draw_writer, paste
from convoy.training.check_reader.strokes import Pen, Shape, draw_shape

_Ink = npt.NDArray[np.uint8]
_SIGNS: Final = ".,:-=#*"  # a bar by itself may be a 1
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def draw_void(handwriting: Handwriting, generator: np.random.Generator) -> _Ink:
    """The ink of a field without an amount: none at all, lines of a form, lone signs, a scribble, print, what a wrong cut leaves.

    Args:
        handwriting: The digits whose edges a wrong cut shows.
        generator: Of all that is left to chance.

    Returns:
        uint8 (height, width), 255 where there is most ink.
    """
    height, width = round(generator.uniform(30, 90)), round(generator.uniform(30, 360))
    ink = np.zeros((height, width), np.uint8)
    at = generator.random()
    kind = next(kind for below, kind in _KINDS.items() if at < below)
    kind(ink, handwriting, generator)
    if generator.random() < 0.25:
        _lines(ink, handwriting, generator)
    return ink


def _nothing(ink: _Ink, handwriting: Handwriting, generator: np.random.Generator) -> None:
    """Paper alone."""


def _lines(ink: _Ink, handwriting: Handwriting, generator: np.random.Generator) -> None:  # noqa: ARG001
    """Lines of a form: a frame's sides, rules, the bars between fields."""
    canvas = Image.fromarray(ink)
    draw = ImageDraw.Draw(canvas)
    height, width = ink.shape
    for _ in range(1 + int(generator.random() * 3)):
        thick, level = 1 + int(generator.random() * 3), round(generator.uniform(90, 255))
        lean = generator.normal(0, 0.015)
        if generator.random() < 0.6:  # from edge to edge, or from one edge on: what stands free may be a 1
            x, far = generator.uniform(0, width), 1.0 if generator.random() < 0.6 else generator.uniform(0.3, 1.0)
            ends = (0.0, far * height) if generator.random() < 0.5 else (height, (1 - far) * height)
            draw.line((x, ends[0], x + lean * (ends[1] - ends[0]), ends[1]), fill=level, width=thick)
        else:
            y = generator.uniform(0, height)
            left, right = (0, width) if generator.random() < 0.6 else sorted(generator.uniform(0, width, 2).tolist())
            draw.line((left, y, right, y + lean * (right - left)), fill=level, width=thick)
    ink[:] = np.asarray(canvas)


def _signs(ink: _Ink, handwriting: Handwriting, generator: np.random.Generator) -> None:
    """A few signs and separators, far apart or close."""
    writer = draw_writer(generator)
    left = generator.uniform(0, 0.6) * ink.shape[1]
    for _ in range(1 + int(generator.random() * 3)):
        glyph = handwriting.write(_SIGNS[int(generator.random() * len(_SIGNS))], writer, generator)
        top = generator.uniform(0.4, 0.75) * ink.shape[0] - glyph.ink.shape[0] / 2
        paste(ink, glyph.ink, round(left), round(top))
        left += glyph.ink.shape[1] + generator.uniform(0.1, 1.5) * writer.height_px


def _scribble(ink: _Ink, handwriting: Handwriting, generator: np.random.Generator) -> None:  # noqa: ARG001
    """A signature, or part of one: a curve that goes on and on."""
    n = 6 + int(generator.random() * 10)
    steps = generator.normal(0.25, 0.45, n).cumsum()
    points = tuple(zip(steps.tolist(), generator.uniform(-0.4, 1.3, n).tolist(), strict=True))
    size = generator.uniform(0.6, 1.4) * ink.shape[0]
    curve, _ = draw_shape(Shape((points,), curved=True), size, 1.0, Pen(generator.uniform(1.8, 4.5), 0.0), generator)
    left = generator.uniform(-0.5, 0.7) * ink.shape[1]
    paste(ink, np.asarray(curve), round(left), round(generator.uniform(-0.4, 0.2) * ink.shape[0]))


def _print(ink: _Ink, handwriting: Handwriting, generator: np.random.Generator) -> None:  # noqa: ARG001
    """Words of the form."""
    canvas = Image.fromarray(ink)
    draw = ImageDraw.Draw(canvas)
    for _ in range(1 + int(generator.random() * 2)):
        font = ImageFont.load_default(size=round(generator.uniform(9, 0.7 * ink.shape[0])))
        letters = generator.integers(len(_LETTERS), size=2 + int(generator.random() * 10)).tolist()
        word = "".join(_LETTERS[letter] for letter in letters)
        place = generator.uniform(-0.2, 0.7) * ink.shape[1], generator.uniform(-0.1, 0.6) * ink.shape[0]
        draw.text(place, word.upper() if generator.random() < 0.5 else word.capitalize(), fill=220, font=font)
    ink[:] = np.asarray(canvas)


def _cut(ink: _Ink, handwriting: Handwriting, generator: np.random.Generator) -> None:
    """The upper or the lower edge of a line of digits, which belongs to the field above or below."""
    writer = draw_writer(generator)
    shown = generator.uniform(0.05, 0.3) * writer.height_px
    above = generator.random() < 0.5
    left = generator.uniform(0, 20)
    while left < ink.shape[1]:
        glyph = handwriting.write(str(int(generator.integers(10))), writer, generator)
        height = glyph.ink.shape[0]
        paste(ink, glyph.ink, round(left), round(shown - height if above else ink.shape[0] - shown))
        left += glyph.ink.shape[1] + generator.uniform(0.05, 0.3) * writer.height_px
        if generator.random() < 0.1:
            return


def _picture(ink: _Ink, handwriting: Handwriting, generator: np.random.Generator) -> None:  # noqa: ARG001
    """No paper at all: blobs of every size, as in a photo."""
    height, width = ink.shape
    levels = np.zeros((height, width), np.float32)
    for cells in (2, 5, 12):
        coarse = generator.random((cells, max(2, cells * width // height)), dtype=np.float32)
        levels += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) * generator.uniform(0, 1)
    canvas = Image.fromarray(np.zeros((height, width), np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(generator.random() * 6)):
        left, right = sorted(generator.uniform(-0.2 * width, 1.2 * width, 2).tolist())
        top, bottom = sorted(generator.uniform(-0.2 * height, 1.2 * height, 2).tolist())
        shape = draw.ellipse if generator.random() < 0.5 else draw.rectangle
        shape((left, top, right, bottom), fill=round(generator.uniform(0, 255)))
    levels = levels / max(float(levels.max()), 1e-3) * 160 + np.asarray(canvas, np.float32) * np.float32(0.6)
    ink[:] = levels.clip(0, 255).astype(np.uint8)


_Kind = Callable[[_Ink, Handwriting, np.random.Generator], None]
_KINDS: Final[Mapping[float, _Kind]] = {
    0.12: _nothing,
    0.38: _lines,
    0.58: _signs,
    0.68: _scribble,
    0.78: _print,
    0.90: _cut,
    1.00: _picture,
}
"""By the share of voids that are of this kind or of one before it."""
