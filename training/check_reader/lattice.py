"""The lattice of a field: the network's scores for each position, composed with a grammar of amounts.

The loss is the paper's discriminative forward training (LeCun, Bottou, Bengio, Haffner 1998, section VI.E): the log-sum over all
paths that the grammar allows, less the log-sum over the paths of the right amount. It is minus the log-posterior of the right
amount, so never negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.training.check_reader.grammar import Grammar
from convoy.training.check_reader.machine import Machine, compose, compose_each
from convoy.training.check_reader.search import Reading, search
from convoy.training.check_reader.summing import path_sum


class Lattice(nn.Module):
    """The sums and best paths of lattices under one grammar. It has no weights to train.

    Scores are float (B, T, C): the log-score of each class at each of T positions, the blank first, then the alphabet's characters
    in order. They may be logits or log-probabilities: what is constant over the classes of a position changes no posterior.
    Lengths are int64 (B,): the positions of each field, from 0 to T; what stands behind them never changes an answer.

    Args:
        grammar: Which amounts there are.
        alphabet: The characters that the network knows, each once.

    Raises:
        DataError: The grammar has a character that the alphabet lacks.
        UsageError: The alphabet holds a character twice.
    """

    def __init__(self, grammar: Grammar, alphabet: str) -> None:
        super().__init__()
        if len(set(alphabet)) != len(alphabet):
            raise UsageError(f"expected an alphabet that holds each character once, found {alphabet!r}.")
        self.grammar, self.alphabet = grammar, alphabet
        self.max_length = grammar.automaton.max_length()
        for name, table in compose(grammar.automaton, alphabet)._asdict().items():
            self.register_buffer(name, table, persistent=False)

    @property
    def machine(self) -> Machine:
        """The tables."""
        return Machine(*(self.get_buffer(name) for name in Machine._fields))

    def log_partition(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """The log-sum over all paths that the grammar allows, float (B,); -inf where there is none. It has a gradient."""
        self._check(scores, lengths)
        return path_sum(scores, lengths, self.machine)

    def log_score(self, scores: Tensor, lengths: Tensor, labels: Sequence[str], *, latent: bool | Sequence[bool] = True) -> Tensor:
        """The log-sum over the paths of the right amounts. It has a gradient.

        Args:
            scores: float (B, T, C).
            lengths: int64 (B,).
            labels: What is known of each amount.
            latent: A label leaves the grammar's silent symbols out, so that they may stand anywhere that the grammar allows; else
                it is the amount as written. One for all, or one for each.

        Returns:
            float (B,); -inf where the field has too few frames for the amount, with a gradient of 0.

        Raises:
            DataError: The grammar has no such amount.
            UsageError: Shapes that do not fit.
        """
        self._check(scores, lengths)
        each = [latent] * len(labels) if isinstance(latent, bool) else list(latent)
        if len(labels) != len(scores) or len(each) != len(scores):
            raise UsageError(f"expected {len(scores)} labels, one for each field, found {len(labels)} (latent: {len(each)}).")
        if not labels:
            return scores.new_zeros(0)
        automata = [self.grammar.spelled(label, latent=hidden) for label, hidden in zip(labels, each, strict=True)]
        return path_sum(scores, lengths, compose_each(automata, self.alphabet))

    def loss(self, scores: Tensor, lengths: Tensor, labels: Sequence[str], *, latent: bool | Sequence[bool] = True) -> Tensor:
        """Minus the log-posterior of the right amounts among all that the grammar allows.

        Args:
            scores: float (B, T, C).
            lengths: int64 (B,).
            labels: As ``log_score`` takes them.
            latent: The same.

        Returns:
            float (B,), at least 0; +inf, with a gradient of 0, where the field has too few frames for the amount; NaN where
            scores are.

        Raises:
            DataError: The grammar has no such amount.
            UsageError: Shapes that do not fit.
        """
        right = self.log_score(scores, lengths, labels, latent=latent)
        possible = right != float("-inf")  # not so where the scores are no numbers: then the loss is none
        every = self.log_partition(scores, lengths)
        difference = torch.where(possible, every, 0.0) - torch.where(possible, right, 0.0)
        return torch.where(possible, difference.clamp_min(0.0), float("inf"))

    def viterbi(self, scores: Tensor, lengths: Tensor) -> Reading:
        """The best path of each field: its string, its positions and its posterior."""
        return self.n_best(scores, lengths, 1)

    @torch.no_grad()
    def n_best(self, scores: Tensor, lengths: Tensor, n: int) -> Reading:
        """The ``n`` strings with the best paths, each once, exactly; no gradient.

        Raises:
            UsageError: ``n`` is below 1, or shapes that do not fit.
        """
        self._check(scores, lengths)
        if n < 1 or scores.shape[1] < 1:
            raise UsageError(f"expected one string and one frame at least, found n = {n} and {scores.shape[1]} frames.")
        return self.read(scores, lengths, n)

    def read(self, scores: Tensor, lengths: Tensor, n: int) -> Reading:
        """As ``n_best``, unchecked: what the exported graph holds. The best strings have no gradient, nor has the exported loop."""
        scores = scores.detach()
        limit = scores.shape[1] if self.max_length is None else max(self.max_length, 1)
        return search(self.machine.to(scores), scores, lengths, n_best=n, limit=limit)

    def texts(self, reading: Reading) -> list[list[str]]:
        """The strings of a reading, of each field the best first; those that there are not are left out."""
        real = (reading.path_scores > float("-inf")).tolist()
        return [
            ["".join(self.alphabet[place] for place in row if place >= 0) for row, there in zip(rows, theres, strict=True) if there]
            for rows, theres in zip(reading.characters.tolist(), real, strict=True)
        ]

    def _check(self, scores: Tensor, lengths: Tensor) -> None:
        n_classes = len(self.alphabet) + 1
        if scores.dim() != 3 or scores.shape[2] != n_classes or not scores.is_floating_point():
            raise UsageError(f"expected float scores (B, T, {n_classes}), found {scores.dtype} {tuple(scores.shape)}.")
        if lengths.shape != scores.shape[:1] or lengths.is_floating_point():
            raise UsageError(f"expected int64 lengths ({len(scores)},), found {lengths.dtype} {tuple(lengths.shape)}.")
