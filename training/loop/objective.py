"""What a step makes smaller."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from convoy.training.networks.logits import TrainingLogits


def objective(answer: Tensor | TrainingLogits, targets: Tensor, *, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The mean cross entropy of a batch, with that of auxiliary heads, each by its weight.

    Args:
        answer: Of the network in training mode: logits, float (N, classes), with or without those of auxiliary heads.
        targets: Labels, int64 (N,), or shares of classes, float (N, classes).
        label_smoothing: This much of each target is spread over all classes.

    Returns:
        The loss, a scalar, and the network's own logits, float (N, classes).
    """

    def entropy(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    if not isinstance(answer, TrainingLogits):
        return entropy(answer), answer
    loss = entropy(answer.logits)
    for auxiliary in answer.auxiliary:
        loss = loss + answer.weight * entropy(auxiliary)
    return loss, answer.logits


def count_wrong(logits: Tensor, targets: Tensor) -> Tensor:
    """In how many images the largest logit is not the target's class, or that of its largest share; an int64 scalar."""
    labels = targets.argmax(dim=1) if targets.is_floating_point() else targets
    return (logits.detach().argmax(dim=1) != labels).sum()
