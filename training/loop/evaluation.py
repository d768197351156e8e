"""How good a classifier is on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from convoy.training.networks.classifier import ImageClassifier


@dataclass(frozen=True)
class Score:
    """Mean cross entropy (nats, without label smoothing), and the fraction of images whose largest logit is another class's."""

    loss: float
    top1_error: float


@torch.inference_mode()
def evaluate(classifier: ImageClassifier, images: Tensor, labels: Tensor, *, batch_size: int = 1000) -> Score:
    """Score a classifier in evaluation mode; its mode is as before afterwards.

    Args:
        classifier: What is scored, on the device of ``images``.
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        batch_size: Images at a time.
    """
    was_training = classifier.training
    classifier.eval()
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    wrong = torch.zeros((), dtype=torch.int64, device=images.device)
    for start in range(0, len(labels), batch_size):
        targets = labels[start : start + batch_size]
        logits = classifier(images[start : start + batch_size])
        loss += functional.cross_entropy(logits, targets, reduction="sum").double()
        wrong += (logits.argmax(dim=1) != targets).sum()
    classifier.train(was_training)
    return Score(loss=loss.item() / len(labels), top1_error=wrong.item() / len(labels))
