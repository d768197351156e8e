from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw

from convoy.contract.errors import DataError
from convoy.training.check_reader.grammar import grammar_names, load_grammar
from convoy.training.check_reader.handwriting import DIGITS, Handwriting, Writer, draw_writer
from convoy.training.check_reader.strokes import SHAPES, Pen, draw_shape
from convoy.training.check_reader.thinning import thin
from convoy.training.data.digits import load_digits


@pytest.fixture(scope="module")
def handwriting() -> Handwriting:
    train = load_digits().train
    return Handwriting(train.images[:], train.labels)


def test_every_character_of_every_shipped_grammar_can_be_written(handwriting: Handwriting) -> None:
    generator = np.random.default_rng(0)
    for name in grammar_names():
        for character in load_grammar(name).alphabet:
            if character != " ":
                glyph = handwriting.write(character, draw_writer(generator), generator)
                assert glyph.ink.dtype == np.uint8
                assert glyph.ink.max() > 200
                assert glyph.ink[:, [0, -1]].any(axis=0).all()


def test_digits_have_the_writers_height_and_stand_on_the_baseline(handwriting: Handwriting) -> None:
    generator = np.random.default_rng(0)
    for height_px in (20, 34, 52):
        glyphs = [handwriting.write(digit, Writer(height_px, unsteadiness=0), generator) for digit in DIGITS * 3]
        assert np.abs([glyph.ink.shape[0] - height_px for glyph in glyphs]).max() <= 0.2 * height_px + 3
        assert np.abs([glyph.baseline - glyph.ink.shape[0] for glyph in glyphs]).max() <= 0.15 * height_px + 2


@pytest.mark.parametrize("forms", [{}, {"1": 0, "7": 0, "9": 0}])
def test_a_broader_pen_leaves_more_ink_and_a_slant_more_width(handwriting: Handwriting, forms: dict[str, int]) -> None:
    base = Writer(34, pen_px=2.5, unsteadiness=0, forms=forms)

    def measure(writer: Writer, what: str) -> float:
        glyphs = [handwriting.write(digit, writer, np.random.default_rng(4)) for digit in "179" * 3]
        return float(np.mean([glyph.ink.mean() * glyph.ink.size if what == "ink" else glyph.ink.shape[1] for glyph in glyphs]))

    inks = [measure(dataclasses.replace(base, pen_px=pen), "ink") for pen in (3.0, 4.2, 5.4)]
    assert inks[1] > 1.12 * inks[0]
    assert inks[2] > 1.12 * inks[1]
    assert measure(dataclasses.replace(base, slant=0.8), "width") > measure(base, "width") + 8


@pytest.mark.parametrize("drawn_px", [2, 4])
@pytest.mark.parametrize("lean", [0.0, 0.36])
def test_strokes_are_as_wide_as_the_pen_whatever_they_were_in_the_set(lean: float, drawn_px: int) -> None:
    large = Image.new("L", (224, 224))
    ImageDraw.Draw(large).line((112 + 80 * lean, 32, 112 - 80 * lean, 192), fill=255, width=8 * drawn_px)
    bars = Handwriting(np.repeat(np.array(large.reduce(8))[None], 10, axis=0), np.arange(10))
    generator = np.random.default_rng(0)
    for pen_px in (3.0, 4.0, 5.0) if lean else (4.0, 5.0):  # upright strokes of the set do not become finer than 3.5 pixels
        widths = [
            (bars.write("1", Writer(34, pen_px=pen_px, unsteadiness=0), generator).ink[8:26] / 255).sum(axis=1) for _ in range(20)
        ]
        assert np.mean(widths) / np.hypot(1, lean) == pytest.approx(pen_px, rel=0.18)


def test_drawn_strokes_are_as_wide_as_the_pen(handwriting: Handwriting) -> None:
    generator = np.random.default_rng(0)
    for pen_px in (2.0, 3.0, 4.5):
        writer = Writer(34, pen_px=pen_px, unsteadiness=0, forms={"1": 0})
        widths = [(handwriting.write("1", writer, generator).ink[8:26] / 255).sum(axis=1).mean() for _ in range(20)]
        assert np.mean(widths) == pytest.approx(pen_px, rel=0.12)


def test_the_same_draws_write_the_same(handwriting: Handwriting) -> None:
    for character in ("5", "1", "$"):
        first, again = (handwriting.write(character, Writer(30), np.random.default_rng(9)).ink for _ in range(2))
        assert np.array_equal(first, again)


def test_writers_are_within_bounds_and_use_forms_that_there_are() -> None:
    generator = np.random.default_rng(0)
    writers = [draw_writer(generator) for _ in range(500)]
    assert min(writer.height_px for writer in writers) >= 16
    assert all(0 <= form < len(SHAPES[digit]) for writer in writers for digit, form in writer.forms.items())
    assert set("01245789") == {digit for writer in writers for digit in writer.forms}


@pytest.mark.parametrize("character", sorted(SHAPES))
def test_every_form_is_drawn_within_its_room_and_by_a_fine_pen_too(character: str) -> None:
    generator = np.random.default_rng(0)
    for shape in SHAPES[character]:
        for pen in (Pen(1.7, -0.3), Pen(5.0, 0.75)):
            ink, baseline = draw_shape(shape, 34, 1.0, pen, generator)
            pixels = np.asarray(ink)
            assert pixels.max() > 180
            assert pixels.shape[0] <= 34 * 1.6 + 2 * pen.width_px
            assert pixels.shape[1] <= 34 * 2 + 2 * pen.width_px
            assert baseline <= 34 * 1.3


def test_an_unknown_character_and_a_writer_without_a_pen_are_refused(handwriting: Handwriting) -> None:
    with pytest.raises(DataError, match="no strokes are known"):
        handwriting.write("ß", Writer(30), np.random.default_rng(0))
    with pytest.raises(DataError, match="a pen"):
        Writer(30, pen_px=0)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((20, 8, 8), np.arange(20) % 10, r"expected images uint8"),
        ((20, 28, 28), np.arange(19) % 10, r"as many labels"),
        ((20, 28, 28), np.arange(20) % 9, "each at least once"),
        ((22, 28, 28), np.arange(22) % 11, "expected labels 0 to 9"),
        ((0, 28, 28), np.arange(0), "each at least once"),
    ],
)
def test_other_images_and_labels_are_refused(shape: tuple[int, ...], labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Handwriting(np.full(shape, 255, np.uint8), labels)


def test_a_digit_without_ink_is_refused() -> None:
    images = np.zeros((10, 28, 28), np.uint8)
    images[:9, 5:20, 10:13] = 255
    with pytest.raises(DataError, match="images are all empty"):
        Handwriting(images, np.arange(10))


def test_thinning_keeps_a_line_of_one_pixel_and_the_loop_in_it() -> None:
    images = []
    for width in (1, 3, 5, 7):
        image = Image.new("1", (40, 40))
        draw = ImageDraw.Draw(image)
        draw.ellipse((5, 5, 34, 34), outline=1, width=width)
        images.append(np.array(image))
    lines = thin(np.stack([*images, np.zeros((40, 40), bool)]))
    assert lines.dtype == np.bool_
    assert not lines[4].any()
    for line, ink in zip(lines, images, strict=False):
        assert not (line & ~ink).any()
        assert 60 < line.sum() < 110  # around a circle of 22 to 30 pixels across
        assert not (line[:-1, :-1] & line[:-1, 1:] & line[1:, :-1] & line[1:, 1:]).any()
        row = line[20].nonzero()[0]  # crossed on both sides of the loop
        assert row[0] < 12
        assert row[-1] > 27
