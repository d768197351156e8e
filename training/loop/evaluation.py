"""How good a classifier is on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from convoy.training.loop.feeding import Feeder
from convoy.training.loop.sampling import Share, slices
from convoy.training.networks.classifier import ImageClassifier

_MOST_IMAGES = 1000
_MOST_PIXELS = 10_000_000  # 66 images of 224x224 in colour: their maps fit a laptop's memory
_ALL = Share()


@dataclass(frozen=True)
class Score:
    """Mean cross entropy (nats, without label smoothing), and the fraction of images whose largest logit is another class's."""

    loss: float
    top1_error: float


def evaluate(classifier: ImageClassifier, images: Tensor, labels: Tensor, *, batch_size: int = _MOST_IMAGES) -> Score:
    """Score a classifier in evaluation mode; its mode is as before afterwards.

    Args:
        classifier: What is scored, on the device of ``images``.
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        batch_size: Images at a time.
    """
    parts = slices(len(labels), batch_size)
    return _score(_sums(classifier, ((images[part], labels[part]) for part in parts), images.device), len(labels))


def evaluate_split(
    classifier: ImageClassifier,
    feeder: Feeder,
    device: torch.device,
    *,
    share: Share = _ALL,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Score:
    """Score a classifier on a split, each of several processes on its share of the images.

    Args:
        classifier: What is scored; its mode is as before afterwards.
        feeder: Where the images come from.
        device: Where the classifier is.
        share: Which images this process reads.
        add_up: From the sums of one process to those of all.
    """
    mine = share.of(slice(0, len(feeder)))
    order = torch.arange(mine.start, mine.stop)
    with closing(feeder.batches(order, slices(len(order), evaluation_batch_size(feeder.dims)))) as batches:
        sums = _sums(classifier, batches, device)
    return _score(add_up(sums), len(feeder))


def evaluation_batch_size(dims: tuple[int, ...]) -> int:
    """How many images of these dims (height, width, channels) are taken at a time: 1,000, or fewer of large ones."""
    height, width, channels = dims
    return max(1, min(_MOST_IMAGES, _MOST_PIXELS // (height * width * channels)))


@torch.inference_mode()
def _sums(classifier: ImageClassifier, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """The sum of the losses and the number of wrong answers, float64 (2,)."""
    modes = {module: module.training for module in classifier.modules()}
    classifier.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for images, labels in batches:
        logits = classifier(images)
        sums[0] += functional.cross_entropy(logits, labels, reduction="sum").double()
        sums[1] += (logits.argmax(dim=1) != labels).sum()
    for module, mode in modes.items():  # not `train()`: frozen parts of a classifier that learns are in evaluation mode
        module.training = mode
    return sums


def _score(sums: Tensor, n: int) -> Score:
    loss, n_wrong = sums.tolist()
    return Score(loss=loss / n, top1_error=n_wrong / n)
