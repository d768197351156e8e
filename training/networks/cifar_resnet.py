"""The small residual networks for CIFAR-10, and their plain twins."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from convoy.contract.image import ImageSpec
from convoy.training.networks.choices import choose
from convoy.training.networks.head import Head
from convoy.training.networks.initialisation import draw_as_he
from convoy.training.recipes.recipe import Architecture


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut around them unless it is plain.

    The shortcut has no weights (the paper's option A): where the block halves its maps, it takes every second pixel and lays the
    maps between others of zeros.
    """

    def __init__(self, channels: int, maps: int, *, plain: bool) -> None:
        super().__init__()
        stride = 1 if channels == maps else 2
        self.conv1 = nn.Conv2d(channels, maps, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.conv2 = nn.Conv2d(maps, maps, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.stride, self.added_maps, self.plain = stride, maps - channels, plain

    def forward(self, x: Tensor) -> Tensor:
        """From (N, channels, H, W) to (N, maps, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y if self.plain else y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        before = self.added_maps // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.added_maps - before))


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of n blocks with 16, 32 and 64 maps, the mean over all places, and one output layer.

    It has 6n + 2 layers. With 10 classes, 20 layers have 269,722 parameters, 32 464,154, 44 658,586 and 56 853,018, as their plain
    twins have. The names of the weights are those of Yerlan Idelbayev's PyTorch networks, whose weights load here. Images of any
    size: the mean takes what the last stage gives.

    Source: He, Zhang, Ren, Sun 2015, Deep Residual Learning for Image Recognition, section 4.2.
    """

    def __init__(self, depth: int, n_classes: int = 10, *, channels: int = 3, plain: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        n_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n_blocks, plain=plain)
        self.layer2 = _stage(16, 32, n_blocks, plain=plain)
        self.layer3 = _stage(32, 64, n_blocks, plain=plain)
        self.linear = Head(64, n_classes, dropout)
        draw_as_he(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """From normalised pixels, float (N, C, H, W), to logits, float (N, classes)."""
        x = functional.relu(self.bn1(self.conv1(pixels)))  # (N, 16, 32, 32) from 32x32, as in all shapes below
        x = self.layer1(x)  # (N, 16, 32, 32)
        x = self.layer2(x)  # (N, 32, 16, 16)
        x = self.layer3(x)  # (N, 64, 8, 8)
        x = x.mean(dim=(2, 3))  # (N, 64)
        logits: Tensor = self.linear(x)  # (N, classes)
        return logits


def _stage(channels: int, maps: int, n_blocks: int, *, plain: bool) -> nn.Sequential:
    return nn.Sequential(*(Block(channels if i == 0 else maps, maps, plain=plain) for i in range(n_blocks)))


def build(image: ImageSpec, n_classes: int, architecture: Architecture, *, depth: int, plain: bool) -> CifarResNet:
    """The network for images of ``image``.

    Raises:
        UsageError: Something is chosen that it does not offer.
    """
    choices = choose(f"cifar-{'plain' if plain else 'resnet'}{depth}", architecture, Architecture(dropout=0.0))
    return CifarResNet(depth, n_classes, channels=image.channels, plain=plain, dropout=choices.dropout)
