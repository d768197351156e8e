"""The lecture's convolutional LeNet300: one or two convolutions before the fully connected layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training.networks.choices import Choices, choose
from convoy.training.networks.stage import after_convolution, after_hidden, stride_of
from convoy.training.recipes.recipe import Architecture


class ConvolutionalLeNet300(nn.Module):
    """Convolutions of 5x5, each with or without a 2x2 pool behind it, then FC-100 and the output; images of any size.

    The convolutions are wide: zeros around the image keep its size. Only then do the lecture's numbers come out, on 28x28 grey
    images and 10 classes:

    ============================ ============================== ======= =======
    layers                       parameters                     exact   lecture
    ============================ ============================== ======= =======
    Conv-6                       156 + 470,500 + 1,010          471,666 400k+
    Conv-6, pool                 156 + 117,700 + 1,010          118,866 118k
    Conv-6, pool, Conv-16, pool  156 + 2,416 + 78,500 + 1,010    82,082 82k
    ============================ ============================== ======= =======

    The first is 18 % more than the lecture says. Narrow convolutions would give 346,866 (FC-100 on 24x24x6), 87,666 and 29,282.
    A feature of the second pool sees 16x16 pixels either way.

    Source: the lecture, after LeCun, Bottou, Bengio, Haffner 1998, section II.A.
    """

    def __init__(self, image: ImageSpec, maps: Sequence[int], n_classes: int, choices: Choices, *, halves: bool = True) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels: int = image.channels
        height, width = image.height_px, image.width_px
        for i, n in enumerate(maps, start=1):
            layers[f"conv{i}"] = nn.Conv2d(channels, n, kernel_size=5, padding=2, stride=stride_of(choices) if halves else 1)
            layers[f"after_conv{i}"] = after_convolution(n, choices, halves=halves)
            channels = n
            if halves and choices.downsampling == "pool":
                height, width = height // 2, width // 2
            elif halves:  # a stride of 2 keeps the last row of an odd number
                height, width = (height + 1) // 2, (width + 1) // 2
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(channels * height * width, 100)
        layers["after_fc1"] = after_hidden(choices)
        layers["output"] = nn.Linear(100, n_classes)
        self.layers = nn.Sequential(layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """From normalised pixels, float (N, C, H, W), to logits, float (N, classes)."""
        logits: Tensor = self.layers(pixels)
        return logits


def build(
    image: ImageSpec, n_classes: int, architecture: Architecture, *, name: str, maps: Sequence[int], halves: bool
) -> ConvolutionalLeNet300:
    """The network for images of ``image``.

    Raises:
        UsageError: Something is chosen that it does not offer, or the images vanish in its pools.
    """
    offered = Architecture(activation="relu", batch_norm="none", dropout=0.0)
    if halves:
        offered = offered.model_copy(update={"pooling": "max", "downsampling": "pool"})
    choices = choose(name, architecture, offered)
    least = 2 ** len(maps) if halves else 1
    if min(image.height_px, image.width_px) < least:
        raise UsageError(
            f"{name} takes images of at least {least}x{least} pixels; the data has {image.height_px}x{image.width_px}: "
            "--set image_size_px=28 brings them to a size."
        )
    return ConvolutionalLeNet300(image, maps, n_classes, choices, halves=halves)
