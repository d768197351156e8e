"""Handwriting: the digits of a set, brought to one writer's slant, size, shape and pen, and the characters that it lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.contract.errors import DataError
from convoy.training.check_reader.strokes import SHAPES, Pen, draw_shape
from convoy.training.check_reader.thinning import thin

DIGITS: Final = "0123456789"
_SIDE: Final = 28
_CHUNK: Final = 1024  # images prepared at a time: 3 MB a temporary array
_SIGMA_PX: Final = 1.6  # of a prepared stroke's profile, measured on lines at all angles: wider than the blur, which is divided
_INK: Final = 0.45  # of the most ink in an image: less is the edge of a stroke
_FULL: Final = 190  # how a prepared stroke's middle is kept, with room above it, where strokes cross
_SHARPER: Final = np.float32(2)
_LOOPS: Final = (1, 0, 0, 0, 0, 0, 1, 0, 2, 1)  # what each digit must have to be read once its strokes are fine
_UPRIGHT: Final = np.float32(0.33)  # the middle of an upright line after that blur: 20 / 64, and a little more where it bends
_FAINT: Final = 0.35  # of a prepared image's highest: lower is outside strokes
_FORM_SHARES: Final = {"0": 0.2, "1": 0.6, "2": 0.2, "4": 0.4, "5": 0.3, "7": 0.7, "8": 0.1, "9": 0.3}
"""Of how many people a digit is drawn rather than taken from the set: forms that sets of other countries lack."""
_BROADEST, _FINEST = 0.3, 0.9  # levels at which a prepared stroke is cut: outside them it merges or breaks


class Glyph(NamedTuple):
    """A character as written.

    Attributes:
        ink: uint8 (height, width), 255 where there is most ink; no empty columns at its sides.
        baseline: The row on which the baseline lies; may lie outside.
    """

    ink: npt.NDArray[np.uint8]
    baseline: int


@dataclass(frozen=True)
class Writer:
    """How one person writes one amount.

    Attributes:
        height_px: Of a digit.
        slant: How far its top leans to the right, in its height; negative to the left.
        aspect: Digits are this much wider than those of the set.
        pen_px: How wide the stroke is.
        unsteadiness: From 0, all alike, to about 1: how much slant, size and place differ from one character to the next.
        zero_size: Zeros are this much smaller than other digits.
        links_zeros: Zeros that follow each other are joined at their tops.
        forms: Which of the drawn forms of a digit this person writes in place of the set's.
    """

    height_px: float
    slant: float = 0.0
    aspect: float = 1.0
    pen_px: float = 3.0
    unsteadiness: float = 0.5
    zero_size: float = 1.0
    links_zeros: bool = False
    forms: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.height_px >= 8 and self.pen_px > 0 and self.aspect > 0 and self.zero_size > 0 and abs(self.slant) <= 2):
            raise DataError(f"expected digits of 8 pixels or more, a pen, sizes above 0 and a slant from -2 to 2; found {self}.")


def draw_writer(generator: np.random.Generator) -> Writer:
    """Somebody: heights of digits, strokes and slants as in the real fields of ORAND-CAR-A."""
    height_px = min(max(34 * math.exp(0.23 * generator.standard_normal()), 17), 54)
    pen_px = 3.4 * (height_px / 34) ** 0.4 * math.exp(0.18 * generator.standard_normal())
    return Writer(
        height_px=height_px,
        slant=min(max(0.16 + 0.2 * generator.standard_normal(), -0.3), 0.75),
        aspect=math.exp(generator.normal(0.07, 0.17)),
        pen_px=min(max(pen_px, 1.7), 6.0, height_px / 6),
        unsteadiness=generator.uniform(0.2, 1.2),
        zero_size=min(math.exp(generator.normal(-0.12, 0.17)), 1.1),
        links_zeros=generator.random() < 0.2,
        forms={
            digit: int(generator.random() * len(SHAPES[digit]))
            for digit, share in _FORM_SHARES.items()
            if generator.random() < share
        },
    )


class Handwriting:
    """Digits to write with.

    Each image is prepared once: its strokes are thinned to lines and blurred, so that they all have one profile, whether the pen
    was broad or fine, and to cut that at another level gives another width and breaks no stroke. What is kept takes as much
    memory as the images.
    """

    def __init__(self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]]) -> None:
        """Prepare the digits of a set.

        Args:
            images: uint8 (n, 28, 28), or with a last axis of one channel; light strokes on dark, as MNIST has them.
            labels: (n,), 0 to 9; each at least once.

        Raises:
            DataError: Shapes or labels are others, or a digit is missing.
        """
        if (
            images.shape[1:] not in ((_SIDE, _SIDE), (_SIDE, _SIDE, 1))
            or images.dtype != np.uint8
            or labels.shape != images.shape[:1]
        ):
            raise DataError(
                f"expected images uint8 (n, {_SIDE}, {_SIDE}) and as many labels, "
                f"found {images.dtype} {images.shape} and {labels.shape}."
            )
        images = images.reshape(-1, _SIDE, _SIDE)
        chunks = [_prepare(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
        if not chunks or not all((labels == digit).any() for digit in range(10)) or not np.isin(labels, range(10)).all():
            raise DataError(f"expected labels 0 to 9, each at least once; found {sorted(set(labels.tolist()))[:20]}.")
        self._ridges = np.concatenate([chunk.ridges for chunk in chunks])
        self._boxes = np.concatenate([chunk.boxes for chunk in chunks])
        slants = np.concatenate([chunk.slants for chunk in chunks])
        loops = np.concatenate([chunk.loops for chunk in chunks])
        self._of_digit = tuple(
            _looped((labels == digit) & (self._boxes[:, 1] > self._boxes[:, 0]), loops >= _LOOPS[digit]) for digit in range(10)
        )
        if not all(len(those) for those in self._of_digit):
            raise DataError("expected an image with ink of each digit, found a digit whose images are all empty.")
        for those in self._of_digit:  # a 7 leans by nature: what is taken away is how much more than others of its kind
            slants[those] -= np.median(slants[those])
        self._slants = slants

    def write(self, character: str, writer: Writer, generator: np.random.Generator, *, scale: float = 1.0) -> Glyph:
        """Write one character.

        Args:
            character: A digit or one of ``strokes.SHAPES``.
            writer: By whom.
            generator: Which image, which form, how unsteady.
            scale: Times the writer's height.

        Raises:
            DataError: Nobody knows how to write this character.
        """
        taller, wider, lean, press, turn = generator.standard_normal(
            5
        ).tolist()  # drawn at once: five calls take four times as long
        if character == "0":
            scale *= writer.zero_size
        height_px = writer.height_px * scale * math.exp(0.07 * writer.unsteadiness * taller)
        pen = Pen(writer.pen_px * math.exp(0.06 * press), writer.slant + 0.06 * writer.unsteadiness * lean)
        aspect = writer.aspect * math.exp(0.08 * writer.unsteadiness * wider)
        if character in DIGITS and character not in writer.forms:
            those = self._of_digit[int(character)]
            return self._from_image(int(those[int(generator.random() * len(those))]), height_px, aspect, pen, 0.03 * turn)
        if character not in SHAPES:
            raise DataError(f"expected a digit or one of {' '.join(SHAPES)}, found {character!r}: no strokes are known for it.")
        shapes = SHAPES[character]
        shape = shapes[writer.forms[character] if character in writer.forms else int(generator.random() * len(shapes))]
        ink, baseline = draw_shape(shape, height_px, aspect, pen, generator)
        return _cropped(np.asarray(ink), baseline)

    def _from_image(self, index: int, height_px: float, aspect: float, pen: Pen, turn: float) -> Glyph:
        top, bottom, middle = self._boxes[index].tolist()
        scale = height_px / (bottom - top)
        lean = self._slants[index]  # more than others of its kind
        half = math.ceil((_SIDE / 2) * scale * aspect + (abs(pen.slant) + abs(lean) * aspect) * height_px / 2) + 2
        margin = 3
        height = math.ceil(height_px) + 2 * margin
        # output (x, y) from the middle of the glyph to input, undoing slant, turn and scale
        across = 1 / (scale * aspect)
        a, b = across, pen.slant * across - lean / scale
        d, e = turn / scale, 1 / scale
        centre_x, centre_y = half, margin + height_px / 2
        coefficients = (a, b, middle - a * centre_x - b * centre_y, d, e, (top + bottom) / 2 - d * centre_x - e * centre_y)
        moved = Image.fromarray(self._ridges[index]).transform(
            (2 * half, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
        )
        # a stroke's profile is exp(-d^2 / 2 sigma^2): cut where it is as wide as the pen, over one pixel of the glyph
        distance = pen.width_px / 2 / (scale * math.sqrt(aspect))
        level = min(max(math.exp(-(distance**2) / (2 * _SIGMA_PX**2)), _BROADEST), _FINEST)
        distance = _SIGMA_PX * math.sqrt(-2 * math.log(level))
        edge = max(level * distance / _SIGMA_PX**2 / scale, 0.02)
        return _cropped(_cut(round(level * _FULL), round(edge * _FULL))[np.asarray(moved)], round(margin + height_px))


@lru_cache(maxsize=4096)
def _cut(level: int, edge: int) -> npt.NDArray[np.uint8]:
    """For each value from 0 to 255 how much ink: from none to all over ``edge`` around ``level``."""
    steps = (np.arange(256) - level) / max(edge, 1) + 0.5
    table: npt.NDArray[np.uint8] = np.rint(255 * steps.clip(0, 1)).astype(np.uint8)
    return table


def _cropped(ink: npt.NDArray[np.uint8], baseline: int) -> Glyph:
    """Without the empty rows and columns around; what is empty stays."""
    rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
    if not len(rows):
        return Glyph(ink, baseline)
    return Glyph(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], baseline - int(rows[0]))


def paste(ink: npt.NDArray[np.uint8], glyph: npt.NDArray[np.uint8], left: int, top: int) -> None:
    """Add a glyph's ink to a field's, where it lies within.

    Args:
        ink: uint8 (height, width), changed in place.
        glyph: uint8, of any size.
        left: The column of the glyph's first; may lie outside.
        top: The row of its first; may lie outside.
    """
    bottom, right = top + glyph.shape[0], left + glyph.shape[1]
    target = ink[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    start_y, start_x = max(-top, 0), max(-left, 0)
    np.maximum(target, glyph[start_y : start_y + target.shape[0], start_x : start_x + target.shape[1]], out=target)


class _Prepared(NamedTuple):
    """Images ready to be written with.

    Attributes:
        ridges: uint8 (n, 28, 28), highest along the middles of strokes.
        boxes: (n, 3): top, bottom and, along x, the middle of the digit; top and bottom are equal where there is no ink.
        slants: (n,), how far its top leans to the right, in its height.
        loops: (n,), how many loops it has, if it is in one part.
    """

    ridges: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float64]
    slants: npt.NDArray[np.float64]
    loops: npt.NDArray[np.intp]


def _looped(of_digit: npt.NDArray[np.bool_], has_loops: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """The indices of a digit's images that have its loops; of all, where none has."""
    found = np.flatnonzero(of_digit & has_loops)
    return found if len(found) else np.flatnonzero(of_digit)


