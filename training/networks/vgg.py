"""The VGG networks, configurations A to E."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from torch import nn
from torchvision.models import VGG

from convoy.contract.image import ImageSpec
from convoy.training.networks.choices import Choices, choose
from convoy.training.networks.head import check_size, is_small
from convoy.training.networks.initialisation import draw_as_he
from convoy.training.networks.normalisation import ResponseNorm
from convoy.training.recipes.recipe import Architecture

_Layer: TypeAlias = "int | Literal['pool', 'lrn', '1x1']"

# Table 1 of the paper: a number is a 3x3 convolution of so many maps; "1x1" one of 1x1 that keeps their number.
CONFIGURATIONS: Final[Mapping[str, tuple[_Layer, ...]]] = MappingProxyType(
    {
        "a": (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
        "a-lrn": (64, "lrn", "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
        "b": (64, 64, "pool", 128, 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
        "c": (64, 64, "pool", 128, 128, "pool", *(256, 256, "1x1", "pool"), *(512, 512, "1x1", "pool") * 2),
        "d": (64, 64, "pool", 128, 128, "pool", *(256,) * 3, "pool", *(512,) * 3, "pool", *(512,) * 3, "pool"),
        "e": (64, 64, "pool", 128, 128, "pool", *(256,) * 4, "pool", *(512,) * 4, "pool", *(512,) * 4, "pool"),
    }
)  # fmt: skip

_SMALL_HIDDEN: Final = 512


def build(image: ImageSpec, n_classes: int, architecture: Architecture, *, configuration: str) -> nn.Module:
    """The VGG of torchvision with the layers of a configuration: A, B, D and E have its layers and its names of weights.

    Parameters for 1,000 classes: A and A-LRN 132,863,336, B 133,047,848, C 133,638,952, D 138,357,544, E 143,667,240. First
    weights are torchvision's (He and others 2015 for convolutions), where the paper starts the deeper configurations from A.
    With batch normalisation, A-LRN keeps its response normalisation.

    On images up to 64x64 the hidden layers have 512 units, on one place for each map of the last pool, as is usual on CIFAR-10.

    Source: Simonyan, Zisserman 2014, Very Deep Convolutional Networks for Large-Scale Image Recognition, section 2.

    Raises:
        UsageError: The images are below 32x32, or something is chosen that it does not offer.
    """
    name = f"vgg-{configuration}"
    offered = Architecture(batch_norm="none", dropout=0.5)
    choices = choose(name, architecture, offered, batch_norms=("none", "conv-bn-relu"))
    check_size(name, image, 32)
    features = nn.Sequential(*_features(CONFIGURATIONS[configuration], image.channels, choices))
    if not is_small(image):
        network: nn.Module = VGG(features, num_classes=n_classes, dropout=choices.dropout)
        return network
    small = nn.Sequential(
        OrderedDict(features=features, avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=_head(n_classes, choices))
    )
    draw_as_he(small)
    return small


def _head(n_classes: int, choices: Choices) -> nn.Sequential:
    """As torchvision's, with fewer units."""
    return nn.Sequential(
        nn.Linear(512, _SMALL_HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(choices.dropout),
        nn.Linear(_SMALL_HIDDEN, _SMALL_HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(choices.dropout),
        nn.Linear(_SMALL_HIDDEN, n_classes),
    )


def _features(layers: tuple[_Layer, ...], channels: int, choices: Choices) -> Iterator[nn.Module]:
    for layer in layers:
        if layer == "pool":
            yield nn.MaxPool2d(2)
        elif layer == "lrn":
            yield ResponseNorm()
        else:
            maps = channels if layer == "1x1" else layer
            yield nn.Conv2d(channels, maps, 1) if layer == "1x1" else nn.Conv2d(channels, maps, 3, padding=1)
            if choices.batch_norm == "conv-bn-relu":
                yield nn.BatchNorm2d(maps)
            yield nn.ReLU(inplace=True)
            channels = maps
