from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from convoy.training.check_reader.building import alphabet_of, build_reader
from convoy.training.check_reader.examples import Example, collate, field_spec, in_order, shuffled
from convoy.training.check_reader.grammar import load_grammar
from convoy.training.check_reader.judging import (
    digits_of,
    fit_confidence,
    is_right,
    read_all,
    wilson,
)
from convoy.training.check_reader.reader import AmountReader, log_odds
from convoy.training.check_reader.views import read_views
from convoy.training.recipes.reader import get_reader_recipe


@pytest.fixture(scope="module")
def reader() -> AmountReader:
    torch.manual_seed(0)
    return build_reader(get_reader_recipe("check-reader-lenet5")).eval()


def examples(n: int, seed: int = 0) -> list[Example]:
    generator = np.random.default_rng(seed)
    return [
        Example(str(i), generator.integers(0, 256, (32, int(generator.integers(9, 120))), np.uint8), "123", latent=True)
        for i in range(n)
    ]


def test_digits_come_first_in_the_alphabet() -> None:
    assert alphabet_of(load_grammar("us")).startswith("0123456789")
    assert sorted(alphabet_of(load_grammar("us"))) == sorted(load_grammar("us").alphabet)


def test_a_batch_is_read_as_the_contract_says(reader: AmountReader) -> None:
    batch = collate(examples(5))
    with torch.no_grad():
        amounts = reader(batch.image, batch.width.unsqueeze(1))
    n, length = 3, reader.lattice.max_length
    assert amounts.characters.shape == (5, n, length)
    assert amounts.positions.shape == (5, n, length, 2)
    assert amounts.posteriors.shape == (5, n)
    assert amounts.confidence.shape == (5, 1)
    for row, width in enumerate(batch.width.tolist()):
        for at in range(n):
            count = int(amounts.n_characters[row, at])
            text = "".join(reader.lattice.alphabet[place] for place in amounts.characters[row, at, :count].tolist())
            assert reader.lattice.grammar.accepts(text)
            spans = amounts.positions[row, at, :count]
            assert (spans[:, 0] < spans[:, 1]).all()
            assert (spans >= 0).all()
            assert (spans <= width).all()
            assert (amounts.characters[row, at, count:] == -1).all()
            assert (amounts.positions[row, at, count:] == -1).all()
    assert ((amounts.posteriors >= 0) & (amounts.posteriors <= 1)).all()
    assert (amounts.confidence >= amounts.posteriors[:, :1] - 1e-4).all()  # not calibrated yet: those that differ in signs beside
    assert (amounts.confidence <= amounts.posteriors.sum(1, keepdim=True) + 1e-4).all()


def test_reading_many_at_once_is_reading_one_by_one(reader: AmountReader) -> None:
    some = examples(9)
    together = read_all(reader, some, batch_size=4)
    alone = [read_all(reader, [one])[0] for one in some]
    assert [read.texts for read in together] == [read.texts for read in alone]
    assert np.allclose([read.confidence for read in together], [read.confidence for read in alone], atol=1e-5)


def test_a_width_that_no_field_has_is_taken_for_the_nearest(reader: AmountReader) -> None:
    batch = collate(examples(1))
    columns = batch.image.shape[2]
    with torch.no_grad():
        wide, full = (reader(batch.image, torch.tensor([[width]])) for width in (10_000, columns))
        none, one = (reader(batch.image, torch.tensor([[width]])) for width in (-5, 1))
    assert torch.equal(wide.characters, full.characters)
    assert torch.equal(none.characters, one.characters)


def test_the_confidence_rises_with_the_posterior_and_is_calibrated_by_two_numbers(reader: AmountReader) -> None:
    batch = collate(examples(6, 1))
    with torch.no_grad():
        before = reader(batch.image, batch.width.unsqueeze(1))
        reader.confidence_scale.fill_(0.5)
        reader.confidence_shift.fill_(-1.0)
        after = reader(batch.image, batch.width.unsqueeze(1))
        reader.confidence_scale.fill_(1.0)
        reader.confidence_shift.fill_(0.0)
    odds = torch.logit(before.confidence[:, 0])
    assert torch.allclose(after.confidence[:, 0], (0.5 * odds - 1).sigmoid(), atol=1e-4)
    assert torch.equal(before.posteriors, after.posteriors)


