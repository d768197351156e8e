"""Heads and tails of fields, joined: what they show is what their labels say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convoy.contract.errors import DataError
from convoy.training.check_reader.examples import Example, collate
from convoy.training.check_reader.grammar import Grammar, compile_grammar
from convoy.training.check_reader.judging import digits_of, read_all
from convoy.training.check_reader.reader import AmountReader
from convoy.training.check_reader.sliding import STRIDE, SlidingNetwork
from convoy.training.check_reader.splicing import Splicer, join, locate

PAPER = 200
RULES = 'silent "." "-"\ndigit = "0".."9"\namount = (digit{1,7} | digit{1,3} "." digit{3}) ["-"]'


class Levels(SlidingNetwork):
    """Reads a character by the grey level of its frame: ten times its class."""

    height_px = 32

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([float(PAPER), *(10.0 * place for place in range(1, n_classes))]))

    def forward(self, field: Tensor, width: Tensor) -> Tensor:
        frames = field[:, 0, 16, ::STRIDE]
        return -(frames.unsqueeze(-1) - self.levels).abs()


class AsItIs(nn.Module):
    """Pixels as they are: float (B, 1, H, W)."""

    def forward(self, image: Tensor, width: Tensor) -> Tensor:
        return image[..., 0].unsqueeze(1).float()


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return compile_grammar(RULES)


@pytest.fixture(scope="module")
def reader(grammar: Grammar) -> AmountReader:
    alphabet = "".join(grammar.alphabet)
    reader = AmountReader(Levels(len(alphabet) + 1), grammar, alphabet)
    reader.standardising = AsItIs()  # type: ignore[assignment]
    return reader.eval()


def field_of(text: str, reader: AmountReader, *, written: bool = False, paper: int = PAPER) -> Example:
    """A field whose characters are bars of three frames, two frames of paper around each."""
    columns = [paper] * 2 * STRIDE
    for character in text:
        columns += [10 * (1 + reader.lattice.alphabet.index(character))] * 3 * STRIDE + [paper] * 2 * STRIDE
    pixels = np.tile(np.array(columns, np.uint8), (32, 1))
    return Example(text, pixels, text if written else digits_of(text), latent=not written)


def splicer_of(reader: AmountReader, fields: list[Example]) -> Splicer:
    return Splicer(reader.lattice.grammar, locate(reader, fields))


def test_characters_are_found_with_their_separators_and_cuts_stand_before_digits(reader: AmountReader) -> None:
    found = locate(reader, [field_of("12.345-", reader), field_of("7", reader)])
    assert [field.text for field in found] == ["12.345-", "7"]
    step = 5 * STRIDE  # a character and what follows it
    assert {n: cut.place for n, cut in found[0].cuts.items()} == {4: 1, 3: 3, 2: 4, 1: 5}  # none between the 2 and the point
    for cut in found[0].cuts.values():
        assert abs(cut.column_px - (cut.place * step + STRIDE)) <= STRIDE
    assert found[1].cuts == {}


def test_a_spliced_field_shows_what_its_label_says(reader: AmountReader, grammar: Grammar) -> None:
    texts = ["12.345", "987654", "1.000-", "31", "7.008", "555-"]
    fields = [field_of(text, reader) for text in texts]
    splicer, generator = splicer_of(reader, fields), np.random.default_rng(0)
    spliced = [splicer.splice(number % len(fields), generator) for number in range(120)]
    assert len({field.label for field in spliced}) > 20
    for field, read in zip(spliced, read_all(reader, spliced), strict=True):
        assert grammar.accepts(read.text)
        assert digits_of(read.text) == field.label
        assert field.latent
    heads, tails = ({text[:2] for text in texts}, {text[-1] for text in texts})
    assert {read.text[:2] for read in read_all(reader, spliced)} <= heads | {"33"} | {a[0] + b for a in heads for b in "0123456789"}
    assert {read.text[-1] for read in read_all(reader, spliced)} <= tails


def test_separators_stay_where_the_grammar_has_them(reader: AmountReader) -> None:
    """A head of three digits and more before the tail 8.765 would be no amount: such a tail is never taken."""
    fields = [field_of("1234567", reader), field_of("98.765", reader)]
    splicer, generator = splicer_of(reader, fields), np.random.default_rng(1)
    read = {found.text for found in read_all(reader, [splicer.splice(0, generator) for _ in range(80)])}
    assert read == {"1234567", "123456" + "5", "12345" + "65", "1234" + "765"}


def test_what_is_written_out_stays_written_out(reader: AmountReader) -> None:
    fields = [field_of("12.345", reader, written=True), field_of("67.890-", reader, written=True)]
    splicer, generator = splicer_of(reader, fields), np.random.default_rng(2)
    for _ in range(20):
        field = splicer.splice(0, generator)
        assert not field.latent
        assert read_all(reader, [field])[0].text == field.label
    mixed = splicer_of(reader, [fields[0], field_of("67.890-", reader)])
    spliced = [mixed.splice(0, generator) for _ in range(20)]
    assert {field.latent for field in spliced} == {True, False}
    assert all(field.label.isdigit() for field in spliced if field.latent)


def test_a_field_that_cannot_be_cut_is_left_as_it_is(reader: AmountReader) -> None:
    fields = [field_of("7", reader), field_of("12", reader)]
    splicer, generator = splicer_of(reader, fields), np.random.default_rng(3)
    assert splicer.splice(0, generator) is fields[0]
    narrow = Example("narrow", np.full((32, 4), PAPER, np.uint8), "123", latent=True)  # a frame, three digits: no path
    assert splicer_of(reader, [narrow, fields[1]]).splice(0, generator) is narrow


def test_the_paper_of_the_tail_is_that_of_the_head(reader: AmountReader) -> None:
    head, tail = field_of("12", reader), field_of("34", reader, paper=150)
    joined = join(head, 28, tail, 28)
    assert joined.shape == (32, head.pixels.shape[1])
    assert np.array_equal(joined[:, :28], head.pixels[:, :28])
    assert joined[0, -1] == PAPER
    assert joined[0, 32] == tail.pixels[0, 32] + 50


def test_the_reader_is_left_in_the_mode_that_it_was_in(reader: AmountReader) -> None:
    reader.train()
    locate(reader, [field_of("12", reader)])
    assert reader.training
    reader.eval()
    locate(reader, [field_of("12", reader)])
    assert not reader.training


def test_a_label_that_is_no_amount_is_refused(reader: AmountReader) -> None:
    with pytest.raises(DataError, match="has no such amount"):
        splicer_of(reader, [Example("long", np.full((32, 480), PAPER, np.uint8), "12345678", latent=True)])


def test_what_was_found_can_be_kept(reader: AmountReader) -> None:
    fields = [field_of("12.345", reader), field_of("31-", reader), field_of("7", reader)]
    splicer = splicer_of(reader, fields)
    kept = json.loads(json.dumps(splicer.to_list()))
    again = Splicer.from_list(reader.lattice.grammar, fields, kept)
    for seed in range(10):
        one, other = (s.splice(seed % 2, np.random.default_rng(seed)) for s in (splicer, again))
        assert one.label == other.label
        assert np.array_equal(one.pixels, other.pixels)


def test_spliced_fields_go_into_batches(reader: AmountReader) -> None:
    fields = [field_of("12.345", reader), field_of("31", reader)]
    splicer, generator = splicer_of(reader, fields), np.random.default_rng(4)
    batch = collate([splicer.splice(number % 2, generator) for number in range(8)])
    assert batch.image.shape[:2] == (8, 32)
