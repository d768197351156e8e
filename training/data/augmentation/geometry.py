"""Distortions that move pixels: affine maps and smooth random fields, joined into one resampling."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from convoy.training.data.augmentation.draws import Draws
from convoy.training.recipes.recipe import Augmentation

_LARGEST_ASPECT: Final = 4 / 3
_MARGIN_SIGMAS: Final = 2
_NOISE_DEVIATION: Final = math.sqrt((256**2 - 1) / 12)  # of the whole numbers from -128 to 127


def is_affine(amounts: Augmentation) -> bool:
    """Whether images are shifted, turned, scaled or slanted."""
    return bool(amounts.shift_px or amounts.rotation_deg or amounts.scale_fraction or amounts.shear_deg)


def draw_padded_crop(amounts: Augmentation, n: int, generator: torch.Generator) -> Tensor:
    """Where the windows lie, in whole pixels from the middle: (N, 2)."""
    return torch.randint(-amounts.crop_px, amounts.crop_px + 1, (n, 2), generator=generator).float()


def draw_elastic(amounts: Augmentation, n: int, height_px: int, width_px: int, generator: torch.Generator) -> Tensor:
    """Noise at the nodes of a coarse grid: int8 (N, 2, w, h), of which each value is as likely."""
    sigma = amounts.elastic_sigma_px
    shape = (n, 2, len(_nodes(width_px, sigma)), len(_nodes(height_px, sigma)))
    # eight values a draw: what is smoothed needs no more than eight bits, and draws are what a GPU waits for
    draws = torch.empty(-(-math.prod(shape) // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return draws.view(torch.int8)[: math.prod(shape)].view(shape)


def move(pixels: Tensor, amounts: Augmentation, draws: Draws) -> Tensor:
    """Resample each image once, by everything that moves its pixels; outside lies its background.

    Args:
        pixels: uint8 (N, C, H, W).
        amounts: How far.
        draws: For N images.

    Returns:
        float of the same shape, on the scale of ``pixels``; ``pixels`` itself where nothing moves.
    """
    theta = _theta(pixels, amounts, draws)
    if theta is None and draws.elastic is None:
        return pixels
    if theta is None:
        theta = _identity(len(pixels))[:, :2]
    field = None if draws.elastic is None else _field(draws.elastic.to(pixels.device), amounts, *pixels.shape[2:])
    return resample(pixels.float(), theta, field)


def resample(pixels: Tensor, theta: Tensor, field: Tensor | None = None) -> Tensor:
    """Resample each image at the places that its map gives, bilinearly; outside lies the median of its border.

    Args:
        pixels: float (N, C, H, W).
        theta: (N, 2, 3), from places in the result to places in the source, in units of half an image.
        field: (N, 2, H, W), added to the places along x and y, in the same units.

    Returns:
        float of the shape of ``pixels``.
    """
    places = _places(theta.to(pixels.device), *pixels.shape[2:])
    if field is not None:
        places += field
    background = _border_median(pixels)  # (N, C, 1, 1)
    # zero outside, measured from the background: nothing but background moves in
    return grid_sample(pixels - background, places.permute(0, 2, 3, 1), align_corners=False).add_(background)


def _places(theta: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel of the result comes from, (N, 2, H, W), in units of half an image from the middle: x, then y.

    What ``affine_grid`` computes, to the bit on the machine where it was compared, without its matrix product over three
    numbers: 22 times as fast on 512 digits, and no business of TF32 and autocast.
    """
    x, y = _middles(width, theta.device), _middles(height, theta.device).unsqueeze(1)
    of_x, of_y, offset = theta[..., None, None].unbind(dim=2)  # (N, 2, 1, 1) each
    return (of_x * x + of_y * y).add_(offset)


@lru_cache(maxsize=32)
def _middles(length: int, device: torch.device) -> Tensor:
    """The middles of the pixels along an axis."""
    return (torch.linspace(-1, 1, length) * (length - 1) / length if length > 1 else torch.zeros(1)).to(device)


def _theta(pixels: Tensor, amounts: Augmentation, draws: Draws) -> Tensor | None:
    """All affine maps as one, (N, 2, 3): from a place in the result through mirror and crops to the moved source."""
    _, _, height, width = pixels.shape
    theta = None if draws.affine is None else _affine(draws.affine, amounts, height, width)
    inner = [
        None if draws.padded_crop is None else _boxes(torch.ones(1, 2), draws.padded_crop * torch.tensor([2 / width, 2 / height])),
        None if draws.resized_crop is None else _boxes(*_resized_crop(draws.resized_crop, amounts)),
        None if draws.flip is None else _boxes(torch.cat([1 - 2 * draws.flip.float(), torch.ones_like(draws.flip)], 1), None),
    ]
    for box in inner:
        if box is not None:
            theta = box[:, :2] if theta is None else theta @ box
    return theta


