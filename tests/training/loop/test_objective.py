from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from convoy.training.loop.objective import count_wrong, objective
from convoy.training.networks.logits import TrainingLogits

LOGITS, FIRST, SECOND = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 4, 2, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_auxiliary_heads_count_by_their_weight(smoothing: float) -> None:
    loss, logits = objective(TrainingLogits(LOGITS, (FIRST, SECOND), 0.3), LABELS, label_smoothing=smoothing)
    own, first, second = (functional.cross_entropy(part, LABELS, label_smoothing=smoothing) for part in (LOGITS, FIRST, SECOND))
    torch.testing.assert_close(loss, own + 0.3 * first + 0.3 * second)
    assert logits is LOGITS


def test_shares_of_classes_are_targets_as_labels_are() -> None:
    shares = functional.one_hot(LABELS, 5).float()
    with_shares, _ = objective(LOGITS, shares, label_smoothing=0.1)
    with_labels, _ = objective(LOGITS, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(with_shares, with_labels)


def test_an_image_is_wrong_where_another_class_than_that_of_the_largest_share_has_the_largest_logit() -> None:
    logits = functional.one_hot(torch.tensor([0, 1, 2, 3]), 5).float()
    assert count_wrong(logits, torch.tensor([0, 4, 2, 2])) == 2
    mixed = torch.tensor([[0.6, 0.4, 0, 0, 0], [0.6, 0.4, 0, 0, 0], [0, 0, 0.3, 0.7, 0], [0, 0, 0.3, 0.7, 0]])
    assert count_wrong(logits, mixed) == 2
