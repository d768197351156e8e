"""A network with its preprocessing: what is trained, evaluated and exported, as one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Preprocessing
from convoy.training.networks.lenet5 import LeNet5
from convoy.training.networks.preprocessing import PixelPreprocessing

NETWORKS: Final[Mapping[str, Callable[[ImageSpec, int], nn.Module]]] = MappingProxyType({"lenet5": LeNet5.build})
"""By name, how a network is built for an image and a number of classes."""


class ImageClassifier(nn.Module):
    """Raw pixels in, logits out.

    Attributes:
        preprocessing: From uint8 NHWC to normalised float NCHW; no trained weights.
        network: From there to logits.
    """

    def __init__(self, preprocessing: PixelPreprocessing, network: nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """From raw pixels, uint8 (N, H, W, C), to logits, float (N, classes)."""
        logits: Tensor = self.network(self.preprocessing(image))
        return logits

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())


def build_network(name: str, *, image: ImageSpec, n_classes: int) -> nn.Module:
    """The network ``name`` with fresh weights, drawn from torch's global generator.

    Raises:
        UsageError: There is no such network, or it does not take such images.
    """
    if name not in NETWORKS:
        raise UsageError(f"there is no network {name!r}; known: {', '.join(NETWORKS)}.")
    return NETWORKS[name](image, n_classes)


def build_classifier(name: str, *, image: ImageSpec, n_classes: int, preprocessing: Preprocessing) -> ImageClassifier:
    """The network ``name`` with fresh weights behind its preprocessing.

    Raises:
        UsageError: There is no such network, it does not take such images, or the preprocessing is for other channels.
    """
    if {len(preprocessing.mean), len(preprocessing.std)} != {image.channels}:
        raise UsageError(
            f"normalisation: expected a mean and a std for each of {image.channels} channels, "
            f"found {len(preprocessing.mean)} and {len(preprocessing.std)}."
        )
    return ImageClassifier(PixelPreprocessing(preprocessing), build_network(name, image=image, n_classes=n_classes))
