"""Distortions that change values where they are: contrast, brightness, saturation, hue."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from convoy.training.data.augmentation.draws import Draws
from convoy.training.recipes.recipe import Augmentation

_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601: how bright red, green and blue look


def is_on(amounts: Augmentation) -> bool:
    """Whether brightness, saturation or hue change."""
    return bool(amounts.brightness_fraction or amounts.saturation_fraction or amounts.hue_fraction)


def recolour(pixels: Tensor, amounts: Augmentation, draws: Draws) -> Tensor:
    """Fade each image, brighten it, saturate it, turn its hue.

    Grey images have neither saturation nor hue: these leave them, and whatever has not three channels, as they are.

    Args:
        pixels: uint8 or float (N, C, H, W) on the scale [0, 255].
        amounts: How much.
        draws: For N images.

    Returns:
        float of the same shape, in [0, 255]; ``pixels`` itself where nothing changes.
    """
    if draws.fade is not None:
        gain, level = (value.view(-1, 1, 1, 1) for value in draws.fade.to(pixels.device).unbind(dim=1))
        level = 255 * level
        gain = 1 - amounts.contrast_fraction * gain
        pixels = (pixels - level).mul_(gain).add_(level)  # [0, 255] stays in [0, 255]
    if draws.colour is not None:
        brightness, saturation, hue = (value.view(-1, 1, 1, 1) for value in draws.colour.to(pixels.device).unbind(dim=1))
        pixels = pixels.float()
        if amounts.brightness_fraction:
            pixels = (pixels * (1 + amounts.brightness_fraction * brightness)).clamp(0, 255)
        if amounts.saturation_fraction and pixels.shape[1] == 3:
            lightness = grey(pixels)
            pixels = (lightness + (1 + amounts.saturation_fraction * saturation) * (pixels - lightness)).clamp(0, 255)
        if amounts.hue_fraction and pixels.shape[1] == 3:
            pixels = _turn_hue(pixels, amounts.hue_fraction * hue)
    return pixels


def grey(pixels: Tensor) -> Tensor:
    """How bright red, green and blue look together: float (N, 3, H, W) to (N, 1, H, W)."""
    weights = torch.tensor(_LUMA, device=pixels.device).view(1, 3, 1, 1)
    return (weights * pixels).sum(dim=1, keepdim=True)


def _turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV; its saturation and value stay.

    Args:
        pixels: float (N, 3, H, W).
        turn: (N, 1, 1, 1), in circles.
    """
    value, brightest = pixels.max(dim=1, keepdim=True)
    chroma = value - pixels.amin(dim=1, keepdim=True)
    # sixths of the circle from the brightest channel's own place, which is 0, 2 or 4: (G-B)/C, 2+(B-R)/C, 4+(R-G)/C
    differences = pixels.roll(-1, dims=1) - pixels.roll(-2, dims=1)
    sixths = differences.gather(1, brightest) / chroma.clamp(min=1e-6) + 2 * brightest + 6 * turn  # (N, 1, H, W)
    # and back: a channel falls below the value by how far the hue is from where that channel is full (A. R. Smith 1978)
    k = (torch.tensor([5.0, 3.0, 1.0], device=pixels.device).view(1, 3, 1, 1) + sixths) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
