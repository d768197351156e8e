"""LeNet5 as the lecture draws it."""

from __future__ import annotations

from torch import Tensor, nn

from convoy.contract.image import ImageSpec
from convoy.training.networks.choices import Choices, choose
from convoy.training.networks.digit_image import padding_to_32
from convoy.training.networks.stage import after_convolution, after_hidden, stride_of
from convoy.training.recipes.recipe import Architecture


class LeNet5(nn.Module):
    """Two convolutions and three fully connected layers; 61,706 parameters for 10 classes.

    The lecture's form of the network: ReLU and max pooling where the paper has scaled tanh and trainable subsampling, C3
    connected to all maps of S2, and a linear output where the paper has radial basis functions (``lenet5_1998`` has them). The
    paper pads its digits to 32x32; here C1 pads 28x28 by 2, which is the same. Images of 32x32 are taken as they are.

    Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition, section II.B.
    """

    def __init__(self, n_classes: int = 10, choices: Choices | None = None, *, channels: int = 1, padding: int = 2) -> None:
        super().__init__()
        choices = choices or Choices()
        stride = stride_of(choices)
        # 6 (5*5*1 + 1) = 156 parameters, on grey images
        self.c1 = nn.Conv2d(channels, 6, kernel_size=5, padding=padding, stride=stride)
        self.s2 = after_convolution(6, choices)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5, stride=stride)  # 16 (5*5*6 + 1) = 2,416
        self.s4 = after_convolution(16, choices)
        self.c5 = nn.Linear(16 * 5 * 5, 120)  # 120 (400 + 1) = 48,120
        self.after_c5 = after_hidden(choices)
        self.f6 = nn.Linear(120, 84)  # 84 (120 + 1) = 10,164
        self.after_f6 = after_hidden(choices)
        self.output = nn.Linear(84, n_classes)  # 10 (84 + 1) = 850

    @classmethod
    def build(cls, image: ImageSpec, n_classes: int, architecture: Architecture) -> LeNet5:
        """The network for images of ``image``.

        Raises:
            UsageError: They are neither 28x28 nor 32x32.
        """
        offered = Architecture(activation="relu", pooling="max", downsampling="pool", batch_norm="none", dropout=0.0)
        choices = choose("lenet5", architecture, offered)
        return cls(n_classes, choices, channels=image.channels, padding=padding_to_32("lenet5", image))

    def forward(self, pixels: Tensor) -> Tensor:
        """From normalised pixels, float (N, C, 28, 28) or (N, C, 32, 32), to logits, float (N, classes)."""
        x = self.s2(self.c1(pixels))  # (N, 6, 28, 28) -> (N, 6, 14, 14)
        x = self.s4(self.c3(x))  # (N, 16, 10, 10) -> (N, 16, 5, 5)
        x = x.flatten(1)  # (N, 400)
        x = self.after_c5(self.c5(x))  # (N, 120)
        x = self.after_f6(self.f6(x))  # (N, 84)
        logits: Tensor = self.output(x)  # (N, classes)
        return logits
