"""Networks by name: Convoy's own, torchvision's, and those that installed packages add."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from torch import nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training import plugins
from convoy.training.networks.lenet5 import LeNet5
from convoy.training.recipes.recipe import Architecture

GROUP: Final = "convoy.networks"
"""The group of entry points in which a package adds networks: by name, a ``Builder`` each."""


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


def _from(module: str, function: str = "build", **configuration: Any) -> Builder:
    """A builder of the module, which is imported when a network is built: torchvision alone takes a second to import."""

    def build(image: ImageSpec, n_classes: int, architecture: Architecture) -> nn.Module:
        found: Any = importlib.import_module(f"convoy.training.networks.{module}")
        for name in function.split("."):
            found = getattr(found, name)
        network: nn.Module = found(image, n_classes, architecture, **configuration)
        return network

    return build


NETWORKS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "linear": _from("fully_connected", name="linear", hidden=()),
        "lenet300-1": _from("fully_connected", name="lenet300-1", hidden=(300,)),
        "lenet300": _from("fully_connected", name="lenet300", hidden=(300, 100)),
        "lenet300-conv": _from("lenet300", name="lenet300-conv", maps=(6,), halves=False),
        "lenet300-conv-pool": _from("lenet300", name="lenet300-conv-pool", maps=(6,), halves=True),
        "lenet300-conv-pool2": _from("lenet300", name="lenet300-conv-pool2", maps=(6, 16), halves=True),
        "lenet1": _from("lenet1", "LeNet1.build"),
        "lenet5": LeNet5.build,
        "lenet5-1998": _from("lenet5_1998", "LeNet5Of1998.build"),
        "alexnet": _from("alexnet", "AlexNet.build"),
        **{f"vgg-{name}": _from("vgg", configuration=name) for name in ("a", "a-lrn", "b", "c", "d", "e")},
        "googlenet": _from("googlenet", "GoogLeNet.build"),
        **{
            name: _from("resnet", name=name)
            for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "plain18", "plain34")
        },
        **{f"cifar-resnet{depth}": _from("cifar_resnet", depth=depth, plain=False) for depth in (20, 32, 44, 56)},
        **{f"cifar-plain{depth}": _from("cifar_resnet", depth=depth, plain=True) for depth in (20, 32, 44, 56)},
    }
)
"""Convoy's own: those of the lecture."""


def build_network(name: str, *, image: ImageSpec, n_classes: int, architecture: Architecture | None = None) -> nn.Module:
    """The network ``name`` with fresh weights, drawn from torch's global generator.

    Args:
        name: One of ``NETWORKS``, any of torchvision's classification networks by torchvision's name (with ``torchvision-`` before
            it where Convoy has another of that name), or one that an installed package adds.
        image: The images that it shall take.
        n_classes: How many logits it gives.
        architecture: What is chosen about it; None for what the network is without a choice.

    Raises:
        UsageError: There is no such network, it does not take such images, or it does not offer such a choice.
        MissingDependencyError: The package that adds it cannot be loaded.
    """
    return find_builder(name)(image, n_classes, architecture or Architecture())


def find_builder(name: str) -> Builder:
    """What builds the network ``name``.

    Raises:
        UsageError: There is no such network.
        MissingDependencyError: The package that adds it cannot be loaded.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    from convoy.training.networks.torchvision_networks import PREFIX, torchvision_names

    library_name = name.removeprefix(PREFIX)
    if library_name in torchvision_names():
        return _from("torchvision_networks", name=library_name)
    builder = plugins.find(GROUP, name, what="a function of image, n_classes and architecture", fits=callable)
    if builder is not None:
        added: Builder = builder
        return added
    close = difflib.get_close_matches(name, [*NETWORKS, *plugins.names(GROUP), *torchvision_names()], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join([*NETWORKS, *plugins.names(GROUP)])}, and torchvision's."
    raise UsageError(f"there is no network {name!r}: {hint}")
