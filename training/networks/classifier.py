"""A network with its preprocessing: what is trained, evaluated and exported, as one module."""

from __future__ import annotations

from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Preprocessing
from convoy.training.networks.preprocessing import PixelPreprocessing
from convoy.training.networks.registry import build_network
from convoy.training.recipes.recipe import Architecture


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


def build_classifier(
    name: str, *, image: ImageSpec, n_classes: int, preprocessing: Preprocessing, architecture: Architecture | None = None
) -> ImageClassifier:
    """The network ``name`` with fresh weights behind its preprocessing.

    Raises:
        UsageError: There is no such network, it does not take such images, or the preprocessing is for other channels.
    """
    if {len(preprocessing.mean), len(preprocessing.std)} != {image.channels}:
        raise UsageError(
            f"normalisation: expected a mean and a std for each of {image.channels} channels, "
            f"found {len(preprocessing.mean)} and {len(preprocessing.std)}."
        )
    network = build_network(name, image=image, n_classes=n_classes, architecture=architecture)
    return ImageClassifier(PixelPreprocessing(preprocessing), network)
