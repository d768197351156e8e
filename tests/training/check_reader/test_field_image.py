from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import DataError
from convoy.training.check_reader.amounts import Amount, amount_styles
from convoy.training.check_reader.field_image import SyntheticField, SyntheticFields, draw_field
from convoy.training.check_reader.fields import Field
from convoy.training.check_reader.grammar import load_grammar
from convoy.training.check_reader.handwriting import Handwriting, Writer
from convoy.training.check_reader.paper import draw_paper
from convoy.training.check_reader.preview import draw_sheet
from convoy.training.data.digits import load_digits


@pytest.fixture(scope="module")
def handwriting() -> Handwriting:
    train = load_digits().train
    return Handwriting(train.images[:], train.labels)


def equal(first: SyntheticField, second: SyntheticField) -> bool:
    return first.text == second.text and first.spans == second.spans and np.array_equal(first.image, second.image)


def test_a_field_is_a_function_of_seed_and_index_whatever_was_drawn_before(handwriting: Handwriting) -> None:
    forward = [SyntheticFields(handwriting, seed=3).draw(i) for i in range(8)]
    again = SyntheticFields(handwriting, seed=3)
    backward = [again.draw(i) for i in reversed(range(8))][::-1]
    assert all(map(equal, forward, backward))
    assert not any(map(equal, forward, forward[1:]))
    other = SyntheticFields(handwriting, seed=4)
    assert not any(equal(other.draw(i), forward[i]) for i in range(8))


@pytest.mark.parametrize("style", amount_styles())
def test_fields_hold_what_the_grammar_accepts_with_a_span_for_each_character(handwriting: Handwriting, style: str) -> None:
    grammar, fields = load_grammar(style), SyntheticFields(handwriting, style, seed=1)
    for index in range(60):
        field = fields.draw(index)
        assert grammar.accepts(field.text)
        assert field.digits == "".join(c for c in field.text if c.isdigit())
        assert field.image.dtype == np.uint8
        height, width = field.image.shape
        assert 32 <= height <= 160
        assert len(field.spans) == len(field.text)
        assert all(0 <= start < stop <= width for start, stop in field.spans)
        middles = [start + stop for start, stop in field.spans]
        assert middles == sorted(middles)


def test_characters_are_where_their_spans_say(handwriting: Handwriting) -> None:
    fields = SyntheticFields(handwriting, seed=2)
    inside, outside = [], []
    for index in range(60):
        field = fields.draw(index)
        dark = field.image < np.median(field.image) - 45
        taken = np.zeros(field.image.shape[1], bool)
        for (start, stop), character in zip(field.spans, field.text, strict=True):
            if character.isdigit():
                inside.append(dark[:, start:stop].mean())
            taken[max(start - 2, 0) : stop + 2] = True
        if not taken.all():
            outside.append(dark[:, ~taken].mean())
    assert np.mean(inside) > 4 * np.mean(outside)
    assert np.mean(np.array(inside) > 0.03) > 0.97


def test_fields_look_like_checks_in_numbers(handwriting: Handwriting) -> None:
    """Heights, tones and contrast of ORAND-CAR-A: medians of 54 and 160 pixels, 177, and 105 levels."""
    fields = [SyntheticFields(handwriting).draw(i) for i in range(200)]
    tones = [np.median(field.image) for field in fields]
    assert 46 <= np.median([field.image.shape[0] for field in fields]) <= 62
    assert 120 <= np.median([field.image.shape[1] for field in fields]) <= 190
    assert 160 <= np.median(tones) <= 190
    contrasts = [tone - np.percentile(field.image, 2) for tone, field in zip(tones, fields, strict=True)]
    assert 90 <= np.median(contrasts) <= 120


def test_digits_of_a_field_touch_or_stand_apart(handwriting: Handwriting) -> None:
    gaps = []
    for index in range(100):
        field = SyntheticFields(handwriting, "digits").draw(index)
        gaps += [after[0] - before[1] for before, after in zip(field.spans, field.spans[1:], strict=False)]
    assert 0.2 < np.mean(np.array(gaps) <= 0) < 0.75
    assert np.percentile(gaps, 95) > 7
    assert min(gaps) < -5


def test_a_given_writer_writes_a_given_amount(handwriting: Handwriting) -> None:
    small, large = (
        draw_field(Amount("1.234 -"), handwriting, np.random.default_rng(0), Writer(height, pen_px=2.5)) for height in (20, 45)
    )
    assert (small.text, small.digits) == ("1.234 -", "1234")
    assert large.image.shape[1] > 1.5 * small.image.shape[1]


@pytest.mark.parametrize("text", [" 5", "5 ", "7  7", "/ /", "-", "1" * 40, "...", "12/100", "x/100"])
def test_odd_amounts_have_spans_within_the_image(handwriting: Handwriting, text: str) -> None:
    for seed in range(5):
        field = draw_field(Amount(text), handwriting, np.random.default_rng(seed))
        assert len(field.spans) == len(text)
        assert all(0 <= start < stop <= field.image.shape[1] for start, stop in field.spans)
        middles = [start + stop for start, stop in field.spans]
        assert middles == sorted(middles)


@pytest.mark.parametrize("text", ["", "  ", "12é"])
def test_what_cannot_be_written_is_refused(handwriting: Handwriting, text: str) -> None:
    with pytest.raises(DataError, match="expected"):
        draw_field(Amount(text), handwriting, np.random.default_rng(0))


def test_a_negative_index_or_seed_and_an_unknown_style_are_refused(handwriting: Handwriting) -> None:
    with pytest.raises(DataError, match="of 0 or more"):
        SyntheticFields(handwriting).draw(-1)
    with pytest.raises(DataError, match="of 0 or more"):
        SyntheticFields(handwriting, seed=-1).draw(0)
    with pytest.raises(DataError, match="dutch"):
        SyntheticFields(handwriting, "dutch").draw(0)


def test_paper_has_any_size_and_is_light() -> None:
    for seed in range(40):
        paper = draw_paper(*((1, 1), (50, 160), (60, 900))[seed % 3], np.random.default_rng(seed))
        assert paper.dtype == np.float32
        assert np.isfinite(paper).all()
        if paper.size > 1:
            assert 110 < np.median(paper) < 250


def test_some_paper_has_a_strip_of_another_tone_along_an_edge() -> None:
    steps = []
    for seed in range(200):
        rows = draw_paper(50, 160, np.random.default_rng(seed)).mean(axis=1)
        smooth = np.convolve(rows, np.ones(4) / 4, "valid")
        steps.append(float(np.abs(smooth[4:] - smooth[:-4]).max()))
    plain, stepped = sum(step < 15 for step in steps), sum(step > 30 for step in steps)
    assert plain > 100
    assert 4 <= stepped <= 40


def test_the_sheet_shows_both_kinds_and_is_a_png(handwriting: Handwriting, tmp_path: Path) -> None:
    synthetic = [SyntheticFields(handwriting, "french").draw(i) for i in range(5)]
    real = [Field("a", np.full((50, 400), 180, np.uint8), "12")]
    sheet = draw_sheet(synthetic, real, columns=2, zoom=2, spans=True)
    sheet.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG"
        assert image.size == (4 * 464, 3 * 160)
    assert draw_sheet(synthetic).size == (3 * 232, 2 * 86)
    with pytest.raises(DataError, match="expected fields"):
        draw_sheet([])
