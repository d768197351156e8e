"""The decoder as a part of a network: from scores to amounts with operators that ONNX has."""

from __future__ import annotations

from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.training.check_reader.lattice import Lattice
from convoy.training.check_reader.named_grammar import check_length
from convoy.training.check_reader.search import Reading


class Decoder(nn.Module):
    """Reads the n best amounts from a network's scores.

    Batch and frames may be dynamic axes. ``torch.onnx`` writes its passes over the frames as ONNX ``Scan``: one backward over the
    grammar, one forward for each of the n strings, one backward to place their characters. There are no custom operators.

    Args:
        lattice: The grammar and the alphabet.
        n_best: How many amounts for each field.

    Raises:
        UsageError: The grammar has amounts of any length, for which no array has room; or ``n_best`` is below 1.
    """

    def __init__(self, lattice: Lattice, n_best: int = 3) -> None:
        super().__init__()
        check_length(lattice.grammar)
        if n_best < 1:
            raise UsageError(f"expected n_best of at least 1, found {n_best}.")
        self.lattice, self.n_best = lattice, n_best

    def forward(self, scores: Tensor, lengths: Tensor) -> Reading:
        """From log-scores, float32 (B, T, C), and the frames of each field, int64 (B,), to the amounts; T is at least 1."""
        return self.lattice.read(scores, lengths, self.n_best)
