"""How much a conversion changes what a network says, without labels: against its own float32 answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.contract.manifest import LOGITS_NAME
from convoy.export.gate.runtime import open_session, run_session

BATCH_SIZE: Final = 16


@dataclass(frozen=True)
class Fidelity:
    """What a conversion changes.

    Attributes:
        disagreement: The share of images whose answer changes; 1 where a logit is not finite.
        noise: The squared error of the logits, as a share of their variance over the images; infinite where one is not finite.
    """

    disagreement: float
    noise: float

    @property
    def badness(self) -> tuple[float, float]:
        """Sorts conversions, the best first: the fewest changed answers, then the least noise."""
        return self.disagreement, self.noise


@dataclass(frozen=True)
class HeldOut:
    """Training images that fix no ranges, with the float32 logits.

    Attributes:
        images: uint8, shape (n, H, W, C).
        logits: float32, shape (n, K).
    """

    images: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]

    @classmethod
    def of(cls, float32_model: bytes, images: npt.NDArray[np.uint8]) -> HeldOut:
        """Run the float32 file.

        Raises:
            ExportError: ONNX Runtime cannot run it.
        """
        return cls(images, run_session(open_session(float32_model), images, BATCH_SIZE)[LOGITS_NAME])

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> HeldOut:
        """At most ``count`` of the images, spread evenly."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), count)).round().astype(np.int64)
        return HeldOut(self.images[chosen], self.logits[chosen])

    def measure(self, model: bytes) -> Fidelity:
        """What ``model`` changes.

        Raises:
            ExportError: ONNX Runtime cannot run it.
        """
        actual = run_session(open_session(model), self.images, BATCH_SIZE)[LOGITS_NAME].astype(np.float64)
        if not np.isfinite(actual).all():
            return Fidelity(1.0, float("inf"))
        expected = self.logits.astype(np.float64)
        variance = float(((expected - expected.mean(axis=0)) ** 2).sum())
        error = float(((actual - expected) ** 2).sum())
        noise = error / variance if variance > 0 else (0.0 if error == 0 else float("inf"))
        return Fidelity(float((actual.argmax(axis=1) != expected.argmax(axis=1)).mean()), noise)
