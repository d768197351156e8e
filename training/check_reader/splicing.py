"""New fields out of real ones: the head of one, the tail of another, cut before a digit.

Some hundreds of real fields show few pairs of neighbours and few amounts; spliced, they show thousands, in the same hands and
on the same paper. Where the characters stand is found by the reader itself, as the best path of the right amount. Head and tail
are cut with the same number of digits behind the cut, and only where the grammar has the string that comes out: separators stay
in places where people write them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from convoy.training.check_reader.examples import MAX_ASPECT, Example, in_order
from convoy.training.check_reader.grammar import Grammar
from convoy.training.check_reader.machine import compose
from convoy.training.check_reader.reader import AmountReader
from convoy.training.check_reader.search import search
from convoy.training.check_reader.sliding import STRIDE

_TRIES: Final = 8
_PAPER_PERCENT: Final = 75  # most pixels of a field are paper: this percentile of the levels is


@dataclass(frozen=True)
class Cut:
    """Where a field may be cut.

    Attributes:
        place: Of the digit behind the cut, in the text.
        column_px: Between that digit and what stands before it.
    """

    place: int
    column_px: int


@dataclass(frozen=True, eq=False)
class Located:
    """A field whose characters have been found.

    Attributes:
        example: The field.
        text: Its amount, with the separators that the reader found.
        cuts: By the number of digits behind the cut.
    """

    example: Example
    text: str
    cuts: dict[int, Cut]


class Splicer:
    """Splices fields whose characters have been found.

    Args:
        grammar: Which amounts there are.
        fields: See ``locate``.
    """

    def __init__(self, grammar: Grammar, fields: Sequence[Located]) -> None:
        self._grammar, self._fields = grammar, fields

    def to_list(self) -> list[list[Any]]:
        """What was found in each field, as numbers, strings and lists: see ``from_list``."""
        return [[field.text, [[n, cut.place, cut.column_px] for n, cut in field.cuts.items()]] for field in self._fields]

    @classmethod
    def from_list(cls, grammar: Grammar, examples: Sequence[Example], found: Sequence[Sequence[Any]]) -> Splicer:
        """The splicer whose ``to_list`` gave ``found`` in the same fields."""
        return cls(
            grammar,
            [
                Located(example, text, {n: Cut(place, column_px) for n, place, column_px in cuts})
                for example, (text, cuts) in zip(examples, found, strict=True)
            ],
        )

    def splice(self, place: int, generator: np.random.Generator) -> Example:
        """A field with the tail of another, drawn at random; the field itself where eight draws gave no amount of the grammar."""
        head = self._fields[place]
        for _ in range(_TRIES):
            tail = self._fields[int(generator.integers(len(self._fields)))]
            common = sorted(head.cuts.keys() & tail.cuts.keys())
            if not common:
                continue
            n_behind = common[int(generator.integers(len(common)))]
            cut, other = head.cuts[n_behind], tail.cuts[n_behind]
            text = head.text[: cut.place] + tail.text[other.place :]
            joined = join(head.example, cut.column_px, tail.example, other.column_px)
            if self._grammar.accepts(text) and joined.shape[1] <= MAX_ASPECT * joined.shape[0]:
                latent = head.example.latent or tail.example.latent
                label = "".join(character for character in text if character not in self._grammar.silent) if latent else text
                name = f"{head.example.name} with the end of {tail.example.name}"
                return replace(head.example, name=name, pixels=joined, label=label, latent=latent, spans=())
        return head.example


def locate(reader: AmountReader, examples: Sequence[Example]) -> list[Located]:
    """Find the characters of known amounts, as the best path of each field's own amount has them.

    Args:
        reader: One that reads such fields at least a little.
        examples: The fields.

    Raises:
        DataError: The grammar has no such amount as a label.
    """
    training, lattice = reader.training, reader.lattice
    reader.eval()
    found: dict[int, Located] = {}
    with torch.no_grad():
        for places, batch in in_order(examples, 32):
            scores, lengths = reader.scores(batch.image.to(reader.device), batch.width.to(reader.device))
            for place, row, n_frames in zip(places, scores, lengths.tolist(), strict=True):
                example = examples[place]
                automaton = lattice.grammar.spelled(example.label, latent=example.latent)
                machine = compose(automaton, lattice.alphabet).to(row)
                reading = search(
                    machine, row[None, :n_frames], torch.tensor([n_frames], device=row.device), n_best=1, limit=n_frames
                )
                text = lattice.texts(reading)[0]
                spans = (reading.positions[0, 0, : len(text[0])] * STRIDE).tolist() if text else []
                found[place] = Located(example, text[0] if text else "", _cuts(text[0], spans) if text else {})
    reader.train(training)
    return [found[place] for place in range(len(examples))]


def _cuts(text: str, spans: Sequence[Sequence[int]]) -> dict[int, Cut]:
    digits = [place for place, character in enumerate(text) if character.isdecimal()]
    return {
        len(digits) - number: Cut(place, (spans[place - 1][1] + spans[place][0]) // 2)
        for number, place in enumerate(digits)
        if number
    }


def join(head: Example, head_px: int, tail: Example, tail_px: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """The columns of one field before a cut and those of another behind one, on paper of one level: uint8 (height, width)."""
    left, right = head.pixels[:, :head_px], tail.pixels[:, tail_px:]
    papers = [float(np.percentile(example.pixels, _PAPER_PERCENT)) for example in (head, tail)]
    levelled = (right.astype(np.float32) + (papers[0] - papers[1])).round().clip(0, 255).astype(np.uint8)
    return np.concatenate([left, levelled], axis=1)
