"""Several looks at one field: as it is, wider, narrower, slanted both ways; they vote by their posteriors."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from PIL import Image

from convoy.training.check_reader.examples import Example
from convoy.training.check_reader.judging import Read, digits_of, read_all
from convoy.training.check_reader.reader import AmountReader

VIEWS: Final = ((1.0, 0.0), (1.12, 0.0), (0.9, 0.0), (1.0, 0.15), (1.0, -0.15))
"""Each look's width over the field's, and how far the tops of letters move to the right, in heights of the field."""

MANY_VIEWS: Final = tuple((width, slant) for width in (0.85, 0.92, 1.0, 1.12, 1.25) for slant in (-0.2, -0.1, 0.0, 0.1, 0.2))
"""The same, five times as many: what there is to gain by looking again."""


def read_views(reader: AmountReader, examples: Sequence[Example], views: Sequence[tuple[float, float]] = VIEWS) -> list[Read]:
    """Read each field in several views; an amount's share is its mean over them, and the largest is the answer.

    Args:
        reader: In evaluation mode.
        examples: The fields.
        views: Width and slant of each look.
    """
    looks = [read_all(reader, [_seen(example, *view) for example in examples]) for view in views]
    return [vote(reads) for reads in zip(*looks, strict=True)]


def vote(reads: Sequence[Read]) -> Read:
    """The amount whose strings have the largest posterior, whatever their separators, and its likeliest string."""
    shares: dict[str, float] = defaultdict(float)
    amounts: dict[str, float] = defaultdict(float)
    for read in reads:
        for text, log_posterior in zip(read.texts, read.log_posteriors, strict=True):
            shares[text] += math.exp(log_posterior) / len(reads)
            amounts[digits_of(text)] += math.exp(log_posterior) / len(reads)
    if not shares:
        return Read((), (), -math.inf, 0.0)
    ranked = sorted(shares, key=lambda text: (-amounts[digits_of(text)], -shares[text]))
    first = amounts[digits_of(ranked[0])]
    return Read(tuple(ranked), tuple(_log(shares[text]) for text in ranked), _log(first), first)


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf


def _seen(example: Example, width: float, slant: float) -> Example:
    if width == 1.0 and slant == 0.0:
        return example
    height, columns = example.pixels.shape
    target = max(1, round(columns * width))
    middle = (height - 1) / 2
    matrix = (columns / target, slant, -slant * middle, 0.0, 1.0, 0.0)
    margin = math.ceil(abs(slant) * middle)
    padded = Image.fromarray(np.pad(example.pixels, ((0, 0), (margin, margin)), mode="edge"))
    shifted = (*matrix[:2], matrix[2] + margin, *matrix[3:])
    seen = padded.transform((target, height), Image.Transform.AFFINE, shifted, Image.Resampling.BILINEAR)
    return replace(example, pixels=np.asarray(seen), spans=())
