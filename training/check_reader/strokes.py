"""Characters drawn with a pen: the signs and separators that sets of digits lack, and regional forms of digits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Points = tuple[tuple[float, float], ...]
_FINE: Final = 3  # drawn this many times as large, then averaged: smooth edges
_STEPS: Final = np.linspace(0, 1, 5)[:-1, None]


@dataclass(frozen=True)
class Shape:
    """How a pen draws a character, in units of the height of a digit: x to the right, y from 0 at its top to 1 on the baseline.

    Attributes:
        strokes: The points that each stroke passes.
        curved: Whether it passes them in a curve rather than straight from one to the next.
        wander: How far the whole may lie above or below: the half width of a uniform draw.
    """

    strokes: tuple[Points, ...]
    curved: bool = False
    wander: float = 0.0


_TICK: Final = Shape((((0.0, 0.93), (0.03, 0.99)),), wander=0.03)
_DASH: Final = Shape((((0.0, 0.52), (0.36, 0.5)),), wander=0.16)
SHAPES: Final[Mapping[str, tuple[Shape, ...]]] = {
    ".": (
        _TICK,
        _TICK,
        Shape((((0.0, 0.97), (0.01, 0.97)),), wander=0.04),
        Shape((((0.04, 0.9), (0.03, 0.98), (0.0, 1.06)),), wander=0.04),
        Shape((((0.0, 0.8), (0.03, 0.83)),), wander=0.1),
    ),
    ",": (
        Shape((((0.05, 0.9), (0.06, 0.98), (0.0, 1.12)),), curved=True, wander=0.04),
        Shape((((0.06, 0.92), (0.0, 1.14)),), wander=0.04),
    ),
    ":": (Shape((((0.0, 0.58), (0.03, 0.63)), ((0.0, 0.93), (0.03, 0.99))), wander=0.05),),
    "-": (
        _DASH,
        _DASH,
        Shape((((0.0, 0.45), (0.7, 0.43)),), wander=0.12),
        Shape((((0.0, 0.52), (0.12, 0.44), (0.26, 0.52), (0.4, 0.44)),), curved=True, wander=0.12),
    ),
    "/": (Shape((((0.34, -0.05), (0.0, 1.05)),)), Shape((((0.3, -0.02), (0.18, 0.5), (0.0, 1.1)),), curved=True)),
    "=": (Shape((((0.0, 0.42), (0.32, 0.4)), ((0.0, 0.62), (0.33, 0.6))), wander=0.1),),
    "#": (
        Shape((((0.25, 0.1), (0.15, 0.95)), ((0.5, 0.1), (0.4, 0.95)), ((0.02, 0.4), (0.62, 0.36)), ((0.0, 0.68), (0.6, 0.64)))),
    ),
    "*": (Shape((((0.2, 0.3), (0.2, 0.75)), ((0.0, 0.42), (0.4, 0.64)), ((0.4, 0.42), (0.0, 0.64))), wander=0.1),),
    "$": (
        Shape(
            (
                ((0.5, 0.22), (0.3, 0.1), (0.06, 0.25), (0.25, 0.48), (0.5, 0.68), (0.28, 0.9), (0.0, 0.78)),
                ((0.29, -0.05), (0.28, 0.3), (0.27, 0.7), (0.26, 1.08)),
            ),
            curved=True,
        ),
    ),
    "€": (
        Shape(
            (
                ((0.62, 0.12), (0.38, 0.02), (0.15, 0.3), (0.15, 0.7), (0.4, 0.98), (0.64, 0.88)),
                ((0.0, 0.42), (0.25, 0.41), (0.46, 0.4)),
                ((0.0, 0.6), (0.22, 0.59), (0.42, 0.58)),
            ),
            curved=True,
        ),
    ),
    "F": (Shape((((0.06, 0.0), (0.04, 0.5), (0.0, 1.0)), ((0.06, 0.03), (0.5, 0.0)), ((0.04, 0.48), (0.4, 0.46)))),),
    "x": (Shape((((0.0, 0.5), (0.36, 1.0)), ((0.36, 0.5), (0.0, 1.0)))),),
    "X": (Shape((((0.0, 0.1), (0.5, 1.0)), ((0.5, 0.1), (0.0, 1.0)))),),
    "n": (Shape((((0.0, 0.5), (0.02, 0.98), (0.04, 0.7), (0.2, 0.5), (0.3, 0.62), (0.32, 1.0)),), curved=True),),
    "o": (Shape((((0.3, 0.56), (0.14, 0.5), (0.0, 0.76), (0.15, 1.0), (0.32, 0.78), (0.22, 0.52)),), curved=True),),
    "0": (
        Shape(
            (((0.3, 0.03), (0.06, 0.2), (0.02, 0.74), (0.24, 1.0), (0.48, 0.76), (0.46, 0.22), (0.28, 0.0), (0.16, 0.08)),),
            curved=True,
        ),
        Shape(  # a loop that begins and ends on the line, like an e
            (((0.0, 0.92), (0.3, 0.74), (0.48, 0.36), (0.3, 0.04), (0.06, 0.32), (0.1, 0.82), (0.34, 1.0), (0.58, 0.9)),),
            curved=True,
        ),
        Shape((((0.3, 0.46), (0.02, 0.66), (0.22, 1.0), (0.62, 0.84), (0.52, 0.5), (0.24, 0.5)),), curved=True),  # flat
        Shape((((0.42, 0.16), (0.14, 0.04), (0.0, 0.56), (0.22, 1.0), (0.48, 0.62), (0.34, 0.1)),), curved=True),  # open
        Shape((((0.06, 0.24), (0.08, 0.96), (0.44, 0.72), (0.34, 0.06), (0.08, 0.1), (0.02, 0.3)),), curved=True),
    ),
    "1": (
        Shape((((0.0, 0.0), (0.0, 1.0)),)),
        Shape((((0.3, -0.15), (0.14, 0.5), (0.0, 1.12)),)),
        Shape((((0.0, 0.3), (0.24, 0.0), (0.2, 1.0)),)),
        Shape((((0.0, 0.42), (0.3, 0.0), (0.22, 1.0)),)),
        Shape((((0.0, 0.24), (0.2, 0.0), (0.19, 1.0)), ((0.02, 1.0), (0.4, 0.98)))),
        Shape((((0.0, 0.6), (0.34, 0.0), (0.26, 1.02)),)),
        Shape((((0.0, 0.8), (0.36, 0.0), (0.3, 1.02)),)),  # the upstroke begins almost as low as the stem ends
        Shape((((-0.02, 1.0), (0.36, 0.0), (0.34, 1.0)),)),
        Shape((((0.0, 0.72), (0.2, 0.36), (0.32, 0.02), (0.26, 0.0), (0.16, 0.45), (0.04, 1.08)),), curved=True),
        Shape((((0.02, 0.5), (0.26, 0.1), (0.38, -0.05), (0.3, 0.0), (0.1, 0.6), (0.0, 1.0), (0.12, 1.0)),), curved=True),
    ),
    "2": (
        Shape(
            (((0.24, 0.3), (0.06, 0.36), (0.02, 0.14), (0.22, 0.0), (0.44, 0.14), (0.38, 0.5), (0.06, 1.0), (0.54, 0.98)),),
            curved=True,
        ),
        Shape(
            (
                (
                    *((0.2, 0.42), (0.02, 0.36), (0.06, 0.06), (0.32, 0.0), (0.46, 0.22), (0.36, 0.6), (0.12, 0.98), (0.0, 0.94)),
                    *((0.14, 0.84), (0.34, 0.96), (0.58, 1.0)),
                ),
            ),
            curved=True,
        ),
        Shape(
            (((0.06, 0.5), (0.0, 0.22), (0.2, 0.0), (0.44, 0.12), (0.4, 0.45), (0.2, 0.8), (0.0, 1.0), (0.26, 0.98), (0.52, 0.9)),),
            curved=True,
        ),
        Shape(
            (((0.0, 0.16), (0.24, 0.0), (0.4, 0.14), (0.3, 0.5), (0.04, 0.96), (0.1, 0.84), (0.26, 0.92), (0.6, 1.06)),),
            curved=True,
        ),
    ),
    "4": (
        Shape((((0.2, 0.0), (0.0, 0.62), (0.46, 0.58)), ((0.4, 0.34), (0.32, 1.04)))),
        Shape((((0.14, 0.0), (0.0, 0.56), (0.42, 0.52)), ((0.46, 0.04), (0.36, 1.06)))),
        Shape((((0.24, -0.08), (0.0, 0.68), (0.42, 0.62)), ((0.36, 0.5), (0.28, 1.08)))),
        Shape((((0.04, 0.02), (0.0, 0.36), (0.14, 0.52), (0.42, 0.44)), ((0.46, 0.0), (0.42, 0.5), (0.34, 1.06))), curved=True),
        Shape(  # in one stroke, like an h
            (((0.22, -0.04), (0.1, 0.4), (0.0, 0.72), (0.06, 0.66), (0.24, 0.5), (0.36, 0.6), (0.28, 1.04)),), curved=True
        ),
        Shape((((0.2, 0.0), (0.06, 0.56), (0.02, 0.66), (0.3, 0.6), (0.46, 0.4), (0.36, 0.7), (0.3, 1.08)),), curved=True),
        Shape((((0.42, 0.0), (0.0, 0.64), (0.54, 0.6)), ((0.42, 0.0), (0.36, 1.04)))),  # closed
    ),
    "5": (
        Shape((((0.0, 0.5), (0.1, 0.96), (0.28, 0.06), (0.72, 0.1)),)),  # like the sign of a root
        Shape((((0.0, 0.62), (0.12, 0.98), (0.32, 0.1)), ((0.3, 0.1), (0.5, 0.02), (0.8, 0.06)))),
        Shape((((0.3, 0.06), (0.24, 0.6), (0.14, 0.98), (0.0, 0.78)), ((0.3, 0.06), (0.54, 0.02), (0.72, 0.03))), curved=True),
        Shape((((0.26, 0.08), (0.28, 0.6), (0.2, 0.94), (0.06, 1.0), (0.0, 0.84)), ((0.26, 0.08), (0.64, 0.0))), curved=True),
        Shape((((0.5, 0.02), (0.16, 0.06), (0.1, 0.4), (0.3, 0.5), (0.32, 0.82), (0.0, 0.98)),), curved=True),
        Shape((((0.14, 0.06), (0.08, 0.44), (0.34, 0.5), (0.36, 0.84), (0.0, 0.98)), ((0.14, 0.06), (0.36, 0.02), (0.6, 0.0)))),
    ),
    "7": (
        Shape((((0.0, 0.1), (0.06, 0.02), (0.5, 0.0), (0.2, 1.0)), ((0.12, 0.53), (0.5, 0.48)))),
        Shape((((0.0, 0.04), (0.25, 0.06), (0.52, 0.0), (0.36, 0.5), (0.24, 1.05)), ((0.14, 0.55), (0.58, 0.46))), curved=True),
        Shape((((0.02, 0.18), (0.0, 0.04), (0.5, 0.02), (0.26, 1.02)),)),
        Shape((((0.0, 0.26), (0.06, 0.08), (0.24, 0.12), (0.54, 0.02), (0.36, 0.46), (0.22, 1.02)), ((0.12, 0.54), (0.6, 0.46)))),
        Shape((((0.08, 0.1), (0.34, 0.0), (0.26, 0.5), (0.18, 1.04)), ((0.0, 0.5), (0.6, 0.42)))),  # like a t
        Shape((((0.3, 0.0), (0.24, 1.04)), ((0.0, 0.5), (0.56, 0.46)))),  # like a plus
        Shape((((0.0, 0.14), (0.44, 0.06), (0.3, 0.5), (0.2, 1.04)), ((0.02, 0.62), (0.56, 0.44))), curved=True),
        Shape((((0.0, 0.22), (0.12, 0.02), (0.26, 0.1), (0.5, 0.02), (0.4, 0.4), (0.3, 1.0)),), curved=True),
        Shape((((0.0, 0.3), (0.04, 0.06), (0.46, 0.04), (0.4, 0.5), (0.32, 1.0)), ((0.18, 0.56), (0.66, 0.54))), curved=True),
        Shape((((0.0, 0.16), (0.14, 0.04), (0.44, 0.08), (0.36, 0.5), (0.2, 0.98)), ((0.1, 0.62), (0.52, 0.6)))),
        Shape((((0.0, 0.08), (0.5, 0.08), (0.34, 1.0)), ((0.18, 0.5), (0.56, 0.5)))),
        Shape(
            (((0.02, 0.3), (0.1, 0.04), (0.42, 0.1), (0.34, 0.6), (0.3, 0.94), (0.16, 0.98)), ((0.06, 0.6), (0.6, 0.5))),
            curved=True,
        ),
    ),
    "8": (
        Shape(  # begun and ended at the top right, open there
            (
                (
                    (0.42, 0.1),
                    (0.2, 0.0),
                    (0.06, 0.2),
                    (0.3, 0.48),
                    (0.42, 0.76),
                    (0.2, 1.0),
                    (0.02, 0.78),
                    (0.24, 0.46),
                    (0.48, 0.04),
                ),
            ),
            curved=True,
        ),
        Shape(
            (
                (
                    *((0.3, 0.48), (0.08, 0.36), (0.1, 0.06), (0.34, 0.02), (0.42, 0.28), (0.2, 0.52), (0.02, 0.8), (0.18, 1.0)),
                    *((0.36, 0.84), (0.3, 0.5)),
                ),
            ),
            curved=True,
        ),
    ),
    "9": (
        Shape(
            (((0.12, 0.2), (0.06, 0.6), (0.0, 1.08)), ((0.02, 0.26), (0.24, 0.0), (0.48, 0.16), (0.4, 0.44), (0.1, 0.52))),
            curved=True,
        ),
        Shape(
            (((0.0, 1.1), (0.14, 0.6), (0.26, 0.1), (0.46, 0.02), (0.54, 0.24), (0.38, 0.46), (0.2, 0.38), (0.3, 0.08)),),
            curved=True,
        ),
        Shape(
            (((0.44, 0.1), (0.2, 0.02), (0.02, 0.26), (0.18, 0.48), (0.42, 0.3), (0.48, 0.04), (0.46, 0.5), (0.42, 1.05)),),
            curved=True,
        ),
    ),
}
"""The forms of each character that is drawn; a form twice is twice as likely."""


@dataclass(frozen=True)
class Pen:
    """What a line looks like.

    Attributes:
        width_px: How wide it is.
        slant: How far the top of a letter leans to the right, in its height: the tangent of an angle.
    """

    width_px: float
    slant: float


def draw_shape(shape: Shape, height_px: float, aspect: float, pen: Pen, generator: np.random.Generator) -> tuple[Image.Image, int]:
    """Draw a character, each time a little different.

    Args:
        shape: What is drawn.
        height_px: The height of a digit beside it.
        aspect: Its width is multiplied by this.
        pen: With what.
        generator: Of the differences.

    Returns:
        Its ink, mode L, 255 where there is most, and the row of the image on which the baseline lies (which may lie outside).
    """
    shift = shape.wander * (2 * generator.random() - 1)
    lines = []
    for stroke in shape.strokes:
        points = np.array(stroke)
        if len(stroke) > 2 or height_px * abs(stroke[0][0] - stroke[1][0]) > pen.width_px:
            points += generator.normal(0, 0.035, points.shape)
        if shape.curved:
            points = _curve(points)
        x = points[:, 0] * aspect + pen.slant * (1 - points[:, 1])
        lines.append(np.stack([x, points[:, 1] + shift], axis=1) * height_px)
    every = np.concatenate(lines)
    margin = pen.width_px / 2 + 1
    left, top = every.min(axis=0) - margin
    top = math.floor(top - height_px) + height_px  # the baseline falls between two rows
    width, height = np.ceil(every.max(axis=0) + margin - (left, top)).astype(int).tolist()
    fine = Image.new("L", (width * _FINE, height * _FINE))
    draw = ImageDraw.Draw(fine)
    radius = pen.width_px * _FINE / 2
    for line in lines:
        dots = ((line - (left, top)) * _FINE).tolist()
        path = [(x, y) for x, y in dots]
        draw.line(path, fill=255, width=max(1, round(2 * radius)), joint="curve")
        for x, y in (path[0], path[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return fine.reduce(_FINE), round(height_px - top)


def _curve(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A smooth line through points (Catmull and Rom 1974): (n, 2) to (4 (n - 1) + 1, 2)."""
    ends = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    before, start, stop, after = (ends[i : len(ends) - 3 + i, None] for i in range(4))  # (n - 1, 1, 2) each
    t = _STEPS
    bent = start + 0.5 * t * (
        stop - before + t * (2 * before - 5 * start + 4 * stop - after + t * (3 * (start - stop) + after - before))
    )
    return np.concatenate([bent.reshape(-1, 2), points[-1:]])
