"""Synthetic amount fields: an amount, written by somebody on some paper, and photographed."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from convoy.contract.errors import DataError
from convoy.training.check_reader.amounts import Amount, amount_styles, sample_amount
from convoy.training.check_reader.grammar import Grammar
from convoy.training.check_reader.handwriting import Glyph, Handwriting, Writer, draw_writer, paste
from convoy.training.check_reader.paper import draw_paper
from convoy.training.check_reader.strokes import Pen, Shape, draw_shape
from convoy.training.check_reader.void import draw_void

_SEEN: Final = 64  # ink from which a pixel belongs to a character
_FAR: Final = -1e6
_FRACTION: Final = "/100"
_TRIES: Final = 1_000


@dataclass(frozen=True, eq=False)
class SyntheticField:
    """One synthetic amount.

    Attributes:
        image: uint8 (height, width), dark ink on lighter paper.
        text: Every character that is written, spaces too.
        digits: Those of the text.
        spans: For each character of the text the columns that it takes, from the first up to and without the last; in order of
            their middles, and overlapping where characters do.
    """

    image: npt.NDArray[np.uint8]
    text: str
    digits: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SyntheticFields:
    """Fields without end; each is a function of the seed and its index alone, whatever was drawn before it.

    Attributes:
        handwriting: The digits to write with; those of a training split, where another is measured on.
        style: A style of amounts: ``chilean``, ``us``, ``french`` or ``digits``.
        seed: 0 or more; other seeds give other fields.
        grammar: Where there is one, amounts that it lacks are drawn again.
        void_share: The share of fields that hold no amount; their text is empty.
    """

    handwriting: Handwriting
    style: str = "chilean"
    seed: int = 0
    grammar: Grammar | None = None
    void_share: float = 0.0

    def draw(self, index: int) -> SyntheticField:
        """The field of an index.

        Args:
            index: 0 or more.

        Raises:
            DataError: Index or seed is negative, there is no such style, or the grammar has hardly any of its amounts.
        """
        if index < 0 or self.seed < 0:
            raise DataError(f"expected an index and a seed of 0 or more, found {index} and {self.seed}.")
        generator = np.random.default_rng((self.seed, index))
        if self.void_share and generator.random() < self.void_share:
            return SyntheticField(_photograph(draw_void(self.handwriting, generator), generator), "", "", ())
        return draw_field(self._amount(generator), self.handwriting, generator)

    def _amount(self, generator: np.random.Generator) -> Amount:
        refused: list[str] = []
        while len(refused) < _TRIES:
            amount = sample_amount(self.style, generator)
            if self.grammar is None or self.grammar.accepts(amount.text):
                return amount
            refused.append(amount.text)
        assert self.grammar is not None
        raise DataError(
            f"grammar {self.grammar.name}: expected amounts of the style {self.style}, found none among {_TRIES} that were drawn, "
            f"such as {', '.join(map(repr, refused[:3]))}. Choose another style of synthetic amounts (--set style=..., one of "
            f"{', '.join(amount_styles())}), widen the grammar, or learn from your own fields alone: --set epochs=0 "
            "--set synthetic_share=0."
        )


def draw_field(
    amount: Amount, handwriting: Handwriting, generator: np.random.Generator, writer: Writer | None = None
) -> SyntheticField:
    """Write an amount and photograph it.

    Args:
        amount: What is written.
        handwriting: The digits to write with.
        generator: Of all that is left to chance.
        writer: Who writes; drawn where none is given.

    Raises:
        DataError: The amount is empty, or holds a character that nobody knows how to write.
    """
    if not amount.text.strip():
        raise DataError("expected an amount of a character at least, found none.")
    if writer is None:
        writer = _fitted(draw_writer(generator), amount, generator)
    line = _Line(writer, handwriting, generator)
    for character, scale, raised in _sized(amount.text):
        line.add(character, scale, raised)
    ink, spans = line.finish()
    return SyntheticField(_photograph(ink, generator), amount.text, amount.digits, spans)


def _fitted(writer: Writer, amount: Amount, generator: np.random.Generator) -> Writer:
    """Somebody who writes smaller and narrower where the room on the check would not do: most real fields are below 220 px."""
    room_px = max(generator.normal(180, 30), 90)
    n_digits = len(amount.digits) + 0.4 * (len(amount.text) - len(amount.digits))
    share = room_px / (n_digits * writer.height_px * (0.62 * writer.aspect + 0.15))
    if share >= 1:
        return writer
    share = max(share, 0.45)
    return replace(writer, height_px=max(writer.height_px * share**0.65, 12), aspect=writer.aspect * share**0.35)


def _sized(text: str) -> list[tuple[str, float, float]]:
    """Each character, its size, and how far it is raised, in heights of a digit: cents over a hundred are small."""
    if not text.endswith(_FRACTION) or len(text) < len(_FRACTION) + 2:
        return [(character, 1.0, 0.0) for character in text]
    sizes = [(character, 1.0, 0.0) for character in text[:-6]] + [(character, 0.6, 0.4) for character in text[-6:-4]]
    return [*sizes, ("/", 0.85, 0.1), *((character, 0.55, -0.05) for character in "100")]


class _Placed(NamedTuple):
    """A glyph on the line: its first column and row, and whether it belongs to the text."""

    glyph: Glyph
    left: int
    top: int
    labelled: bool

    @property
    def right(self) -> int:
        return self.left + self.glyph.ink.shape[1]

    @property
    def bottom(self) -> int:
        return self.top + self.glyph.ink.shape[0]


class _Line:
    """A line of writing while it grows to the right: each character is moved up to what stands before it.

    Rows count from the baseline's, 0 at the first character, downwards.
    """

    def __init__(self, writer: Writer, handwriting: Handwriting, generator: np.random.Generator) -> None:
        self._writer, self._handwriting, self._generator = writer, handwriting, generator
        size = writer.height_px
        self._slope = 0.025 * generator.standard_normal()
        self._drift = 0.0
        self._gap = size * min(max(generator.normal(0.13, 0.15), -0.12), 0.5)
        self._above = math.ceil(6 * size)  # rows kept above the baseline, and below it
        self._edge = np.full(2 * self._above, _FAR)  # how far right the writing reaches in each row
        self._spread = max(2, round(0.14 * size))
        self._placed: list[_Placed | None] = []  # None for a space
        self._before: _Placed | None = None
        self._last = ""  # the character before
        self._room = 0.0

    def add(self, character: str, scale: float = 1.0, raised: float = 0.0) -> None:
        """Write the next character."""
        size, generator, before = self._writer.height_px, self._generator, self._before
        if character == " ":
            self._room += size * generator.uniform(0.25, 0.6)
            self._placed.append(None)
            return
        glyph = self._handwriting.write(character, self._writer, generator, scale=scale)
        wander, nearer = generator.standard_normal(2).tolist()
        self._drift = 0.7 * self._drift + 0.035 * self._writer.unsteadiness * size * wander
        x = 0 if before is None else before.right
        level = max(min(self._slope * x + self._drift, 2 * size), -2 * size)
        top = round(level - raised * size) - glyph.baseline
        seen = glyph.ink > _SEEN
        inked = seen.any(axis=1)
        gap = self._room + max(self._gap + 0.06 * size * nearer, -0.14 * size)
        left = 0
        rows = slice(self._above + top, self._above + top + len(inked))
        if before is not None:
            starts = np.where(inked, seen.argmax(axis=1), -_FAR)
            nearest = float((self._edge[rows] - starts).max())  # where they would touch
            half = glyph.ink.shape[1] / 2
            in_order = max((before.left + before.right) / 2 + 1 - half, before.left + 1)
            beside = before.right - 0.45 * min(before.right - before.left, 2 * half) + max(gap, 0)
            left = math.ceil(max(nearest + gap, in_order, beside))
        self._reach(rows, np.where(inked, left + seen.shape[1] - seen[:, ::-1].argmax(axis=1), _FAR))
        self._room = 0.0
        placed = _Placed(glyph, left, top, labelled=True)
        self._placed.append(placed)
        if before is not None and self._writer.links_zeros and character == self._last == "0":
            self._link(before, placed)
        self._before, self._last = placed, character

    def _link(self, before: _Placed, after: _Placed) -> None:
        """Join two zeros by a stroke at their tops."""
        size = self._writer.height_px
        start, stop = (placed.left + placed.glyph.ink.shape[1] * 0.6 for placed in (before, after))
        fall = (after.top - before.top) / size
        points = (
            (0.0, 0.0),
            ((stop - start) / size / 2, fall / 2 + self._generator.uniform(0.0, 0.12)),
            ((stop - start) / size, fall),
        )
        stroke, baseline = draw_shape(Shape((points,), curved=True), size, 1.0, Pen(self._writer.pen_px, 0.0), self._generator)
        left, top = round(start - self._writer.pen_px), before.top + baseline - round(size)
        self._placed.append(_Placed(Glyph(np.asarray(stroke), 0), left, top - round(self._writer.pen_px / 2), False))

    def finish(self) -> tuple[npt.NDArray[np.uint8], tuple[tuple[int, int], ...]]:
        """The ink of the field, uint8 (height, width), and the columns of each character of the text."""
        size, generator = self._writer.height_px, self._generator
        every = [placed for placed in self._placed if placed is not None]
        before, above, below = np.abs(generator.normal((0.1, 0.16, 0.2), (0.12, 0.14, 0.16)) * size).round().astype(int).tolist()
        behind = size * min(abs(generator.normal(0.1, 0.3)) + (generator.exponential(0.9) if generator.random() < 0.12 else 0), 2.5)
        first, last = min(placed.left for placed in every), max(placed.right for placed in every)
        top = min(*(placed.top for placed in every), round(-0.6 * size)) - above
        bottom = max(*(placed.bottom for placed in every), 1) + below
        lacking = max(round(generator.uniform(38, 50)) - (bottom - top), 0)  # the crop of small writing is not so small
        top -= lacking // 2
        bottom += lacking - lacking // 2
        ink = np.zeros((bottom - top, max(last - first + before + round(behind), 8)), dtype=np.uint8)
        spans: list[tuple[int, int] | None] = []
        for placed in self._placed:
            if placed is None:
                spans.append(None)
                continue
            left = placed.left - first + before
            paste(ink, placed.glyph.ink, left, placed.top - top)
            if placed.labelled:
                spans.append((left, left + placed.glyph.ink.shape[1]))
        if generator.random() < 0.08:
            self._cross(ink)
        cut = round(generator.uniform(0, 0.06) * size) if generator.random() < 0.3 else 0  # crops are not always whole
        return ink[cut : ink.shape[0] - cut], _with_spaces(spans, ink.shape[1])

    def _reach(self, rows: slice, ends: npt.NDArray[np.float64]) -> None:
        """Note how far right a glyph reaches, in the rows a little above and below it too."""
        for shift in (-self._spread, -self._spread // 2, 0, self._spread // 2, self._spread):
            at = self._edge[rows.start + shift : rows.stop + shift]
            np.maximum(at, ends, out=at)

    def _cross(self, ink: npt.NDArray[np.uint8]) -> None:
        """A stroke of other writing that comes in from above or below."""
        generator, (height, width) = self._generator, ink.shape
        shape = Shape((((0.0, 0.0), (generator.uniform(-0.5, 0.5), 0.5), (generator.uniform(-1, 1), 1.0)),), curved=True)
        stroke, _ = draw_shape(shape, generator.uniform(0.2, 0.9) * height, 1.0, Pen(self._writer.pen_px, 0.0), generator)
        top = -0.6 * stroke.height if generator.random() < 0.6 else height - 0.4 * stroke.height
        paste(ink, np.asarray(stroke), int(generator.integers(width)), round(top))


def _with_spaces(spans: list[tuple[int, int] | None], width: int) -> tuple[tuple[int, int], ...]:
    """Give each space the room between its neighbours, a column at least."""
    found: list[tuple[int, int]] = []
    for at, span in enumerate(spans):
        if span is None:
            before = found[-1] if found else (0, 0)
            behind = next((after for after in spans[at + 1 :] if after is not None), (width, width))
            span = before[1], behind[0]
            if span[1] <= span[0]:  # they overlap: between their middles
                middle = min((sum(before) + sum(behind)) // 4, width - 1)
                span = middle, middle + 1
        found.append(span)
    return tuple(found)


def _photograph(ink: npt.NDArray[np.uint8], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Ink on paper through a lens, a sensor and JPEG."""
    height, width = ink.shape
    paper = draw_paper(height, width, generator)
    tone = float(paper.mean())
    contrast = min(max(generator.normal(118, 22), 60), 165)
    dark = max(tone - contrast - 10, 22)
    # the pen presses now more, now less, and the paper's grain shows through
    press = 1 - generator.uniform(0, 0.3) * generator.random((3, width // 12 + 2))
    pressed = Image.fromarray(press.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    cover = ink.astype(np.float32) / np.float32(255) * np.asarray(pressed)
    levels = paper + (np.float32(dark) - paper) * cover * np.float32(0.94)
    levels += np.float32(generator.uniform(1.5, 5)) * generator.standard_normal((height, width), dtype=np.float32)
    image = Image.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.35, 0.8)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(generator.integers(60, 96)))
    with Image.open(file) as seen:
        return np.array(seen)
