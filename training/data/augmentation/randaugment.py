"""RandAugment (Cubuk, Zoph, Shlens and Le 2019), batched: a loop over operations, not over images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from convoy.training.data.augmentation import geometry
from convoy.training.data.augmentation.colour import grey
from convoy.training.data.augmentation.draws import Draws
from convoy.training.recipes.recipe import Augmentation

_LARGEST_MAGNITUDE: Final = 30
# what an operation does at the largest magnitude, as in the paper's code and in torchvision
_LARGEST_SHEAR: Final = 0.3
_LARGEST_SHIFT: Final = 150 / 331  # of the image
_LARGEST_ANGLE_DEG: Final = 30
_LARGEST_CHANGE: Final = 0.9
_MOST_BITS_LOST: Final = 4


def draw(amounts: Augmentation, n: int, generator: torch.Generator) -> Tensor:
    """Which operations each image gets, one after another, and their signs: (N, operations, 2)."""
    shape = (n, amounts.randaugment_operations)
    which = torch.randint(len(OPERATIONS), shape, generator=generator)
    sign = 2 * torch.randint(2, shape, generator=generator) - 1
    return torch.stack([which, sign], dim=2)


def operate(pixels: Tensor, amounts: Augmentation, draws: Draws) -> Tensor:
    """Apply to each image the operations drawn for it, in their order.

    Args:
        pixels: uint8 (N, C, H, W).
        amounts: How strong.
        draws: For N images.

    Returns:
        uint8 of the same shape; ``pixels`` itself where there is no operation.
    """
    if draws.operations is None:
        return pixels
    strength = amounts.randaugment_magnitude / _LARGEST_MAGNITUDE
    for turn in draws.operations.unbind(dim=1):  # (N, 2)
        which, sign = turn.unbind(dim=1)
        result = pixels.clone()
        for index, operation in enumerate(OPERATIONS.values()):
            # found on the CPU, where the draws are: a GPU need not be waited for
            chosen = (which == index).nonzero().squeeze(1)
            if len(chosen):
                signed = strength * sign[chosen].float()
                chosen = chosen.to(pixels.device)
                result[chosen] = operation(pixels[chosen], signed)
        pixels = result
    return pixels


def _identity(pixels: Tensor, strength: Tensor) -> Tensor:
    del strength
    return pixels


def _moved(pixels: Tensor, *, xx: Tensor, xy: Tensor, x: Tensor, yx: Tensor, yy: Tensor, y: Tensor) -> Tensor:
    """Resampled at (xx, xy; yx, yy) times the place in pixels from the middle, plus (x, y) images."""
    aspect = pixels.shape[2] / pixels.shape[3]
    theta = torch.stack([torch.stack([xx, xy * aspect, 2 * x], 1), torch.stack([yx / aspect, yy, 2 * y], 1)], 1)  # (n, 2, 3)
    return _rounded(geometry.resample(pixels.float(), theta))


def _shear_x(pixels: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _moved(pixels, xx=one, xy=_LARGEST_SHEAR * strength, x=zero, yx=zero, yy=one, y=zero)


def _shear_y(pixels: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _moved(pixels, xx=one, xy=zero, x=zero, yx=_LARGEST_SHEAR * strength, yy=one, y=zero)


def _translate_x(pixels: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _moved(pixels, xx=one, xy=zero, x=_LARGEST_SHIFT * strength, yx=zero, yy=one, y=zero)


def _translate_y(pixels: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _moved(pixels, xx=one, xy=zero, x=zero, yx=zero, yy=one, y=_LARGEST_SHIFT * strength)


def _rotate(pixels: Tensor, strength: Tensor) -> Tensor:
    angle = math.radians(_LARGEST_ANGLE_DEG) * strength
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    return _moved(pixels, xx=cos, xy=-sin, x=zero, yx=sin, yy=cos, y=zero)


def _brightness(pixels: Tensor, strength: Tensor) -> Tensor:
    return _blended(pixels, torch.zeros_like(pixels), strength)


def _color(pixels: Tensor, strength: Tensor) -> Tensor:
    return _blended(pixels, grey(pixels.float()), strength) if pixels.shape[1] == 3 else pixels


def _contrast(pixels: Tensor, strength: Tensor) -> Tensor:
    mean = (grey(pixels.float()) if pixels.shape[1] == 3 else pixels.float()).mean(dim=(1, 2, 3), keepdim=True)
    return _blended(pixels, mean, strength)


def _sharpness(pixels: Tensor, strength: Tensor) -> Tensor:
    smooth = pixels.float()
    if min(pixels.shape[2:]) > 2:  # the border stays as it is
        kernel = torch.ones(pixels.shape[1], 1, 3, 3, device=pixels.device)
        kernel[:, :, 1, 1] = 5
        smooth[:, :, 1:-1, 1:-1] = functional.conv2d(pixels.float(), kernel / 13, groups=pixels.shape[1])
    return _blended(pixels, smooth, strength)


def _posterize(pixels: Tensor, strength: Tensor) -> Tensor:
    n_bits = 8 - torch.round(_MOST_BITS_LOST * strength.abs()).to(torch.uint8)
    mask = (255 << (8 - n_bits.int())).bitwise_and(255).to(torch.uint8)
    return pixels & mask.to(pixels.device).view(-1, 1, 1, 1)


def _solarize(pixels: Tensor, strength: Tensor) -> Tensor:
    threshold = 256 * (1 - strength.abs()).to(pixels.device).view(-1, 1, 1, 1)
    return torch.where(pixels >= threshold, 255 - pixels, pixels)


def _autocontrast(pixels: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as vision

    del strength
    stretched: Tensor = vision.autocontrast(_each_channel(pixels))
    return stretched.view(pixels.shape)


def _equalize(pixels: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as vision

    del strength
    equalized: Tensor = vision.equalize(_each_channel(pixels))
    return equalized.view(pixels.shape)


def _each_channel(pixels: Tensor) -> Tensor:
    """Channels as images of their own, (n C, 1, H, W): torchvision takes one or three, and treats each by itself."""
    return pixels.reshape(-1, 1, *pixels.shape[2:])


def _blended(pixels: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """From ``other`` through the image and beyond, by 1 + 0.9 of the strength."""
    factor = (1 + _LARGEST_CHANGE * strength).to(pixels.device).view(-1, 1, 1, 1)
    return _rounded(other + factor * (pixels.float() - other))


def _rounded(pixels: Tensor) -> Tensor:
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


OPERATIONS: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = MappingProxyType(
    {
        "Identity": _identity,
        "ShearX": _shear_x,
        "ShearY": _shear_y,
        "TranslateX": _translate_x,
        "TranslateY": _translate_y,
        "Rotate": _rotate,
        "Brightness": _brightness,
        "Color": _color,
        "Contrast": _contrast,
        "Sharpness": _sharpness,
        "Posterize": _posterize,
        "Solarize": _solarize,
        "AutoContrast": _autocontrast,
        "Equalize": _equalize,
    }
)
"""The paper's 14, by its names: each takes uint8 (n, C, H, W) and strengths from -1 to 1, (n,), on the CPU."""
