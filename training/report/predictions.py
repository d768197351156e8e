"""What a classifier answered to the images of a split, beside what they show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

if TYPE_CHECKING:
    from convoy.training.data.dataset import Split
    from convoy.training.networks.classifier import ImageClassifier

_MOST_IMAGES: Final = 1000
_MOST_PIXELS: Final = 10_000_000  # a batch of large images holds fewer: what the network makes of them fits into memory


@dataclass(frozen=True)
class Predictions:
    """The answers to a split.

    Attributes:
        logits: float32 (n, classes).
        labels: What the images show, int64 (n,).
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @classmethod
    @torch.inference_mode()
    def of(cls, classifier: ImageClassifier, split: Split) -> Self:
        """Ask a classifier about each image of a split, in float32.

        Args:
            classifier: In evaluation mode, on any device.
            split: Its images are taken by slices, a batch at a time, and need not lie in memory.
        """
        device = next(classifier.parameters()).device
        n, *dims = split.images.shape
        size = max(1, min(_MOST_IMAGES, _MOST_PIXELS // int(np.prod(dims))))
        batches = (np.ascontiguousarray(split.images[start : start + size]) for start in range(0, n, size))
        logits = torch.cat([classifier(torch.from_numpy(batch).to(device)).float().cpu() for batch in batches])
        return cls(logits.numpy(), split.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The class of the largest logit, int64 (n,)."""
        predicted: npt.NDArray[np.int64] = self.logits.argmax(axis=1)
        return predicted

    @property
    def top1_error(self) -> float:
        """The fraction of images whose largest logit is another class's."""
        return float((self.predicted != self.labels).mean())

    def confidence(self, temperature: float = 1.0) -> npt.NDArray[np.float64]:
        """The largest of softmax(logits / temperature), float64 (n,)."""
        scaled = self.logits.astype(np.float64) / temperature
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        confidence: npt.NDArray[np.float64] = 1 / exponentials.sum(axis=1)
        return confidence
