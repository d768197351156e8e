"""From raw pixels of fields to what the networks take: light or dark paper, faint or dark ink, all alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEAST_STD = 4.0
"""Grey levels: below this contrast a field is taken for empty paper, and its noise is not blown up."""
_SKEWED = 1e-2


class FieldStandardising(nn.Module):
    """Each field to mean 0 and standard deviation 1, its ink positive; what is right of the field becomes 0.

    Ink covers less than half of a field, so grey levels are skewed towards it: where the third moment is negative, ink is dark. The
    moments are sums of whole numbers, which float64 holds exactly: in any order of addition, on any device and for any padding the
    same field gives the same pixels. Where levels are hardly skewed at all, ink is taken to be light.
    """

    dtype_of: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dtype_of", torch.zeros(()), persistent=False)  # follows .double()

    def forward(self, image: Tensor, width: Tensor) -> Tensor:
        """Standardise a batch.

        Args:
            image: uint8 (B, H, W, 1).
            width: int64 (B,), columns of each field, from 1 to W.

        Returns:
            float (B, 1, H, W), of the module's dtype.
        """
        inside = columns_within(width, image.shape[2]).view(-1, 1, 1, image.shape[2])  # (B, 1, 1, W)
        levels = image.permute(0, 3, 1, 2).to(torch.float64) * inside
        n = width.to(torch.float64) * image.shape[1]
        squares = levels * levels
        mean = levels.sum((1, 2, 3)) / n
        second = squares.sum((1, 2, 3)) / n
        third = (squares * levels).sum((1, 2, 3)) / n
        variance = (second - mean * mean).clamp_min(0.0)
        skewness = third - 3 * mean * second + 2 * mean * mean * mean  # times the cube of the standard deviation
        std = variance.sqrt().clamp_min(_LEAST_STD)
        sign = torch.where(skewness < -_SKEWED * std * std * std, -1.0, 1.0).to(torch.float64)
        standard = (levels - mean.view(-1, 1, 1, 1)) * (sign / std).view(-1, 1, 1, 1) * inside
        return standard.to(self.dtype_of.dtype)


def columns_within(width: Tensor, n_columns: int, stride: int = 1) -> Tensor:
    """Which columns of a map begin within each field: bool (B, ``n_columns``).

    Args:
        width: int64 (B,), of each field in pixels.
        n_columns: Columns of the map.
        stride: Pixels from one column to the next.
    """
    return torch.arange(n_columns, device=width.device) * stride < width.unsqueeze(-1)


def frames_within(width: Tensor, stride: int) -> Tensor:
    """How many frames of ``stride`` pixels begin within each field: int64 (B,)."""
    return torch.div(width + (stride - 1), stride, rounding_mode="trunc")
