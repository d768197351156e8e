"""What networks with auxiliary heads give while they are trained."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TrainingLogits(NamedTuple):
    """What a network with auxiliary heads gives in training mode, in place of its logits.

    Attributes:
        logits: float (N, classes).
        auxiliary: Those of each auxiliary head, float (N, classes).
        weight: What the loss of each auxiliary head counts beside the network's own.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...]
    weight: float
