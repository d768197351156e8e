"""The network as it is served: raw pixels in, logits and probabilities out."""

from __future__ import annotations

import torch
from torch import nn


class Servable(nn.Module):
    """A classifier with its softmax.

    Args:
        classifier: Takes uint8 images of shape (N, H, W, C), preprocesses them itself, gives logits of shape (N, K).
        temperature: What the logits are divided by before the softmax; the logits themselves stay as they are.
    """

    def __init__(self, classifier: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and probabilities.

        Args:
            image: uint8, shape (N, H, W, C).

        Returns:
            Logits and probabilities, both of shape (N, K) and of the classifier's floating dtype.
        """
        logits = self.classifier(image)  # (N, K)
        scaled = logits if self.temperature == 1 else logits / self.temperature
        return logits, torch.softmax(scaled, dim=1)
