"""Paper of checks: security patterns, grain, ruled lines and uneven light."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

_Levels = npt.NDArray[np.float32]
_PATTERNS: Final = ("hatch", "hatch", "waves", "waves", "waves", "cross", "cross", "arcs", "grain", "grain", "plain")


def draw_paper(height_px: int, width_px: int, generator: np.random.Generator) -> _Levels:
    """Paper without writing, as in the real fields of ORAND-CAR-A.

    Args:
        height_px: Of the field.
        width_px: Of the field.
        generator: Which paper.

    Returns:
        float32 (height, width), grey levels about 100 to 240; before blur and noise.
    """
    y, x = _axis(height_px)[:, None], _axis(width_px)
    dark = generator.random() < 0.4  # two kinds: coloured, and nearly white
    tone = generator.normal(158, 9) if dark else generator.normal(194, 12)
    light = generator.normal(0, 7, 3)
    across, down = x / width_px - np.float32(0.5), y / height_px - np.float32(0.5)
    levels: _Levels = tone + light[0] * across + light[1] * down + light[2] * (4 * across * across - np.float32(0.33))
    kind = _PATTERNS[int(generator.random() * len(_PATTERNS))]
    depth = generator.uniform(22, 62)
    if kind in ("hatch", "cross"):
        angle = generator.uniform(0.15, 1.4) * (1 if generator.random() < 0.5 else -1)
        pattern = _lines(x, y, angle, generator)
        if kind == "cross":
            pattern = np.maximum(pattern, _lines(x, y, angle + generator.uniform(0.5, 2.2), generator))
    elif kind == "waves":
        pattern = _lines(x, y, math.pi / 2 + 0.05 * generator.standard_normal(), generator)
        if generator.random() < 0.35:
            pattern = np.maximum(pattern, 0.6 * _lines(x, y, generator.uniform(0.2, 1.2), generator))
    elif kind == "arcs":
        pattern = np.maximum(_arcs(x, y, generator), _arcs(x, y, generator))
    elif kind == "grain":
        pattern = _grain(height_px, width_px, generator)
    else:
        pattern = np.zeros((height_px, width_px), dtype=np.float32)
    if kind in ("hatch", "cross", "arcs") and generator.random() < 0.3:  # a printed border, beyond which there is no pattern
        border = generator.uniform(0.05, 0.35) * height_px + generator.uniform(-0.2, 0.05) * x
        pattern *= y > border
        levels -= generator.uniform(0, 60) * _near(y, border, 0.7)
    levels += np.float32(depth) * (np.float32(0.75) * pattern.mean() - pattern)
    _rule(levels, x, y, generator)
    _zone(levels, generator)
    return levels


def _zone(levels: _Levels, generator: np.random.Generator) -> None:
    """Now and then a strip along an edge is of another tone: where the field of the form ends, or the next one begins."""
    if generator.random() >= 0.12:
        return
    height_px, width_px = levels.shape
    change = np.float32(generator.uniform(15, 60) * (1 if generator.random() < 0.8 else -1))
    if generator.random() < 0.75:
        n = round(generator.uniform(0.04, 0.45) * height_px)
        levels[slice(0, n) if generator.random() < 0.8 else slice(height_px - n, None)] += change
    if generator.random() < 0.35:
        n = round(generator.uniform(0.01, 0.08) * width_px)
        levels[:, slice(0, n) if generator.random() < 0.7 else slice(width_px - n, None)] += change


def _axis(length: int) -> _Levels:
    return np.arange(length, dtype=np.float32)


def _fold(phase: _Levels, share: float) -> _Levels:
    """Lines where the phase is near a whole number, soft at their edges; ``share`` of the room is line."""
    off = np.abs(phase - np.rint(phase))
    lines: _Levels = np.clip(1.5 - off * np.float32(2.5 / share), 0, 1)
    return lines


def _lines(x: _Levels, y: _Levels, angle: float, generator: np.random.Generator) -> _Levels:
    """Parallel lines along which ``angle`` (radians) stands upright, a little wavy."""
    period = generator.uniform(3.5, 9)
    phase = (math.cos(angle) * x + math.sin(angle) * y) / np.float32(period) + np.float32(generator.random())
    sway = generator.uniform(0, 0.35)
    sideways = x if abs(math.sin(angle)) > 0.7 else y
    phase = phase + np.float32(sway) * np.sin(sideways * np.float32(2 * math.pi / generator.uniform(15, 60)))
    return _fold(phase.astype(np.float32), generator.uniform(0.2, 0.45))


def _arcs(x: _Levels, y: _Levels, generator: np.random.Generator) -> _Levels:
    """Circles around a place outside."""
    centre_x, centre_y = generator.uniform(-1, 2) * x.size, generator.choice((-1.5, 2.5)) * y.size
    distance = np.sqrt((x - np.float32(centre_x)) ** 2 + (y - np.float32(centre_y)) ** 2)
    return _fold(distance / np.float32(generator.uniform(4, 9)), generator.uniform(0.2, 0.4))


def _grain(height_px: int, width_px: int, generator: np.random.Generator) -> _Levels:
    """Dots of one to two pixels."""
    coarse = generator.integers(0, 256, (height_px * 5 // 8 + 1, width_px * 5 // 8 + 1), dtype=np.uint8)
    dots = Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BILINEAR)
    return np.asarray(dots, dtype=np.float32) / np.float32(255)


def _near(y: _Levels, at: _Levels | float, half_px: float) -> _Levels:
    near: _Levels = np.clip(half_px + 0.5 - np.abs(y - at), 0, 1).astype(np.float32)
    return near


def _rule(levels: _Levels, x: _Levels, y: _Levels, generator: np.random.Generator) -> None:
    """Printed lines: below the amount, seldom above it or at its sides."""
    height, width = levels.shape
    slope = 0.006 * generator.standard_normal()
    if generator.random() < 0.5:
        at = generator.uniform(0.78, 0.99) * height + slope * x
        levels -= generator.uniform(25, 75) * _near(y, at, generator.uniform(0.3, 0.9))
        if generator.random() < 0.25:
            levels -= generator.uniform(10, 40) * _near(y, at - generator.uniform(2, 5), 0.4)
    if generator.random() < 0.1:
        levels -= generator.uniform(15, 70) * _near(y, generator.uniform(0, 0.12) * height + slope * x, 0.5)
    if generator.random() < 0.1:
        side = generator.uniform(0, 0.06) if generator.random() < 0.6 else generator.uniform(0.96, 1)
        levels -= generator.uniform(20, 100) * _near(x, side * width, generator.uniform(0.4, 0.9))
