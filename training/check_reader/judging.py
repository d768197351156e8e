"""How well a reader reads: whole amounts, and what is left of errors when doubtful ones go to a person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from convoy.contract.reading import value_of
from convoy.training.check_reader.examples import Example, in_order
from convoy.training.check_reader.reader import AmountReader, log_odds

_Z95: Final = 1.959964


@dataclass(frozen=True)
class Read:
    """What a reader says of one field.

    Attributes:
        texts: The n best amounts, the first is the answer.
        log_posteriors: Theirs.
        log_share: The log of the posteriors of all those among them that are the first amount, whatever their separators.
        confidence: Calibrated, of the first.
    """

    texts: tuple[str, ...]
    log_posteriors: tuple[float, ...]
    log_share: float
    confidence: float

    @property
    def text(self) -> str:
        """The answer; empty where there is none."""
        return self.texts[0] if self.texts else ""


def digits_of(text: str) -> str:
    """The digits of an amount."""
    return "".join(character for character in text if character.isdigit())


def is_right(read: str, example: Example, decimal: str = "") -> bool:
    """Whether an answer is the whole amount.

    Args:
        read: The answer.
        example: The field; a label of digits alone says nothing of decimals.
        decimal: The character before the decimals; empty where amounts are whole.
    """
    if example.latent or not decimal:
        return digits_of(read) == digits_of(example.label)
    return value_of(read, decimal) == value_of(example.label, decimal)


def acceptably(reads: Sequence[Read], right: Sequence[bool]) -> list[bool]:
    """Whether to accept each answer would be right: where no amount is read, and rightly so, there is none to accept.

    Else many such fields, whose confidence is 0, would make up for wrong amounts at a threshold of 0.
    """
    return [good and bool(read.text) for read, good in zip(reads, right, strict=True)]


@torch.no_grad()
def read_all(reader: AmountReader, examples: Sequence[Example], batch_size: int = 64) -> list[Read]:
    """Read fields with a reader in evaluation mode; the answers are in the order of the fields."""
    found: dict[int, Read] = {}
    lattice, n_best = reader.lattice, reader.decoder.n_best
    for places, batch in in_order(examples, batch_size):
        scores, lengths = reader.scores(batch.image.to(reader.device), batch.width.to(reader.device))
        reading = lattice.n_best(scores, lengths, n_best)
        shares = reader.log_share(reading.characters, reading.log_posteriors)
        sure = reader.confidence(shares, reading.n_characters[:, 0]).tolist()
        for place, texts, posteriors, share, confidence in zip(
            places, lattice.texts(reading), reading.log_posteriors.tolist(), shares.tolist(), sure, strict=True
        ):
            found[place] = Read(tuple(texts), tuple(posteriors[: len(texts)]), share, confidence)
    return [found[place] for place in range(len(examples))]


class Interval(NamedTuple):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(n_right: int, n: int) -> Interval:
    """A share and its 95 % interval (Wilson 1927): for independent fields. Neighbours share writers, so it is a little narrow."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    share = n_right / n
    middle = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n * n)) / (1 + _Z95**2 / n)
    low, high = max(0.0, middle - half) if n_right else 0.0, min(1.0, middle + half) if n_right < n else 1.0
    return Interval(share, low, high)


def fit_confidence(log_shares: Sequence[float], right: Sequence[bool]) -> tuple[float, float]:
    """Platt's scaling of the log-odds of the posteriors: (a, b) such that sigmoid(a x + b) is the probability of being right.

    Fitted by Newton's method on targets (n_right + 1) / (n_right + 2) and 1 / (n_wrong + 2) in place of 1 and 0 (Platt 1999), so
    that a set without a single error gives no certainty. The slope is kept at 0.05 or more: a larger posterior never lowers the
    confidence.
    """
    x = log_odds(torch.tensor(log_shares, dtype=torch.float64))
    truth = torch.tensor(right, dtype=torch.bool)
    n_right = int(truth.sum())
    target = torch.where(truth, (n_right + 1) / (n_right + 2), 1 / (len(right) - n_right + 2)).to(torch.float64)
    features = torch.stack([x, torch.ones_like(x)], 1)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return (
            torch.nn.functional.binary_cross_entropy_with_logits(features @ at, target, reduction="sum") + 1e-3 * at.square().sum()
        )

    for _ in range(100):
        chance = (features @ weights).sigmoid()
        gradient = features.T @ (chance - target) + 2e-3 * weights
        curvature = (features * (chance * (1 - chance)).unsqueeze(1)).T @ features + 2e-3 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curvature, gradient)
        size = 1.0
        while loss(weights - size * step) > loss(weights) and size > 1e-6:
            size /= 2
        weights = weights - size * step
        if float(step.abs().max()) < 1e-9:
            break
    return max(float(weights[0]), 0.05), float(weights[1])