def _affine(drawn: Tensor, amounts: Augmentation, height: int, width: int) -> Tensor:
    """Rotation, slant, scale and shift: (N, 2, 3)."""
    turn, slant, scale_x, scale_y, shift_x, shift_y = drawn.unbind(dim=1)
    angle = turn * math.radians(amounts.rotation_deg)
    slant = torch.tan(slant * math.radians(amounts.shear_deg))
    # on a logarithmic scale, so that twice as large and half as large are equally likely
    scale_x = torch.exp(scale_x * math.log1p(amounts.scale_fraction))
    scale_y = torch.exp(scale_y * math.log1p(amounts.scale_fraction))
    shift_x, shift_y = shift_x * amounts.shift_px, shift_y * amounts.shift_px
    cos, sin = torch.cos(angle), torch.sin(angle)
    # in pixels: rotation . slant . scale; an image that is not square turns in pixels too, hence the aspect
    aspect = height / width
    row_x = torch.stack([cos * scale_x, (cos * slant - sin) * scale_y * aspect, shift_x * (2 / width)], dim=1)  # (N, 3)
    row_y = torch.stack([sin * scale_x / aspect, (sin * slant + cos) * scale_y, shift_y * (2 / height)], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _resized_crop(drawn: Tensor, amounts: Augmentation) -> tuple[Tensor, Tensor]:
    """Size and middle of a part of each image, (N, 2) each, over x and y, in units of half an image."""
    smallest = amounts.crop_area_fraction
    area = smallest + (1 - smallest) * drawn[:, 0]
    # its aspect over that of the image, on a logarithmic scale, as far from 1 as a part of this area still fits
    aspect = torch.exp((2 * drawn[:, 1] - 1) * torch.minimum(torch.tensor(math.log(_LARGEST_ASPECT)), -torch.log(area)))
    size = torch.stack([torch.sqrt(area * aspect), torch.sqrt(area / aspect)], dim=1)
    return size, (2 * drawn[:, 2:] - 1) * (1 - size)


def _boxes(size: Tensor, middle: Tensor | None) -> Tensor:
    """The maps from a whole image to a box of it, homogeneous: (N, 2) and (N, 2) to (N, 3, 3)."""
    maps = _identity(max(len(size), 0 if middle is None else len(middle)))
    maps[:, [0, 1], [0, 1]] = size.float()
    if middle is not None:
        maps[:, :2, 2] = middle
    return maps


def _identity(n: int) -> Tensor:
    return torch.eye(3).repeat(n, 1, 1)


def _field(noise: Tensor, amounts: Augmentation, height: int, width: int) -> Tensor:
    """Smooth displacements in units of half an image, (N, 2, H, W), of the recipe's standard deviation at every pixel.

    Simard, Steinkraus and Platt smooth uniform noise, drawn at each pixel, by a Gaussian. Noise at nodes that lie one sigma
    apart gives the same field to within a ten-thousandth of its variance, with a fifth of the draws at sigma 4 on digits.
    Their sigma of 4 and alpha of 34 is a standard deviation of 1.4 pixels.
    """
    device, sigma = noise.device, amounts.elastic_sigma_px
    n, _, w, h = noise.shape
    noise = (noise.float() + 0.5) / _NOISE_DEVIATION
    # two products of large matrices: along y, then along x
    field = noise.view(-1, h) @ _smoothing(height, sigma, device).T  # (N 2 w, H)
    field = field.view(-1, w, height).transpose(1, 2).reshape(-1, w) @ _smoothing(width, sigma, device).T  # (N 2 H, W)
    amount = torch.tensor([2 * amounts.elastic_px / width, 2 * amounts.elastic_px / height], device=device)
    return field.view(n, 2, height, width).mul_(amount.view(2, 1, 1))


def _nodes(length: int, sigma: float) -> Tensor:
    """Where the nodes lie, in pixels: a sigma apart but no closer than pixels, and two sigmas over both ends."""
    apart = max(sigma, 1.0)
    beyond = math.ceil(_MARGIN_SIGMAS * sigma / apart)
    return apart * torch.arange(-beyond, math.ceil((length - 1) / apart) + beyond + 1)


@lru_cache(maxsize=32)
def _smoothing(length: int, sigma: float, device: torch.device) -> Tensor:
    """From noise at nodes to values at pixels, (length, nodes): Gaussians, scaled so that variance 1 stays 1 at every pixel."""
    distance = torch.arange(length)[:, None] - _nodes(length, sigma)
    weights = torch.exp(-0.5 * (distance.double() / sigma).square())
    scaled: Tensor = weights / weights.square().sum(dim=1, keepdim=True).sqrt()
    return scaled.float().to(device)


def _border_median(pixels: Tensor) -> Tensor:
    """The median of each image's border, channel by channel: (N, C, H, W) to (N, C, 1, 1)."""
    border = torch.cat([pixels[:, :, 0, :], pixels[:, :, -1, :], pixels[:, :, :, 0], pixels[:, :, :, -1]], dim=2)
    return border.median(dim=2).values[:, :, None, None]
