"""The network as it is served: raw pixels in, logits and probabilities out."""

from __future__ import annotations

import torch
from torch import nn


class Servable(nn.Module):
    """A classifier with its softmax.

    Args:
        classifier: Takes uint8 images of shape (N, H, W, C), preprocesses them itself, gives logits of shape (N, K).
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and probabilities.

        Args:
            image: uint8, shape (N, H, W, C).

        Returns:
            Logits and probabilities, both of shape (N, K) and of the classifier's floating dtype.
        """
        logits = self.classifier(image)  # (N, K)
        return logits, torch.softmax(logits, dim=1)
