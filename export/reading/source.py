"""PyTorch's answers: float32, as trained, and float64, as the truth; and what any answer is worth in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from convoy.contract.errors import ExportError
from convoy.contract.goldens import Arrays
from convoy.contract.manifest import INPUT_NAME
from convoy.contract.reading import (
    CHARACTERS_NAME,
    CONFIDENCE_NAME,
    N_CHARACTERS_NAME,
    OUTPUT_NAMES,
    POSITIONS_NAME,
    POSTERIORS_NAME,
    WIDTH_NAME,
)
from convoy.training.check_reader.reader import log_odds
from convoy.training.check_reader.sliding import STRIDE

if TYPE_CHECKING:
    from convoy.training.check_reader.reader import AmountReader

Answers = Mapping[str, npt.NDArray[Any]]
"""By output name, as ``convoy.contract.reading`` says, a row for each field."""

_NEVER: Final = -np.inf
_SHAKEN: Final = 1e-4
"""By how much of the largest score each of a golden's scores may move: some 800 times float32's epsilon."""
_N_SHAKEN: Final = 2


class ReaderSource:
    """A reader in PyTorch as the source of the expected answers.

    Args:
        reader: On the CPU, in evaluation mode.
    """

    kind: Literal["pytorch"] = "pytorch"
    title = "PyTorch"

    def __init__(self, reader: AmountReader) -> None:
        self.reader = reader
        self.double = copy.deepcopy(reader).double().eval()

    def float32(self, inputs: Arrays) -> Answers:
        """The reader's answers to one batch.

        Raises:
            ExportError: It fails.
        """
        return _run(self.reader, inputs)

    def float64(self, inputs: Arrays) -> Answers:
        """The answers with its weights, and everything that it computes, in float64.

        Raises:
            ExportError: It fails.
        """
        return _run(self.double, inputs)

    def path_scores(self, inputs: Arrays, answers: Answers, *, double: bool) -> npt.NDArray[np.float64]:
        """What the paths of given answers score, float64 (B, n): ``log weight + sum over frames of (score - best score)``.

        A path is what an amount's characters and their positions say: each frame that shows a character scores as that, each other
        one as the blank. What the grammar does not allow scores minus infinity, and so does what is no path.

        Args:
            inputs: One batch.
            answers: Of anybody, to the same batch.
            double: Score with the network in float64; else in float32.
        """
        reader = self.double if double else self.reader
        with torch.inference_mode():
            scores, lengths = reader.scores(*_tensors(inputs, squeeze=True))
        frames = (scores - scores.amax(-1, keepdim=True)).double().numpy()
        n_best = answers[CHARACTERS_NAME].shape[1]
        return np.array([
            [
                self._path_score(frames[row, : int(length)], *(answers[name][row, rank] for name in OUTPUT_NAMES[:3]))
                for rank in range(n_best)
            ]
            for row, length in enumerate(lengths)
        ])  # fmt: skip

    def _path_score(
        self, frames: npt.NDArray[np.float64], characters: npt.NDArray[np.int64], n: np.int64, positions: npt.NDArray[np.int64]
    ) -> float:
        alphabet = self.reader.lattice.alphabet
        if not 0 <= n <= len(characters) or any(not 0 <= place < len(alphabet) for place in characters[:n]):
            return _NEVER
        shown, behind = np.zeros(len(frames), np.int64), 0
        for number in range(int(n)):
            first, stop = int(positions[number, 0]) // STRIDE, -(-int(positions[number, 1]) // STRIDE)
            twin = number > 0 and characters[number] == characters[number - 1]
            if not behind + (twin and number > 0) <= first < stop <= len(frames):  # between twins stands a blank
                return _NEVER
            shown[first:stop], behind = characters[number] + 1, stop
        weight = self.reader.lattice.grammar.automaton.score(self.text(characters, n))
        return weight + float(frames[np.arange(len(frames)), shown].sum())

    def steady(self, inputs: Arrays) -> npt.NDArray[np.bool_]:
        """Whether a field's amounts and places stay where each of its scores moves by up to 1e-4 of the largest: (B,)."""
        with torch.inference_mode():
            scores, lengths = self.double.scores(*_tensors(inputs, squeeze=True))
            first = self.double.decoder(scores, lengths)
            same = torch.ones(len(scores), dtype=torch.bool)
            for seed in range(_N_SHAKEN):
                noise = torch.empty_like(scores).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
                moved = self.double.decoder(scores + noise * _SHAKEN * scores.abs().amax(), lengths)
                for name in ("characters", "positions"):
                    same &= (getattr(first, name) == getattr(moved, name)).flatten(1).all(1)
        return same.numpy()

    def text(self, characters: npt.NDArray[np.int64], n: np.int64) -> str:
        """The amount of one answer; what the alphabet does not have is shown as a question mark."""
        alphabet = self.reader.lattice.alphabet
        return "".join(alphabet[place] if 0 <= place < len(alphabet) else "?" for place in characters[: int(n)])

    def texts(self, answers: Answers) -> list[list[str]]:
        """The amounts of each field, the likeliest first; empty where there is no such amount."""
        pairs = zip(answers[CHARACTERS_NAME], answers[N_CHARACTERS_NAME], strict=True)
        return [[self.text(*one) for one in zip(characters, n, strict=True)] for characters, n in pairs]

    def worth(self, inputs: Arrays, answer: Answers) -> dict[str, npt.NDArray[Any]]:
        """Posteriors and confidence, float64, of the amounts that somebody answered: what they should have been.

        Args:
            inputs: One field.
            answer: Of anybody, to it; amounts of the grammar, the first at least.
        """
        lattice, texts = self.double.lattice, self.texts(answer)[0]
        with torch.inference_mode():
            scores, lengths = self.double.scores(*_tensors(inputs, squeeze=True))
            every = lattice.log_partition(scores, lengths)
            logs = torch.full((1, len(texts)), -torch.inf, dtype=torch.float64)
            for rank, text in enumerate(texts):
                if lattice.grammar.accepts(text):
                    logs[:, rank] = (lattice.log_score(scores, lengths, [text], latent=False) - every).clamp_max(0.0)
        return {POSTERIORS_NAME: logs.exp().numpy(), CONFIDENCE_NAME: self.calibrated(answer[CHARACTERS_NAME], logs.numpy())}

    def calibrated(self, characters: npt.NDArray[np.int64], log_posteriors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The confidence in the first of some amounts: float64, shape (n, 1).

        Args:
            characters: Of all of them, int64, shape (n, k, L).
            log_posteriors: Theirs, shape (n, k).
        """
        with torch.inference_mode():
            shares = self.double.log_share(torch.from_numpy(characters), torch.from_numpy(log_posteriors))
            odds = log_odds(shares) * self.double.confidence_scale + self.double.confidence_shift
            confidence: npt.NDArray[np.float64] = odds.sigmoid().unsqueeze(1).numpy()
        return confidence


def _tensors(inputs: Arrays, *, squeeze: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    width = torch.from_numpy(inputs[WIDTH_NAME])
    return torch.from_numpy(inputs[INPUT_NAME]), width.squeeze(1) if squeeze else width


def _run(reader: AmountReader, inputs: Arrays) -> Answers:
    try:
        with torch.inference_mode():
            amounts = reader(*_tensors(inputs))
    except Exception as error:  # whatever a network's forward() raises
        raise ExportError(f"the reader fails on a batch of {len(inputs[INPUT_NAME])} fields: {error}") from error
    return {name: values.numpy() for name, values in zip(OUTPUT_NAMES, amounts, strict=True)}


def same_amounts(expected: Answers, actual: Answers) -> npt.NDArray[np.bool_]:
    """Whether all amounts of a field, and the places of all of their characters, are the same: (n,)."""
    same = np.ones(len(expected[CHARACTERS_NAME]), bool)
    for name in (CHARACTERS_NAME, N_CHARACTERS_NAME, POSITIONS_NAME):
        same &= (expected[name] == actual[name]).reshape(len(same), -1).all(axis=1)
    return same
