"""The residual networks for photos, and the plain networks that the paper sets beside them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from convoy.contract.image import ImageSpec
from convoy.training.networks.choices import choose
from convoy.training.networks.head import Head, is_small
from convoy.training.recipes.recipe import Architecture


class PlainBlock(BasicBlock):  # type: ignore[misc]  # torchvision has no types
    """Two 3x3 convolutions, each with batch normalisation and ReLU: torchvision's basic block without its shortcut."""

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, *rest: Any, **options: Any
    ) -> None:
        del downsample  # the convolution of a shortcut
        super().__init__(inplanes, planes, stride, None, *rest, **options)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, inplanes, H, W) to (N, planes, H / stride, W / stride)."""
        x = self.relu(self.bn1(self.conv1(x)))
        y: Tensor = self.relu(self.bn2(self.conv2(x)))
        return y


LAYERS: Final[Mapping[str, tuple[type[nn.Module], tuple[int, int, int, int]]]] = MappingProxyType(
    {
        "resnet18": (BasicBlock, (2, 2, 2, 2)),
        "resnet34": (BasicBlock, (3, 4, 6, 3)),
        "resnet50": (Bottleneck, (3, 4, 6, 3)),
        "resnet101": (Bottleneck, (3, 4, 23, 3)),
        "resnet152": (Bottleneck, (3, 8, 36, 3)),
        "plain18": (PlainBlock, (2, 2, 2, 2)),
        "plain34": (PlainBlock, (3, 4, 6, 3)),
    }
)
"""The block of each network and how many of them its four stages have (the paper's table 1)."""


def build(image: ImageSpec, n_classes: int, architecture: Architecture, *, name: str) -> nn.Module:
    """The ResNet of torchvision, with its blocks or with plain ones.

    Parameters for 1,000 classes: 11,689,512 with 18 layers, 21,797,672 with 34, 25,557,032 with 50, 44,549,160 with 101 and
    60,192,808 with 152; plain ones have 173,824 fewer than those of 18 and 34 layers. Where a stage halves its maps, torchvision's
    shortcut is a 1x1 convolution (the paper's option B; its figure 4 shows option A, which has no weights), and its bottlenecks
    halve in their 3x3 convolution, the paper's in the first 1x1.

    On images up to 64x64 the stem is a 3x3 convolution of stride 1 without a pool behind it.

    Source: He, Zhang, Ren, Sun 2015, Deep Residual Learning for Image Recognition, section 3.3 and table 1.

    Raises:
        UsageError: Something is chosen that the network does not offer.
    """
    choices = choose(name, architecture, Architecture(dropout=0.0))
    block, layers = LAYERS[name]
    network = ResNet(block, list(layers), num_classes=n_classes)
    if is_small(image):
        network.conv1 = nn.Conv2d(image.channels, 64, kernel_size=3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif image.channels != 3:
        network.conv1 = nn.Conv2d(image.channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.fc = Head(network.fc.in_features, n_classes, choices.dropout)
    built: nn.Module = network
    return built
