"""LeNet5 as the lecture draws it."""

from __future__ import annotations

from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training.recipes.recipe import Architecture


class LeNet5(nn.Module):
    """Two convolutions and three fully connected layers; 61,706 parameters for 10 classes.

    The lecture's form of the network: ReLU and max pooling where the paper has scaled tanh and trainable subsampling, C3
    connected to all maps of S2, and a linear output where the paper has radial basis functions. The paper pads its digits to
    32x32; here C1 pads 28x28 by 2, which is the same.

    Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition, section II.B.
    """

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, kernel_size=5, padding=2)  # 6 (5*5*1 + 1) = 156 parameters
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)  # 16 (5*5*6 + 1) = 2,416
        self.c5 = nn.Linear(16 * 5 * 5, 120)  # 120 (400 + 1) = 48,120
        self.f6 = nn.Linear(120, 84)  # 84 (120 + 1) = 10,164
        self.output = nn.Linear(84, n_classes)  # 10 (84 + 1) = 850
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()

    @classmethod
    def build(cls, image: ImageSpec, n_classes: int, architecture: Architecture) -> LeNet5:  # noqa: ARG003 - offers none yet
        """The network for images of ``image``.

        Raises:
            UsageError: They are not 28x28 grey.
        """
        if image.dims != (28, 28, 1):
            raise UsageError(f"lenet5 takes 28x28 grey images; the data has {image.height_px}x{image.width_px}x{image.channels}.")
        return cls(n_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """From normalised pixels, float (N, 1, 28, 28), to logits, float (N, classes)."""
        x = self.pool(self.relu(self.c1(pixels)))  # (N, 6, 28, 28) -> (N, 6, 14, 14)
        x = self.pool(self.relu(self.c3(x)))  # (N, 16, 10, 10) -> (N, 16, 5, 5)
        x = x.flatten(1)  # (N, 400)
        x = self.relu(self.c5(x))  # (N, 120)
        x = self.relu(self.f6(x))  # (N, 84)
        logits: Tensor = self.output(x)  # (N, classes)
        return logits
