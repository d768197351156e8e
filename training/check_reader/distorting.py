"""Random distortions of fields: other hands, other pens, other scanners."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from convoy.training.check_reader.examples import STEP_PX
from convoy.training.check_reader.sliding import STRIDE
from convoy.training.check_reader.standardising import columns_within
from convoy.training.recipes.reader import Distortion

_CELL_PX = 10  # elastic displacements are smooth over about so many pixels


def distort(image: Tensor, width: Tensor, amounts: Distortion, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distort a batch of fields, each in its own way.

    Args:
        image: uint8 (B, H, W, 1).
        width: int64 (B,).
        amounts: How much.
        generator: Where the draws come from, on the device of ``image``.

    Returns:
        Image and width, of the same form; the width may be another.
    """
    n, height, columns, _ = image.shape
    draws = _Draws(n, generator)
    levels = image[..., 0].unsqueeze(1).float()  # (B, 1, H, W)
    paper = _paper(levels, width)  # (B, 1, 1, 1)
    levels = torch.where(columns_within(width, columns)[:, None, None], levels, paper)
    across, up = (draws.factor(amounts.scale_fraction) for _ in range(2))
    new_width = (width * across).round().long().clamp_min(STRIDE)
    new_columns = -(-int(new_width.max()) // STEP_PX) * STEP_PX
    grid = _grid(height, new_columns, width, new_width, up, draws, amounts)
    shift = _elastic(n, height, new_columns, generator) * amounts.elastic_px
    grid = grid + shift
    # pixels to [-1, 1] of the source
    grid = torch.stack([(grid[..., 0] + 0.5) / columns * 2 - 1, (grid[..., 1] + 0.5) / height * 2 - 1], -1)
    levels = functional.grid_sample(levels, grid, padding_mode="border", align_corners=False)
    levels = _pen(levels, draws.signed(amounts.stroke))
    levels = _blurred(levels, draws.unsigned(amounts.blur_px))
    levels = paper + (levels - paper) * (1 - draws.unsigned(amounts.contrast_fraction)).view(-1, 1, 1, 1)
    noise = torch.randn(levels.shape, generator=generator, device=levels.device) * draws.unsigned(amounts.noise).view(-1, 1, 1, 1)
    pixels = (levels + noise).round().clamp(0, 255).to(torch.uint8)
    inside = columns_within(new_width, new_columns)[:, None, None]
    return (pixels * inside).squeeze(1).unsqueeze(-1), new_width


class _Draws:
    """Uniform draws, one for each field."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self._n, self._generator = n, generator

    def unsigned(self, most: float) -> Tensor:
        return torch.rand(self._n, generator=self._generator, device=self._generator.device) * most

    def signed(self, most: float) -> Tensor:
        return (torch.rand(self._n, generator=self._generator, device=self._generator.device) * 2 - 1) * most

    def factor(self, fraction: float) -> Tensor:
        return (self.signed(1.0) * math.log1p(fraction)).exp()


def _grid(height: int, columns: int, width: Tensor, new_width: Tensor, up: Tensor, draws: _Draws, amounts: Distortion) -> Tensor:
    """Where each pixel comes from, in pixels: float (B, H, columns, 2), x and y."""
    slant = draws.signed(amounts.slant).view(-1, 1, 1)
    turn = torch.deg2rad(draws.signed(amounts.rotation_deg)).view(-1, 1, 1)
    move = draws.signed(amounts.shift_fraction * height).view(-1, 1, 1)
    rows, places = (torch.arange(n, dtype=torch.float32, device=width.device) for n in (height, columns))
    y, x = torch.meshgrid(rows, places, indexing="ij")
    y, x = y - (height - 1) / 2, x - (new_width.view(-1, 1, 1) - 1) / 2  # from the middle of the field
    from_x = (x + slant * y) * (width / new_width).view(-1, 1, 1)
    from_y = (y + x * turn.tan() + move) / up.view(-1, 1, 1)
    return torch.stack([from_x + (width.view(-1, 1, 1) - 1) / 2, from_y + (height - 1) / 2], -1)


def _elastic(n: int, height: int, columns: int, generator: torch.Generator) -> Tensor:
    """Smooth random displacements of standard deviation 1: float (n, height, columns, 2)."""
    rows, cells = height // _CELL_PX + 3, columns // _CELL_PX + 3
    coarse = (
        torch.randn((n, 2, rows, cells), generator=generator, device=generator.device) * 1.4
    )  # interpolation takes about so much away
    smooth = functional.interpolate(coarse, size=(height, columns), mode="bicubic", align_corners=True)
    return smooth.permute(0, 2, 3, 1)


def _paper(levels: Tensor, width: Tensor) -> Tensor:
    """The level of most pixels of each field, about: the mean, float (B, 1, 1, 1)."""
    inside = columns_within(width, levels.shape[3])[:, None, None]
    total = (levels * inside).sum((1, 2, 3)) / (width * levels.shape[2])
    bright = (levels * inside * (levels >= total.view(-1, 1, 1, 1))).sum((1, 2, 3))
    count = (inside & (levels >= total.view(-1, 1, 1, 1))).sum((1, 2, 3)).clamp_min(1)
    return (bright / count).view(-1, 1, 1, 1)


def _pen(levels: Tensor, stroke: Tensor) -> Tensor:
    """Dark strokes thicker where positive, thinner where negative."""
    darker = -functional.max_pool2d(-levels, 3, 1, 1)
    lighter = functional.max_pool2d(levels, 3, 1, 1)
    share = stroke.view(-1, 1, 1, 1)
    return torch.where(share > 0, levels + (darker - levels) * share, levels + (lighter - levels) * -share * 0.6)


def _blurred(levels: Tensor, sigma_px: Tensor) -> Tensor:
    """A blur by (1/4, 1/2, 1/4) along both axes, as much of it as has the variance of the sigma."""
    share = (2 * sigma_px * sigma_px).clamp_max(1.0).view(-1, 1, 1, 1)
    kernel = torch.tensor([0.25, 0.5, 0.25], device=levels.device)
    padded = functional.pad(levels, (1, 1, 1, 1), mode="replicate")
    smooth = functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, 1, 3)), kernel.view(1, 1, 3, 1))
    return levels + (smooth - levels) * share
