"""What a step makes smaller: the paper's criteria, and the ones to compare them with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from convoy.contract.errors import UsageError
from convoy.training.check_reader.best_path import best_path
from convoy.training.check_reader.examples import Example
from convoy.training.check_reader.lattice import Lattice
from convoy.training.check_reader.machine import BLANK, compose_each
from convoy.training.check_reader.sliding import STRIDE
from convoy.training.recipes.reader import Criterion


def losses(criterion: Criterion, scores: Tensor, lengths: Tensor, examples: Sequence[Example], lattice: Lattice) -> Tensor:
    """The loss of each field, float (B,).

    It is 0, without a gradient, where a field has too few frames for its label, and NaN where scores are.

    Args:
        criterion: As ``ReaderRecipe.criterion``.
        scores: float (B, T, C), logits.
        lengths: int64 (B,), frames of each field.
        examples: The fields.
        lattice: Of the recipe's grammar.

    Raises:
        DataError: The grammar has no such amount as a label.
        UsageError: ``frames`` on fields whose characters stand nobody knows where.
    """
    if criterion == "frames":
        return _frames(scores, lengths, examples, lattice)
    labels, latent = [example.label for example in examples], [example.latent for example in examples]
    if criterion == "forward":
        found = lattice.loss(scores, lengths, labels, latent=latent)
    elif criterion == "ctc":
        found = -lattice.log_score(scores.log_softmax(-1), lengths, labels, latent=latent)
    else:
        automata = [lattice.grammar.spelled(label, latent=hidden) for label, hidden in zip(labels, latent, strict=True)]
        right = best_path(scores, lengths, compose_each(automata, lattice.alphabet))
        possible = right != float("-inf")
        best = best_path(scores, lengths, lattice.machine)
        found = torch.where(possible, torch.where(possible, best, 0.0) - torch.where(possible, right, 0.0), float("inf"))
    return torch.where(found == float("inf"), 0.0, found)


def _frames(scores: Tensor, lengths: Tensor, examples: Sequence[Example], lattice: Lattice) -> Tensor:
    """Cross entropy frame by frame: the character in whose middle a frame lies, else the blank."""
    classes = {character: place for place, character in enumerate(lattice.alphabet, start=1)}
    targets = torch.full(scores.shape[:2], BLANK, device=scores.device)
    for row, example in zip(targets, examples, strict=True):
        if len(example.spans) != len(example.label):
            raise UsageError(f"{example.name}: criterion frames expected the columns of each character, found none.")
        for character, (first, behind) in zip(example.label, example.spans, strict=True):
            row[min(int((first + behind) / 2 / STRIDE), len(row) - 1)] = classes[character]
    losses = functional.cross_entropy(scores.transpose(1, 2), targets, reduction="none")  # (B, T)
    inside = torch.arange(scores.shape[1], device=scores.device) < lengths.unsqueeze(1)
    return (losses * inside).sum(1)
