"""A small untrained reader of digits, exported once for all tests: an export takes half a minute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from convoy.contract.bundle import Bundle
from convoy.contract.field import to_field
from convoy.contract.image import ImageSpec
from convoy.contract.reading import ReadingSpec
from convoy.export import FieldSet, ModelFacts, export_reader
from convoy.training.check_reader.grammar import load_grammar
from convoy.training.check_reader.reader import AmountReader
from convoy.training.check_reader.sliding import SlidingLeNet5

WIDTHS_PX = (64, 128)


@dataclass(frozen=True)
class ReaderCase:
    reader: AmountReader
    facts: ModelFacts
    evidence: FieldSet


def make_reader_case() -> ReaderCase:
    torch.manual_seed(0)
    grammar = load_grammar("digits")
    alphabet = "".join(grammar.alphabet)
    network = SlidingLeNet5(len(alphabet) + 1, channels=(3, 6, 24, 16), batch_norm=True)
    with torch.no_grad():
        network.output.weight.mul_(400)  # scores that lie apart, as trained ones do
        network.after_c1.running_mean.uniform_(-0.2, 0.2)
    reader = AmountReader(network, grammar, alphabet).eval()
    reader.confidence_scale.fill_(0.1)
    reader.confidence_shift.fill_(1.0)
    image = ImageSpec(height_px=32, width_px=WIDTHS_PX[-1], channels=1, resize="height", widths_px=WIDTHS_PX)
    reading = ReadingSpec(grammar="digits", n_best=3, max_characters=15)
    facts = ModelFacts("reader", tuple(alphabet), image, max_batch_size=8, reading=reading)
    rng = np.random.default_rng(0)
    fields = tuple(to_field(_drawn(rng), image) for _ in range(104))
    with torch.no_grad():  # no class wins everywhere
        pixels = torch.from_numpy(np.stack([field.pixels for field in fields if field.pixels.shape[1] == WIDTHS_PX[-1]]))
        scores, _ = reader.scores(pixels, torch.full((len(pixels),), WIDTHS_PX[-1]))
        network.output.bias.sub_(scores.mean((0, 1)))
    texts = tuple(str(rng.integers(1, 100)) if number % 2 else "" for number in range(len(fields)))
    return ReaderCase(reader, facts, FieldSet("strokes", fields, texts, digits=True))


def _drawn(rng: np.random.Generator) -> np.ndarray:
    """Dark strokes on paper, of some width."""
    width = int(rng.integers(20, WIDTHS_PX[-1]))
    field = rng.integers(200, 240, (32, width), dtype=np.uint8)
    for left in range(3, width - 6, int(rng.integers(8, 20))):
        field[6:26, left : left + int(rng.integers(1, 6))] = rng.integers(0, 80)
    return field


@pytest.fixture(scope="session")
def reader_case() -> ReaderCase:
    return make_reader_case()


@pytest.fixture(scope="session")
def reader_bundle(reader_case, tmp_path_factory) -> Bundle:
    return export_reader(reader_case.reader, reader_case.facts, reader_case.evidence, tmp_path_factory.mktemp("reader") / "export")
