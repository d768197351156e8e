"""GoogLeNet as its paper has it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from convoy.contract.image import ImageSpec
from convoy.training.networks.choices import choose
from convoy.training.networks.head import Head, check_size, is_small
from convoy.training.networks.logits import TrainingLogits
from convoy.training.networks.normalisation import ResponseNorm
from convoy.training.recipes.recipe import Architecture

AUXILIARY_WEIGHT = 0.3
_AUXILIARY_DROPOUT = 0.7


class Convolution(nn.Sequential):
    """A convolution that keeps the size (over its stride), batch normalisation where it is chosen, and ReLU."""

    def __init__(self, channels: int, maps: int, kernel_size: int, *, stride: int = 1, batch_norm: bool) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(channels, maps, kernel_size, stride=stride, padding=kernel_size // 2, bias=not batch_norm)
        if batch_norm:
            layers["bn"] = nn.BatchNorm2d(maps)
        layers["relu"] = nn.ReLU()
        super().__init__(layers)


class Inception(nn.Module):
    """Convolutions of 1x1, 3x3 and 5x5 and a 3x3 pool side by side on the same maps, with 1x1 reductions before and behind.

    Source: the paper's figure 2(b).

    Args:
        channels: Maps below.
        n1: Maps of the 1x1 convolution.
        reduce3: Maps of the 1x1 reduction before the 3x3 convolution.
        n3: Maps of the 3x3 convolution.
        reduce5: Maps of the 1x1 reduction before the 5x5 convolution.
        n5: Maps of the 5x5 convolution.
        n_pool: Maps of the 1x1 projection behind the pool.
        batch_norm: Whether each convolution has batch normalisation behind it.
    """

    def __init__(
        self, channels: int, n1: int, reduce3: int, n3: int, reduce5: int, n5: int, n_pool: int, *, batch_norm: bool
    ) -> None:
        super().__init__()
        self.branch1 = Convolution(channels, n1, 1, batch_norm=batch_norm)
        self.branch3 = nn.Sequential(
            Convolution(channels, reduce3, 1, batch_norm=batch_norm), Convolution(reduce3, n3, 3, batch_norm=batch_norm)
        )
        self.branch5 = nn.Sequential(
            Convolution(channels, reduce5, 1, batch_norm=batch_norm), Convolution(reduce5, n5, 5, batch_norm=batch_norm)
        )
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), Convolution(channels, n_pool, 1, batch_norm=batch_norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        """From (N, channels, H, W) to (N, n1 + n3 + n5 + n_pool, H, W)."""
        return torch.cat([self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)], dim=1)


class GoogLeNet(nn.Module):
    """Twenty-two layers, nine inception modules; 6,998,552 parameters for 1,000 classes, 13,378,280 with the auxiliary heads.

    The two auxiliary heads answer in training alone and count 0.3 each in the loss; what is exported does not have them.
    torchvision's network of that name (``torchvision-googlenet`` here) is another: it has batch normalisation everywhere, no
    response normalisation, and 3x3 convolutions where the paper has 5x5. With ``batch_norm=conv-bn-relu`` this one has batch
    normalisation in place of response normalisation too. The auxiliary heads pool to 4x4, which is what 5x5 windows of stride 3
    give on 224x224. First weights follow the Caffe team's network (Glorot and Bengio 2010, biases 0.2); the paper does not say.

    On images up to 64x64 the stem is a 3x3 convolution of stride 1 without a pool behind it.

    Source: Szegedy and others 2014, Going Deeper with Convolutions, section 5 and table 1.
    """

    def __init__(
        self, n_classes: int = 1000, *, channels: int = 3, small: bool = False, batch_norm: bool = False, dropout: float = 0.4
    ) -> None:
        super().__init__()

        def inception(channels: int, *maps: int) -> Inception:
            return Inception(channels, *maps, batch_norm=batch_norm)

        def response_norm() -> nn.Module:
            return nn.Identity() if batch_norm else ResponseNorm()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        first_pool: nn.Module
        if small:
            first, first_pool = Convolution(channels, 64, 3, batch_norm=batch_norm), nn.Identity()
        else:
            first, first_pool = Convolution(channels, 64, 7, stride=2, batch_norm=batch_norm), pool()
        self.stem = nn.Sequential(
            OrderedDict(
                conv1=first,  # (N, 64, 112, 112) from 224x224, as in all shapes below
                pool1=first_pool,  # (N, 64, 56, 56)
                norm1=response_norm(),
                reduce2=Convolution(64, 64, 1, batch_norm=batch_norm),
                conv2=Convolution(64, 192, 3, batch_norm=batch_norm),  # (N, 192, 56, 56)
                norm2=response_norm(),
                pool2=pool(),  # (N, 192, 28, 28)
            )
        )
        self.inception3a = inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = inception(256, 128, 128, 192, 32, 96, 64)  # (N, 480, 28, 28)
        self.pool3 = pool()
        self.inception4a = inception(480, 192, 96, 208, 16, 48, 64)  # (N, 512, 14, 14)
        self.inception4b = inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = inception(512, 112, 144, 288, 32, 64, 64)  # (N, 528, 14, 14)
        self.inception4e = inception(528, 256, 160, 320, 32, 128, 128)
        self.pool4 = pool()
        self.inception5a = inception(832, 256, 160, 320, 32, 128, 128)  # (N, 832, 7, 7)
        self.inception5b = inception(832, 384, 192, 384, 48, 128, 128)  # (N, 1024, 7, 7)
        self.pool5 = nn.AdaptiveAvgPool2d(1)
        self.output = Head(1024, n_classes, dropout)
        self.auxiliary1 = _auxiliary_head(512, n_classes, batch_norm=batch_norm)
        self.auxiliary2 = _auxiliary_head(528, n_classes, batch_norm=batch_norm)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.constant_(layer.bias, 0.0 if isinstance(layer, Head) else 0.2)

    @classmethod
    def build(cls, image: ImageSpec, n_classes: int, architecture: Architecture) -> GoogLeNet:
        """The network for images of ``image``; the small-image variant up to 64x64.

        Raises:
            UsageError: They are below 8x8, or something is chosen that it does not offer.
        """
        check_size("googlenet", image, 8)
        offered = Architecture(batch_norm="none", dropout=0.4)
        choices = choose("googlenet", architecture, offered, batch_norms=("none", "conv-bn-relu"))
        return cls(
            n_classes,
            channels=image.channels,
            small=is_small(image),
            batch_norm=choices.batch_norm != "none",
            dropout=choices.dropout,
        )

    def forward(self, pixels: Tensor) -> Tensor | TrainingLogits:
        """From normalised pixels, float (N, C, H, W), to logits, float (N, classes); with the auxiliary ones in training."""
        x = self.pool3(self.inception3b(self.inception3a(self.stem(pixels))))  # (N, 480, 14, 14)
        fourth_a = self.inception4a(x)
        fourth_d = self.inception4d(self.inception4c(self.inception4b(fourth_a)))
        x = self.pool4(self.inception4e(fourth_d))  # (N, 832, 7, 7)
        x = self.pool5(self.inception5b(self.inception5a(x))).flatten(1)  # (N, 1024)
        logits: Tensor = self.output(x)  # (N, classes)
        if not self.training:
            return logits
        return TrainingLogits(logits, (self.auxiliary1(fourth_a), self.auxiliary2(fourth_d)), AUXILIARY_WEIGHT)


def _auxiliary_head(channels: int, n_classes: int, *, batch_norm: bool) -> nn.Sequential:
    """From the maps of an inception module to logits."""
    return nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(4),  # (N, channels, 4, 4)
            conv=Convolution(channels, 128, 1, batch_norm=batch_norm),
            flatten=nn.Flatten(),
            fc=nn.Linear(128 * 4 * 4, 1024),
            relu=nn.ReLU(),
            output=Head(1024, n_classes, _AUXILIARY_DROPOUT),
        )
    )
