"""The linear classifier, and LeNet300: fully connected layers on the pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from convoy.contract.image import ImageSpec
from convoy.training.networks.choices import Choices, choose
from convoy.training.networks.stage import after_hidden
from convoy.training.recipes.recipe import Architecture


class FullyConnected(nn.Module):
    """Hidden layers one after the other, and a linear output; images of any size.

    Parameters on 28x28 grey images and 10 classes, m (n + 1) for m units on n inputs: without a hidden layer 7,850; with 300
    units 238,510; with 300 and 100 units 266,610.

    Source: LeCun, Bottou, Bengio, Haffner 1998, sections III.C.1 (linear), III.C.4 (one hidden layer) and III.C.5 (two).
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int], n_classes: int, choices: Choices) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, units in enumerate(hidden, start=1):
            layers[f"fc{i}"] = nn.Linear(n_inputs, units)
            layers[f"after_fc{i}"] = after_hidden(choices)
            n_inputs = units
        layers["output"] = nn.Linear(n_inputs, n_classes)
        self.layers = nn.Sequential(layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """From normalised pixels, float (N, C, H, W), to logits, float (N, classes)."""
        logits: Tensor = self.layers(pixels)
        return logits


def build(image: ImageSpec, n_classes: int, architecture: Architecture, *, name: str, hidden: Sequence[int]) -> FullyConnected:
    """The network for images of ``image``.

    Raises:
        UsageError: Something is chosen that it does not offer.
    """
    offered = Architecture(activation="relu", dropout=0.0) if hidden else Architecture()
    return FullyConnected(image.height_px * image.width_px * image.channels, hidden, n_classes, choose(name, architecture, offered))
