"""LeNet5 as the paper has it."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from convoy.contract.image import ImageSpec
from convoy.training.networks.activation import make_activation
from convoy.training.networks.choices import Choices, choose
from convoy.training.networks.connection_table import TableConv2d
from convoy.training.networks.digit_image import padding_to_32
from convoy.training.networks.initialisation import draw_as_lecun
from convoy.training.networks.radial_basis import N_UNITS, RadialBasis
from convoy.training.networks.subsampling import Subsampling
from convoy.training.recipes.recipe import Architecture

C3_TABLE: Final = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),  # three neighbours
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),  # four neighbours
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),  # two pairs
    (0, 1, 2, 3, 4, 5),
)
"""For each of C3's 16 maps, the maps of S2 that it sees (the paper's table I): 60 connections."""


class LeNet5Of1998(nn.Module):
    """The network of the paper, layer by layer: 60,000 parameters that are trained, as it counts.

    Its trainable subsampling, its connection table for C3, its squashing 1.7159 tanh(2x / 3) after every layer up to F6, and
    radial basis functions with fixed targets as output. The logits are minus the squared distances: their cross entropy is the
    paper's criterion (equation 9) without the constant that stands for what is no character.

    Digits of 28x28 are brought to 32x32 by repeating their border; in MNIST that is the background.

    Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition, section II.B.
    """

    def __init__(self, n_classes: int, choices: Choices, *, channels: int = 1, padding: int = 2) -> None:
        super().__init__()
        self.pad = nn.ReplicationPad2d(padding) if padding else nn.Identity()
        self.c1 = nn.Conv2d(channels, 6, kernel_size=5)  # 6 (5*5 + 1) = 156 parameters, on grey images
        self.c1_activation = make_activation(choices.activation)
        self.s2 = Subsampling(6)  # 6 * 2 = 12
        self.s2_activation = make_activation(choices.activation)
        self.c3 = TableConv2d(C3_TABLE, in_channels=6, kernel_size=5)  # 60 * 5*5 + 16 = 1,516
        self.c3_activation = make_activation(choices.activation)
        self.s4 = Subsampling(16)  # 16 * 2 = 32
        self.s4_activation = make_activation(choices.activation)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)  # 120 (16 * 5*5 + 1) = 48,120
        self.c5_activation = make_activation(choices.activation)
        self.f6 = nn.Linear(120, N_UNITS)  # 84 (120 + 1) = 10,164
        self.f6_activation = make_activation(choices.activation)
        self.output = RadialBasis(n_classes)  # none
        draw_as_lecun(self)

    @classmethod
    def build(cls, image: ImageSpec, n_classes: int, architecture: Architecture) -> LeNet5Of1998:
        """The network for images of ``image``.

        Raises:
            UsageError: They are neither 28x28 nor 32x32, or something is chosen that it does not offer.
        """
        choices = choose("lenet5-1998", architecture, Architecture(activation="scaled-tanh"))
        return cls(n_classes, choices, channels=image.channels, padding=padding_to_32("lenet5-1998", image))

    def forward(self, pixels: Tensor) -> Tensor:
        """From normalised pixels, float (N, C, 28, 28) or (N, C, 32, 32), to logits, float (N, classes), at most 0."""
        x = self.c1_activation(self.c1(self.pad(pixels)))  # (N, 6, 28, 28)
        x = self.s2_activation(self.s2(x))  # (N, 6, 14, 14)
        x = self.c3_activation(self.c3(x))  # (N, 16, 10, 10)
        x = self.s4_activation(self.s4(x))  # (N, 16, 5, 5)
        x = self.c5_activation(self.c5(x)).flatten(1)  # (N, 120, 1, 1) -> (N, 120)
        x = self.f6_activation(self.f6(x))  # (N, 84)
        logits: Tensor = self.output(x)  # (N, classes)
        return logits
