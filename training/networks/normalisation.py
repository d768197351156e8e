"""Local response normalisation, which AlexNet, VGG A-LRN and GoogLeNet have."""

from __future__ import annotations

from torch import Tensor, nn


class ResponseNorm(nn.LocalResponseNorm):
    """Each value over ``(2 + 1e-4 * sum of squares over 5 neighbouring maps at its place) ** 0.75``.

    torch (like Caffe) divides the sum by the number of maps, the paper does not: hence the five times larger ``alpha``.

    Source: Krizhevsky, Sutskever, Hinton 2012, section 3.3.
    """

    def __init__(self) -> None:
        super().__init__(size=5, alpha=5e-4, beta=0.75, k=2.0)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, maps, H, W) to the same shape."""
        normalised: Tensor = super().forward(x)
        return normalised
