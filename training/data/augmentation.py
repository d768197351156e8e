"""Random distortions of a training batch, on tensors, drawn anew each time."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from convoy.training.recipes.recipe import Augmentation


class Augment:
    """Shift, rotate, scale, slant and fade each image of a batch by random amounts.

    What moves in from outside has the colour of the image's own background: the median of its border. All draws come from
    one generator on the CPU, so that the same seed distorts alike on every device.
    """

    def __init__(self, amounts: Augmentation, generator: torch.Generator) -> None:
        self.amounts = amounts
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Distort a batch.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            uint8 of the same shape; ``images`` itself where nothing is to be distorted.
        """
        if self.amounts.is_off:
            return images
        pixels = images.permute(0, 3, 1, 2).float()  # (N, C, H, W)
        pixels = self._fade(self._move(pixels))
        return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _move(self, pixels: Tensor) -> Tensor:
        n, _, height, width = pixels.shape
        theta = self._draw_theta(n, height, width).to(pixels.device)  # (N, 2, 3)
        grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)  # (N, H, W, 2)
        background = _border_median(pixels)  # (N, C, 1, 1)
        # zero outside, measured from the background: nothing but background moves in
        return functional.grid_sample(pixels - background, grid, align_corners=False) + background

    def _draw_theta(self, n: int, height: int, width: int) -> Tensor:
        """The affine maps from places in the result to places in the source, in units of half an image."""
        amounts = self.amounts
        angle = self._draw(n) * math.radians(amounts.rotation_deg)
        slant = torch.tan(self._draw(n) * math.radians(amounts.shear_deg))
        # on a logarithmic scale, so that twice as large and half as large are equally likely
        scale_x = torch.exp(self._draw(n) * math.log1p(amounts.scale_fraction))
        scale_y = torch.exp(self._draw(n) * math.log1p(amounts.scale_fraction))
        shift_x, shift_y = self._draw(n) * amounts.shift_px, self._draw(n) * amounts.shift_px
        cos, sin = torch.cos(angle), torch.sin(angle)
        # in pixels: rotation . slant . scale; an image that is not square turns in pixels too, hence the aspect
        aspect = height / width
        row_x = torch.stack([cos * scale_x, (cos * slant - sin) * scale_y * aspect, shift_x * (2 / width)], dim=1)  # (N, 3)
        row_y = torch.stack([sin * scale_x / aspect, (sin * slant + cos) * scale_y, shift_y * (2 / height)], dim=1)
        return torch.stack([row_x, row_y], dim=1)  # (N, 2, 3)

    def _fade(self, pixels: Tensor) -> Tensor:
        if self.amounts.contrast_fraction == 0:
            return pixels
        n = len(pixels)
        gain = 1 - self.amounts.contrast_fraction * torch.rand(n, generator=self.generator)
        level = 255 * torch.rand(n, generator=self.generator)
        gain, level = (value.to(pixels.device).view(n, 1, 1, 1) for value in (gain, level))
        return level + gain * (pixels - level)  # [0, 255] stays in [0, 255]

    def _draw(self, n: int) -> Tensor:
        """Draw n values from -1 to 1."""
        return 2 * torch.rand(n, generator=self.generator) - 1


def _border_median(pixels: Tensor) -> Tensor:
    """The median of each image's border, channel by channel: (N, C, H, W) to (N, C, 1, 1)."""
    border = torch.cat([pixels[:, :, 0, :], pixels[:, :, -1, :], pixels[:, :, :, 0], pixels[:, :, :, -1]], dim=2)
    return border.median(dim=2).values[:, :, None, None]