def _loops(lines: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """One less the Euler number, counted in squares of 2x2 pixels (Gray 1971); (n, height, width) to (n,)."""
    framed = np.pad(lines, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    code = framed[:, :-1, :-1] + 2 * framed[:, :-1, 1:] + 4 * framed[:, 1:, :-1] + 8 * framed[:, 1:, 1:]
    weights = np.zeros(16, dtype=np.int8)
    weights[[1, 2, 4, 8]], weights[[7, 11, 13, 14]], weights[[6, 9]] = 1, -1, -2
    loops: npt.NDArray[np.intp] = 1 - weights[code].sum(axis=(1, 2), dtype=np.intp) // 4
    return loops


def _prepare(images: npt.NDArray[np.uint8]) -> _Prepared:
    ink = images.astype(np.float32) / np.maximum(images.max(axis=(1, 2), keepdims=True), 1)
    sharp = ink + _SHARPER * (ink - _blur(ink))  # small loops that a broad pen all but filled stay open
    smooth = _blur(_blur(_blur(thin(sharp > _INK).astype(np.float32))))
    near = smooth  # a slanting line has fewer pixels in its length: divide by the most nearby
    for axis in (1, 2):
        near = np.maximum(near, np.maximum(np.roll(near, 1, axis), np.roll(near, -1, axis)))
    near = np.minimum(near, _UPRIGHT)  # where strokes meet there is more, and to divide by it would cut them off from each other
    near = _blur(_blur(near))  # from pixel to pixel it would undo what tells where between them the line runs
    ridges = smooth / np.maximum(near, np.maximum(_FAINT * near.max(axis=(1, 2), keepdims=True), 1e-3))
    solid = ridges > 0.6
    rows, columns = solid.any(axis=2), solid.any(axis=1)  # (n, 28) each
    top, bottom = rows.argmax(axis=1), _SIDE - rows[:, ::-1].argmax(axis=1)
    left, right = columns.argmax(axis=1), _SIDE - columns[:, ::-1].argmax(axis=1)
    empty = ~rows.any(axis=1)
    boxes = np.stack([top, np.where(empty, top, bottom), (left + right) / 2], axis=1).astype(np.float64)

    places = np.arange(_SIDE, dtype=np.float64)
    mass = np.maximum(ink.sum(axis=(1, 2), dtype=np.float64), 1e-6)
    y = places - (ink.sum(axis=2) @ places / mass)[:, None]  # (n, 28), from the middle of the ink
    x = places - (ink.sum(axis=1) @ places / mass)[:, None]
    with_x = (ink @ x[:, :, None].astype(np.float32))[:, :, 0]
    with_y, of_y = (with_x * y).sum(axis=1), (ink.sum(axis=2) * y * y).sum(axis=1)
    slants = np.clip(-with_y / np.maximum(of_y, 1e-6), -0.8, 0.8)
    return _Prepared(np.rint(np.minimum(_FULL * ridges, 255)).astype(np.uint8), boxes, slants, _loops(solid))


def _blur(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The binomial 1 2 1 along both axes."""
    for axis in (1, 2):
        values = (np.roll(values, 1, axis) + 2 * values + np.roll(values, -1, axis)) / np.float32(4)
    return values
