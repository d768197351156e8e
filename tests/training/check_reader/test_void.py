"""Fields that hold no amount: how they look, how often they come, and what a reader's answer to one is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convoy.contract.reject import choose_threshold
from convoy.training.check_reader import void
from convoy.training.check_reader.building import build_reader, draw_synthetic, load_handwriting
from convoy.training.check_reader.examples import Example
from convoy.training.check_reader.field_image import SyntheticFields
from convoy.training.check_reader.grammar import compile_grammar, load_grammar
from convoy.training.check_reader.handwriting import Handwriting
from convoy.training.check_reader.judging import Read, acceptably, fit_confidence, is_right, read_all
from convoy.training.check_reader.sliding import SlidingNetwork
from convoy.training.check_reader.void import draw_void
from convoy.training.recipes.reader import get_reader_recipe


@pytest.fixture(scope="module")
def handwriting() -> Handwriting:
    return load_handwriting("digits")


def test_voids_are_of_many_kinds_from_bare_paper_to_pictures(handwriting: Handwriting) -> None:
    covers = []
    for seed in range(200):
        ink = draw_void(handwriting, np.random.default_rng(seed))
        assert ink.dtype == np.uint8
        assert 30 <= ink.shape[0] <= 90
        assert 30 <= ink.shape[1] <= 360
        assert np.array_equal(ink, draw_void(handwriting, np.random.default_rng(seed)))
        covers.append(np.count_nonzero(ink) / ink.size)
    assert 10 <= sum(cover == 0 for cover in covers) <= 60
    assert sum(0 < cover < 0.2 for cover in covers) > 100
    assert sum(cover > 0.9 for cover in covers) > 8


def test_no_stroke_of_a_form_stands_free_as_a_one_does(handwriting: Handwriting) -> None:
    for seed in range(60):
        ink = np.zeros((60, 200), np.uint8)
        void._lines(ink, handwriting, np.random.default_rng(seed))
        tall = (ink > 0).sum(axis=0) > 0.25 * len(ink)
        at_an_edge = np.convolve((ink[0] > 0) | (ink[-1] > 0), np.ones(11), "same") > 0  # they lean a little
        assert at_an_edge[tall].all()


def test_some_fields_are_void_and_the_others_what_they_would_be(handwriting: Handwriting) -> None:
    fields = SyntheticFields(handwriting, "chilean", 3, load_grammar("chilean"), void_share=0.25)
    some = [fields.draw(index) for index in range(300)]
    voids = [field for field in some if not field.text]
    assert 50 <= len(voids) <= 100
    assert all(field.digits == "" and field.spans == () for field in voids)
    assert all(any(c.isdigit() for c in field.text) for field in some if field.text)
    assert np.array_equal(fields.draw(7).image, some[7].image)


def test_a_recipe_draws_voids_where_its_grammar_has_the_empty_amount(handwriting: Handwriting) -> None:
    recipe = get_reader_recipe("check-reader-lenet5", ["void_share=0.5", "style=digits", "grammar=digits"])
    assert {field.label == "" for field in draw_synthetic(recipe, handwriting, 30, 0)} == {True, False}
    strict = compile_grammar('digit = "0".."9"\namount = digit{1,9}')
    assert all(field.label for field in draw_synthetic(recipe, handwriting, 30, 0, grammar=strict))
    none = recipe.model_copy(update={"void_share": 0.0})
    assert all(field.label for field in draw_synthetic(none, handwriting, 30, 0))


class _SeesNothing(SlidingNetwork):
    """Is sure that there is nothing in any frame."""

    height_px = 32

    def forward(self, field: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        scores = torch.full((len(field), -(-field.shape[3] // 4), 11), -9.0)
        scores[..., 0] = 9.0
        return scores


def test_no_amount_is_a_right_answer_that_nobody_accepts() -> None:
    recipe = get_reader_recipe("check-reader-lenet5", ["style=digits", "grammar=digits"])
    reader = build_reader(recipe).eval()
    reader.network = _SeesNothing()
    example = Example("void", np.full((32, 60), 200, np.uint8), "", latent=False)
    (read,) = read_all(reader, [example])
    assert read.text == ""
    assert read.log_posteriors[0] == pytest.approx(0, abs=1e-3)
    assert read.confidence == 0
    assert is_right(read.text, example)
    amounts = reader(torch.full((1, 32, 60, 1), 200, dtype=torch.uint8), torch.tensor([[60]]))
    assert amounts.n_characters[0, 0] == 0
    assert amounts.confidence.item() == 0
    assert amounts.posteriors[0, 0] > 0.99


def test_fields_without_an_amount_make_up_for_no_wrong_amount() -> None:
    amounts = [Read(("12",), (-0.1,), -0.1, 0.9)] * 100
    nothing = [Read(("",), (0.0,), 0.0, 0.0)] * 150
    right = [True] * 98 + [False] * 2 + [True] * 150
    reads = [*amounts, *nothing]
    sure = [read.confidence for read in reads]
    assert choose_threshold(sure, right, 0.01) is not None  # two wrong among 250
    assert choose_threshold(sure, acceptably(reads, right), 0.01) is None
    point = choose_threshold(sure, acceptably(reads, right), 0.02)
    assert point is not None
    assert (point.threshold, point.coverage) == (0.9, 0.4)


def test_a_reader_that_reads_nothing_anywhere_is_calibrated_all_the_same() -> None:
    scale, shift = fit_confidence([], [])
    assert scale > 0
    assert np.isfinite(shift)
