"""torchvision's classification networks by torchvision's names."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from torchvision import models

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training.networks.choices import choose
from convoy.training.networks.head import Head
from convoy.training.recipes.recipe import Architecture

PREFIX: Final = "torchvision-"
"""What may stand before a name, and must where a network of Convoy's own has the same one."""


def torchvision_names() -> tuple[str, ...]:
    """The names of all that torchvision has for classification."""
    return tuple(models.list_models(module=models))


def build(image: ImageSpec, n_classes: int, architecture: Architecture, *, name: str) -> nn.Module:
    """The network as torchvision has it, with fresh weights: the same layers on every size of image.

    Networks that are made for one size (vision transformers) are made for that of ``image``. Those with auxiliary heads are built
    without them. On grey images, the first convolution has one channel with the sum of the weights that it draws for three: it
    computes what the network computes on the same image in red, green and blue.

    Args:
        image: The images that it shall take.
        n_classes: How many logits it gives.
        architecture: ``dropout`` can be chosen: of the inputs of the last layer. Without a choice it is torchvision's.
        name: torchvision's name, one of ``torchvision_names()``.

    Raises:
        UsageError: Something is chosen that the network does not offer, or it does not take such images.
    """
    dropout = architecture.dropout
    choose(name, architecture, Architecture(dropout=0.0))
    options: dict[str, Any] = {"num_classes": n_classes}
    if name.startswith("vit_"):
        if image.height_px != image.width_px:
            raise UsageError(
                f"{name} takes square images; the data has {image.height_px}x{image.width_px}: --set image_size_px=224."
            )
        options["image_size"] = image.height_px
    elif name.startswith("maxvit_"):
        options["input_size"] = (image.height_px, image.width_px)
    elif name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        network: nn.Module = models.get_model(name, weights=None, **options)
    except (AssertionError, ValueError) as error:  # a size that the patches or windows do not divide
        raise UsageError(
            f"{name} does not take images of {image.height_px}x{image.width_px}: {error} --set image_size_px=224."
        ) from error
    if image.channels == 1:
        _make_grey(network)
    if dropout is not None:
        _set_dropout(network, dropout)
    return network


@torch.no_grad()
def _make_grey(network: nn.Module) -> None:
    name, rgb = next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    grey = nn.Conv2d(
        1,
        rgb.out_channels,
        rgb.kernel_size,  # type: ignore[arg-type]
        stride=rgb.stride,  # type: ignore[arg-type]
        padding=rgb.padding,  # type: ignore[arg-type]
        bias=rgb.bias is not None,
    )
    grey.weight.copy_(rgb.weight.sum(dim=1, keepdim=True))
    if grey.bias is not None and rgb.bias is not None:
        grey.bias.copy_(rgb.bias)
    network.set_submodule(name, grey)


@torch.no_grad()
def _set_dropout(network: nn.Module, dropout: float) -> None:
    """Leave out inputs of the last layer: by the dropout that stands before it, or by a ``Head`` in its place."""
    leaves = [(name, layer) for name, layer in network.named_modules() if not list(layer.children())]
    place = max(i for i, (_, layer) in enumerate(leaves) if isinstance(layer, (nn.Linear, nn.Conv2d)))
    (_, before), (name, last) = leaves[place - 1 : place + 1]
    if isinstance(before, nn.Dropout):
        before.p = dropout
        return
    if not isinstance(last, nn.Linear):
        raise TypeError(f"expected a fully connected layer at the end, found {last}")  # none of torchvision's is so
    head = Head(last.in_features, last.out_features, dropout, bias=last.bias is not None)
    head.load_state_dict(last.state_dict())
    network.set_submodule(name, head)
