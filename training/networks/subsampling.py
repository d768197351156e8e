"""The trainable subsampling of the LeNets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Subsampling(nn.Module):
    """Adds the four values of each 2x2 neighbourhood, multiplies by a coefficient and adds a bias, one of each a map.

    The squashing that the paper puts behind it is a module of its own.

    Source: LeCun, Bottou, Bengio, Haffner 1998, section II.B, layer S2.

    Attributes:
        coefficient: float (maps,); fresh ones are 1/4: the mean.
        bias: float (maps,).
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.maps = maps
        self.coefficient = nn.Parameter(torch.full((maps,), 0.25))
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, x: Tensor) -> Tensor:
        """From (N, maps, H, W) to (N, maps, H / 2, W / 2)."""
        total = 4 * functional.avg_pool2d(x, 2)
        return total * self.coefficient.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.maps}"