def test_views_vote(reader: AmountReader) -> None:
    some = examples(4, 2)
    plain = read_all(reader, some)
    for read, one in zip(read_views(reader, some, [(1.0, 0.0)]), plain, strict=True):
        assert set(read.texts) == set(one.texts)
        assert read.log_share >= one.log_share - 1e-9  # the amount with the most, where the best path's may have less
    for read in read_views(reader, some):
        amounts: dict[str, float] = {}
        for text, log_posterior in zip(read.texts, read.log_posteriors, strict=True):
            amounts[digits_of(text)] = amounts.get(digits_of(text), 0.0) + math.exp(log_posterior)
        assert digits_of(read.text) == max(amounts, key=lambda amount: amounts[amount])
        assert read.confidence == pytest.approx(max(amounts.values()))
        assert sum(amounts.values()) <= 1 + 1e-6


def test_amounts_that_differ_in_signs_and_separators_alone_are_one(reader: AmountReader) -> None:
    some = examples(40, 5)
    for read in read_all(reader, some):
        same = [
            math.exp(p) for text, p in zip(read.texts, read.log_posteriors, strict=True) if digits_of(text) == digits_of(read.text)
        ]
        assert math.exp(read.log_share) == pytest.approx(sum(same), rel=1e-4)


def test_widths_grow_by_less_than_half_and_are_multiples_of_the_stride() -> None:
    for height in (32, 48, 50):
        spec = field_spec(height)
        assert all(width % 4 == 0 for width in spec.widths_px)
        assert all(b <= 1.52 * a for a, b in zip(spec.widths_px, spec.widths_px[1:], strict=False))
        assert spec.widths_px[-1] >= 24 * height


def test_every_field_is_in_one_batch() -> None:
    some = examples(70)
    for batches in (
        [batch for _, batch in in_order(some, 8)],
        list(shuffled(some, 8, np.random.default_rng(0))),
    ):
        assert sorted(example.name for batch in batches for example in batch.examples) == sorted(one.name for one in some)
        for batch in batches:
            for row, width, example in zip(batch.image, batch.width.tolist(), batch.examples, strict=True):
                assert np.array_equal(row[:, :width, 0].numpy(), example.pixels)
                assert not row[:, width:].any()


def test_an_answer_is_right_where_all_digits_are() -> None:
    label = Example("a", np.zeros((32, 32), np.uint8), "1.234.-", latent=False)
    assert is_right("$1234", label)
    assert not is_right("123", label)
    assert digits_of("$ 1.234,50") == "123450"


def test_decimals_count_where_the_label_has_them() -> None:
    label = Example("a", np.zeros((32, 32), np.uint8), "1.234,50 €", latent=False)
    assert is_right("1 234,50F", label, ",")
    assert not is_right("12.345,0", label, ",")
    digits = Example("b", np.zeros((32, 32), np.uint8), "123450", latent=True)
    assert is_right("1.234,50", digits, ",")  # which the label cannot tell


def test_the_calibrated_confidence_is_as_often_right_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(2, 2, 4000)  # true log-odds
    right = generator.random(4000) < 1 / (1 + np.exp(-truth))
    overconfident = 3 * truth + 1
    log_posteriors = -np.log1p(np.exp(-overconfident))
    scale, shift = fit_confidence(log_posteriors.tolist(), right.tolist())
    assert abs(scale - 1 / 3) < 0.05
    assert abs(shift + 1 / 3) < 0.15


def test_a_set_without_an_error_gives_no_certainty() -> None:
    scale, shift = fit_confidence([-1e-4] * 50, [True] * 50)
    chance = 1 / (1 + math.exp(-(scale * float(log_odds(torch.tensor(-1e-4))) + shift)))
    assert 0.9 < chance < 0.995


def test_the_interval_is_wilsons() -> None:
    share, low, high = wilson(81, 263)  # a published example: 0.308 (0.255 to 0.366)
    assert (round(share, 3), round(low, 3), round(high, 3)) == (0.308, 0.255, 0.366)
    assert wilson(0, 0)[1:] == (0.0, 1.0)
