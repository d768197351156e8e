"""What the first layer looks for: its weights as images."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from torch import nn

from convoy.contract.image import ImageSpec
from convoy.training.report.sheet import draw_sheet

MAX_SHOWN: Final = 64
_BELOW, _ABOVE = np.array([33, 102, 172]), np.array([178, 24, 43])  # blue and red, as in ColorBrewer's RdBu


def first_layer(network: nn.Module, image: ImageSpec) -> npt.NDArray[np.float32] | None:
    """The weights that touch the pixels.

    Args:
        network: Takes normalised pixels (N, C, H, W).
        image: Its images.

    Returns:
        float32 (filters, height, width, channels): those of a convolution over the image's channels, or of a dense layer over all
        its pixels; None where the first module with weights is neither.
    """
    layer = next((module for module in network.modules() if any(True for _ in module.parameters(recurse=False))), None)
    height, width, channels = image.dims
    if isinstance(layer, nn.Conv2d) and layer.in_channels == channels and layer.groups == 1:
        weights = layer.weight.detach().float().cpu()  # (filters, C, h, w)
    elif isinstance(layer, nn.Linear) and layer.in_features == height * width * channels:
        weights = layer.weight.detach().float().cpu().view(-1, channels, height, width)
    else:
        return None
    return weights.permute(0, 2, 3, 1).numpy()


def draw_filters(weights: npt.NDArray[np.float32], *, title: str) -> bytes:
    """Draw the first ``MAX_SHOWN`` filters, each on a scale of its own, 0 in the middle.

    Of grey images white is 0, red above, blue below; of colour images grey is 0 in each channel.

    Args:
        weights: float32 (filters, height, width, channels).
        title: What stands above.

    Returns:
        A PNG file.
    """
    shown = weights[:MAX_SHOWN]
    largest = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    scaled = shown / np.where(largest > 0, largest, 1)  # in [-1, 1]
    images = _two_colours(scaled) if shown.shape[3] == 1 else (127.5 + 127.5 * scaled).round().astype(np.uint8)
    return draw_sheet(list(images), None, columns=8 if len(images) > 10 else len(images), title=title)


def _two_colours(scaled: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """From values in [-1, 1], (n, h, w, 1), to colours, uint8 (n, h, w, 3)."""
    towards = np.where(scaled < 0, _BELOW, _ABOVE)  # (n, h, w, 3)
    colours: npt.NDArray[np.uint8] = (255 + (towards - 255) * np.abs(scaled)).round().astype(np.uint8)
    return colours
