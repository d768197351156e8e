from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from convoy.training.data.mixup import Pairs, blend, draw_pairs, mix

IMAGES = torch.randint(0, 256, (64, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 10


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_images_and_targets_are_blended_alike() -> None:
    pairs = Pairs(torch.tensor([1, 0]), torch.tensor([0.25, 1.0]))
    images, targets = blend(IMAGES[:2], torch.tensor([3, 7]), pairs, n_classes=10)
    expected = (0.25 * IMAGES[0].float() + 0.75 * IMAGES[1].float()).round()
    assert images.dtype == torch.uint8
    assert torch.equal(images[0].float(), expected)
    assert torch.equal(images[1], IMAGES[1])
    assert targets[0].tolist() == [0, 0, 0, 0.25, 0, 0, 0, 0.75, 0, 0]
    assert targets[1].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]


def test_targets_are_probabilities_and_the_input_is_left_alone() -> None:
    before = IMAGES.clone()
    images, targets = mix(IMAGES, LABELS, n_classes=10, alpha=0.4, generator=generator())
    assert images.shape == IMAGES.shape
    assert targets.shape == (64, 10)
    assert targets.min() >= 0
    assert targets.sum(dim=1).tolist() == pytest.approx([1.0] * 64)
    assert torch.equal(IMAGES, before)


def test_it_is_drawn_anew_each_time_and_repeats_with_the_seed() -> None:
    g = generator(3)
    first, second = (mix(IMAGES, LABELS, n_classes=10, alpha=1.0, generator=g) for _ in range(2))
    again = mix(IMAGES, LABELS, n_classes=10, alpha=1.0, generator=generator(3))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_shares_have_the_mean_and_deviation_of_their_distribution(alpha: float) -> None:
    share = draw_pairs(20_000, alpha=alpha, generator=generator()).share
    assert share.min() >= 0
    assert share.max() <= 1
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.005)


def test_each_image_is_the_partner_of_one() -> None:
    partner = draw_pairs(100, alpha=0.2, generator=generator()).partner
    assert sorted(partner.tolist()) == list(range(100))
    assert (partner != torch.arange(100)).sum() > 90


def test_the_loss_of_blended_targets_is_the_blend_of_losses() -> None:
    # what the paper optimises: share * loss(label) + (1 - share) * loss(partner's label)
    pairs = draw_pairs(64, alpha=1.0, generator=generator())
    _, targets = blend(IMAGES, LABELS, pairs, n_classes=10)
    logits = torch.randn(64, 10, generator=generator())
    own = functional.cross_entropy(logits, LABELS, reduction="none")
    others = functional.cross_entropy(logits, LABELS[pairs.partner], reduction="none")
    expected = (pairs.share * own + (1 - pairs.share) * others).mean()
    assert functional.cross_entropy(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
