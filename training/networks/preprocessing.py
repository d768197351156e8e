"""From raw pixels to what a network takes: the one implementation, in training and in the exported graph."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from convoy.contract.errors import DataError
from convoy.contract.manifest import Preprocessing

MAX_VALUE = 255.0


class PixelPreprocessing(nn.Module):
    """uint8 NHWC to normalised float NCHW: ``(scale * pixel - mean) / std``, each image by itself.

    Polarity ``auto`` first replaces ``pixel`` by ``255 - pixel`` in images whose border is light, so that ink on paper reads
    like MNIST's light strokes on dark. An image's border is light when the sum over its four edges is more than half of what
    255 everywhere would give; corners lie on two edges and count twice. The pixels are whole numbers and so is their sum,
    which float32 holds exactly up to 2**24 (edges of 32,896 values together: an RGB image of 2,741 x 2,741 pixels): in any
    order of addition, on any device and in float64 the decision is the same. Exactly half is not light.

    The constants are buffers that are no part of the weights: ``run.json`` holds them, and ``.double()`` converts them.
    """

    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, facts: Preprocessing) -> None:
        super().__init__()
        self.facts = facts
        self.register_buffer("scale", torch.tensor(facts.scale), persistent=False)
        self.register_buffer("mean", torch.tensor(facts.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(facts.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            image: uint8 (N, H, W, C).

        Returns:
            (N, C, H, W) in the dtype of the constants: float32, or float64 after ``.double()``.
        """
        pixels = image.permute(0, 3, 1, 2).to(self.scale.dtype)  # (N, C, H, W)
        if self.facts.polarity == "auto":
            is_light = has_light_border(pixels).view(-1, 1, 1, 1)  # (N, 1, 1, 1)
            pixels = torch.where(is_light, MAX_VALUE - pixels, pixels)
        return (self.scale * pixels - self.mean) / self.std


def has_light_border(pixels: Tensor) -> Tensor:
    """Whether the border of each image is lighter than half of 255.

    Args:
        pixels: float (N, C, H, W), whole numbers in [0, 255].

    Returns:
        bool (N,).
    """
    channels, height, width = pixels.shape[1:]
    edges = torch.cat(
        [pixels[:, :, 0, :], pixels[:, :, -1, :], pixels[:, :, :, 0], pixels[:, :, :, -1]], dim=2
    )  # (N, C, 2 (W + H))
    return edges.sum(dim=(1, 2)) > MAX_VALUE / 2 * channels * 2 * (width + height)


@torch.no_grad()
def measure(images: Tensor, *, polarity: Literal["as-is", "auto"], batch_size: int = 4096) -> Preprocessing:
    """The normalisation that gives ``images`` mean 0 and standard deviation 1 in each channel.

    Args:
        images: uint8 (N, H, W, C), the training split.
        polarity: What is done first.
        batch_size: Images at a time; the result does not depend on it beyond rounding.

    Raises:
        DataError: A channel has one value in all images.
    """
    channels = images.shape[3]
    plain = Preprocessing(polarity=polarity, scale=1 / MAX_VALUE, mean=(0.0,) * channels, std=(1.0,) * channels)
    module = PixelPreprocessing(plain).double().to(images.device)
    total = torch.zeros(channels, dtype=torch.float64, device=images.device)
    squares = torch.zeros_like(total)
    for start in range(0, len(images), batch_size):
        pixels = module(images[start : start + batch_size])  # (n, C, H, W)
        total += pixels.sum(dim=(0, 2, 3))
        squares += pixels.square().sum(dim=(0, 2, 3))
    n = images[..., 0].numel()
    mean = total / n
    std = (squares / n - mean.square()).clamp(min=0).sqrt()
    if std.min() < 1e-6:
        raise DataError("expected training images with some contrast, found the same value in every pixel of a channel.")
    return plain.model_copy(
        update={"mean": tuple(round(v, 6) for v in mean.tolist()), "std": tuple(round(v, 6) for v in std.tolist())}
    )
