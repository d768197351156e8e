"""The last layer of a network, with dropout before it, and the size below which a network stands on a smaller stem."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec

LARGEST_SMALL_PX: Final = 64
"""Up to this height and width, networks made for 224x224 pixels are built in their small-image variant."""


class Head(nn.Linear):
    """A fully connected layer; in training a share of its inputs is left out.

    One module and not two: its weights have the names that they have without dropout, so those of others fit.
    """

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        """From features, float (N, in_features), to logits, float (N, out_features)."""
        if self.training and self.dropout:
            features = functional.dropout(features, self.dropout)
        return super().forward(features)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{super().extra_repr()}, dropout={self.dropout}"


def is_small(image: ImageSpec) -> bool:
    """Whether a network that was made for photos of 224x224 is built in its small-image variant."""
    return max(image.height_px, image.width_px) <= LARGEST_SMALL_PX


def check_size(network: str, image: ImageSpec, least_px: int) -> None:
    """Refuse images that would vanish in a network's pools.

    Raises:
        UsageError: Height or width is below ``least_px``.
    """
    if min(image.height_px, image.width_px) < least_px:
        raise UsageError(
            f"{network} takes images of at least {least_px}x{least_px} pixels; the data has {image.height_px}x{image.width_px}: "
            f"--set image_size_px={least_px} enlarges them."
        )
