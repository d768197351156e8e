"""Networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from torch import nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training.networks.lenet5 import LeNet5
from convoy.training.recipes.recipe import Architecture


class Builder(Protocol):
    """Builds a network with fresh weights, drawn from torch's global generator.

    The network takes normalised pixels, float (N, C, H, W), and gives logits, float (N, classes); in training mode it may give
    ``TrainingLogits``. It honours the choices of ``architecture`` that it offers and refuses the others where they are not null.
    """

    def __call__(self, image: ImageSpec, n_classes: int, architecture: Architecture) -> nn.Module:
        """The network for images of ``image``.

        Raises:
            UsageError: It does not take such images, or does not offer such a choice.
        """
        ...


NETWORKS: Final[Mapping[str, Builder]] = MappingProxyType({"lenet5": LeNet5.build})


def build_network(name: str, *, image: ImageSpec, n_classes: int, architecture: Architecture | None = None) -> nn.Module:
    """The network ``name`` with fresh weights, drawn from torch's global generator.

    Args:
        name: One of ``NETWORKS``.
        image: The images that it shall take.
        n_classes: How many logits it gives.
        architecture: What is chosen about it; None for what the network is without a choice.

    Raises:
        UsageError: There is no such network, it does not take such images, or it does not offer such a choice.
    """
    if name not in NETWORKS:
        raise UsageError(f"there is no network {name!r}; known: {', '.join(NETWORKS)}.")
    return NETWORKS[name](image, n_classes, architecture or Architecture())
