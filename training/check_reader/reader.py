"""The check reader: pixels of amount fields in, amounts and their confidence out, as one module that exports as one graph."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from convoy.training.check_reader.decoder import Decoder
from convoy.training.check_reader.grammar import Grammar
from convoy.training.check_reader.lattice import Lattice
from convoy.training.check_reader.sliding import STRIDE, SlidingNetwork
from convoy.training.check_reader.standardising import FieldStandardising, frames_within

_LEAST_DOUBT: Final = 1e-5
"""The least posterior of all other amounts together that float32 sums over some dozens of frames can tell from none."""


class Amounts(NamedTuple):
    """What the reader answers: the border that ``convoy.contract.reading`` describes.

    Attributes:
        characters: int64 (B, n, L), places in the alphabet, -1 behind the last.
        n_characters: int64 (B, n).
        positions: int64 (B, n, L, 2), columns of the image: the first of each character, and the one behind its last.
        posteriors: float (B, n), 0 where there is no such amount.
        confidence: float (B, 1), the calibrated probability that the first amount is right.
    """

    characters: Tensor
    n_characters: Tensor
    positions: Tensor
    posteriors: Tensor
    confidence: Tensor


class AmountReader(nn.Module):
    """Standardising, a swept network, the lattice of its scores with a grammar, the n best amounts, and a calibrated confidence.

    Amounts that differ in signs and separators alone are one and the same to whoever pays. The confidence is sigmoid(a x + b) of x,
    the log-odds of the posteriors of all those among the n best that are the first one so; a and b are buffers, 1 and 0 until they
    are fitted to fields that were held back.

    Args:
        network: The swept network, with an output for the blank and one for each character.
        grammar: Which amounts there are.
        alphabet: The characters in the order of the network's classes behind the blank.
        n_best: How many amounts for each field.
        decimal: The character before the decimals; empty where amounts are whole.

    Raises:
        DataError: The grammar has a character that the alphabet lacks.
        UsageError: The grammar has amounts of any length, or ``n_best`` is below 1.
    """

    confidence_scale: Tensor
    confidence_shift: Tensor
    counts: Tensor

    def __init__(self, network: SlidingNetwork, grammar: Grammar, alphabet: str, *, n_best: int = 3, decimal: str = "") -> None:
        super().__init__()
        self.standardising = FieldStandardising()
        self.network = network
        self.decoder = Decoder(Lattice(grammar, alphabet), n_best)
        self.register_buffer("confidence_scale", torch.ones(()))
        self.register_buffer("confidence_shift", torch.zeros(()))
        counts = [character.isdecimal() or character == decimal for character in alphabet]
        self.register_buffer("counts", torch.tensor([*counts, False]), persistent=False)  # the last: no character, -1

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.confidence_scale.device

    @property
    def lattice(self) -> Lattice:
        """The grammar's lattice."""
        return self.decoder.lattice

    def scores(self, image: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """What the network gives each frame.

        Args:
            image: uint8 (B, H, W, 1).
            width: int64 (B,), columns of each field.

        Returns:
            Logits, float (B, T, classes), and the frames of each field, int64 (B,).
        """
        width = width.clamp(1, image.shape[2])
        return self.network(self.standardising(image, width), width), frames_within(width, STRIDE)

    def forward(self, image: Tensor, width: Tensor) -> Amounts:
        """Read a batch of fields.

        Args:
            image: uint8 (B, H, W, 1); W is a multiple of ``STRIDE``, as the exported graph takes no other.
            width: int64 (B, 1), columns of each field; what is outside 1 to W is taken for the nearest of these.
        """
        columns = width.squeeze(1)
        scores, lengths = self.scores(image, columns)
        reading = self.decoder(scores, lengths)
        ends = columns.clamp(1, image.shape[2]).view(-1, 1, 1, 1)
        positions = torch.where(reading.positions < 0, reading.positions, torch.minimum(reading.positions * STRIDE, ends))
        confidence = self.confidence(self.log_share(reading.characters, reading.log_posteriors), reading.n_characters[:, 0])
        return Amounts(reading.characters, reading.n_characters, positions, reading.log_posteriors.exp(), confidence.unsqueeze(1))

    def confidence(self, log_share: Tensor, n_characters: Tensor) -> Tensor:
        """How likely the first amount is right, 0 where it is none.

        Args:
            log_share: float (B,), of ``log_share``.
            n_characters: int64 (B,), of the first string.

        Returns:
            float (B,), from 0 to 1.
        """
        odds = log_odds(log_share) * self.confidence_scale + self.confidence_shift
        return torch.where(n_characters > 0, odds.sigmoid(), 0.0)

    def log_share(self, characters: Tensor, log_posteriors: Tensor) -> Tensor:
        """The log of the posteriors of all strings that are the same amount as the first.

        Args:
            characters: int64 (B, n, L), places in the alphabet, -1 behind a string.
            log_posteriors: float (B, n).

        Returns:
            float (B,).
        """
        counts = self.counts[characters]  # (B, n, L): -1 is the last entry
        place = torch.where(counts, counts.long().cumsum(2) - 1, characters.shape[2])  # the rest go into a place behind
        amounts = torch.full_like(functional.pad(characters, (0, 1)), -1)
        amounts = amounts.scatter(2, place, torch.where(counts, characters, -1))
        same = (amounts == amounts[:, :1]).all(2)  # (B, n)
        return torch.where(same, log_posteriors, float("-inf")).logsumexp(1)


def log_odds(log_posterior: Tensor) -> Tensor:
    """The log-odds of a log-posterior: float, of the same shape; bounded to what float32 can tell apart."""
    bounded = log_posterior.clamp(-80.0, -_LEAST_DOUBT)
    return bounded - torch.log(-torch.expm1(bounded))
