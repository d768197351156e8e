"""LeNet1, the first of the LeNets that was built into products."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from convoy.contract.image import ImageSpec
from convoy.training.networks.activation import make_activation
from convoy.training.networks.choices import Choices, choose
from convoy.training.networks.connection_table import TableConv2d
from convoy.training.networks.digit_image import padding_to_32
from convoy.training.networks.initialisation import draw_as_lecun
from convoy.training.networks.subsampling import Subsampling
from convoy.training.recipes.recipe import Architecture

H3_TABLE: Final = ((0,), (0, 1), (0, 1), (1,), (0, 1), (0, 1), (2,), (2, 3), (2, 3), (3,), (2, 3), (2, 3))
"""For each of H3's 12 maps, the maps of H2 that it sees: 20 connections."""


class LeNet1(nn.Module):
    """Two convolutions with trainable subsampling behind each, and one output layer: 2,578 parameters, as the paper counts.

    The paper centres its 16x16 digits in 28x28, which is the size of MNIST's; no padding. H3's maps see one or two of H2's.
    The output is linear, where the paper squashes it and trains on squared errors.

    Source: LeCun and others 1990, Handwritten Digit Recognition with a Back-Propagation Network, section 4 and table 1; the
    error of 1.7 % on MNIST is from LeCun, Bottou, Bengio, Haffner 1998, section III.C.6.
    """

    def __init__(self, n_classes: int, choices: Choices, *, channels: int = 1, size_px: int = 28) -> None:
        super().__init__()
        side = ((size_px - 4) // 2 - 4) // 2  # 4 on 28x28, 5 on 32x32
        self.h1 = nn.Conv2d(channels, 4, kernel_size=5)  # 4 (5*5 + 1) = 104 parameters, on grey images
        self.h1_activation = make_activation(choices.activation)
        self.h2 = Subsampling(4)  # 4 * 2 = 8
        self.h2_activation = make_activation(choices.activation)
        self.h3 = TableConv2d(H3_TABLE, in_channels=4, kernel_size=5)  # 20 * 5*5 + 12 = 512
        self.h3_activation = make_activation(choices.activation)
        self.h4 = Subsampling(12)  # 12 * 2 = 24
        self.h4_activation = make_activation(choices.activation)
        self.output = nn.Linear(12 * side * side, n_classes)  # 10 (192 + 1) = 1,930
        draw_as_lecun(self)

    @classmethod
    def build(cls, image: ImageSpec, n_classes: int, architecture: Architecture) -> LeNet1:
        """The network for images of ``image``.

        Raises:
            UsageError: They are neither 28x28 nor 32x32, or something is chosen that it does not offer.
        """
        choices = choose("lenet1", architecture, Architecture(activation="scaled-tanh"))
        padding_to_32("lenet1", image)  # refuses other sizes
        return cls(n_classes, choices, channels=image.channels, size_px=image.height_px)

    def forward(self, pixels: Tensor) -> Tensor:
        """From normalised pixels, float (N, C, 28, 28) or (N, C, 32, 32), to logits, float (N, classes)."""
        x = self.h1_activation(self.h1(pixels))  # (N, 4, 24, 24)
        x = self.h2_activation(self.h2(x))  # (N, 4, 12, 12)
        x = self.h3_activation(self.h3(x))  # (N, 12, 8, 8)
        x = self.h4_activation(self.h4(x))  # (N, 12, 4, 4)
        logits: Tensor = self.output(x.flatten(1))  # (N, classes)
        return logits
