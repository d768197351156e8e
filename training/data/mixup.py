"""Mixup: pairs of images and of their labels, blended."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Pairs:
    """What was drawn for a batch of N images.

    Attributes:
        partner: int64 (N,), the image with which each is blended: a permutation.
        share: float32 (N,), from 0 to 1: what remains of the image itself.
    """

    partner: Tensor
    share: Tensor


def draw_pairs(n: int, *, alpha: float, generator: torch.Generator) -> Pairs:
    """Draw partners for ``n`` images, and for each a share from Beta(alpha, alpha).

    Args:
        n: Images in the batch.
        alpha: Above 0; the smaller, the closer most shares are to 0 or 1.
        generator: Where the randomness comes from; on the CPU.
    """
    partner = torch.randperm(n, generator=generator)
    # two gammas and their sum make a beta; in float64, where even a small alpha hardly ever gives two zeros
    gammas = torch._standard_gamma(torch.full((n, 2), alpha, dtype=torch.float64), generator=generator)
    return Pairs(partner, (gammas[:, 0] / gammas.sum(dim=1)).float())


def blend(images: Tensor, labels: Tensor, pairs: Pairs, *, n_classes: int) -> tuple[Tensor, Tensor]:
    """Blend a batch: image = share * image + (1 - share) * partner, and the targets alike.

    Args:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        pairs: For N images.
        n_classes: How many classes there are.

    Returns:
        uint8 of the shape of ``images``, and float32 targets (N, classes) that sum to 1, for ``cross_entropy``.
    """
    partner, share = pairs.partner.to(images.device), pairs.share.to(images.device)
    pixels, others = images.float(), images[partner].float()
    pixels = others + share.view(-1, 1, 1, 1) * (pixels - others)
    certain = functional.one_hot(labels, n_classes).float()
    targets = certain[partner] + share.view(-1, 1) * (certain - certain[partner])
    return pixels.round_().to(torch.uint8), targets


def mix(images: Tensor, labels: Tensor, *, n_classes: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pairs for a batch and blend them (Zhang, Cisse, Dauphin and Lopez-Paz 2017, mixup, section 2).

    The shares are drawn image by image; the paper's code draws one a batch, which has the same expectation and varies more.

    Args:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        n_classes: How many classes there are.
        alpha: Of the shares' distribution, above 0.
        generator: Where the randomness comes from; on the CPU.

    Returns:
        As ``blend``.
    """
    return blend(images, labels, draw_pairs(len(images), alpha=alpha, generator=generator), n_classes=n_classes)
