"""AlexNet, its two columns in one."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from convoy.contract.image import ImageSpec
from convoy.training.networks.choices import Choices, choose
from convoy.training.networks.head import check_size, is_small
from convoy.training.networks.initialisation import draw_as_he
from convoy.training.networks.normalisation import ResponseNorm
from convoy.training.recipes.recipe import Architecture

_SMALL_HIDDEN = 512


class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers; 62,378,344 parameters for 1,000 classes.

    The paper splits its maps over two GPUs, which halves the filters of the second, fourth and fifth convolution; here they see
    all maps below, as the lecture counts (62.3 million; split they are 60,965,224). Local response normalisation, overlapping
    3x3 pools of stride 2, ReLU, and dropout before the first two fully connected layers are the paper's, and so are its first
    weights. torchvision's network is another, of 2014, with 64-192-384-256-256 maps and no response normalisation: it is
    ``torchvision-alexnet`` here.

    On images up to 64x64 the stem is a 3x3 convolution of stride 1 and the hidden layers have 512 units.

    Source: Krizhevsky, Sutskever, Hinton 2012, ImageNet Classification with Deep Convolutional Neural Networks, section 3.
    """

    def __init__(self, n_classes: int, choices: Choices, *, channels: int = 3, small: bool = False) -> None:
        super().__init__()
        stem = nn.Conv2d(channels, 96, 3, padding=1) if small else nn.Conv2d(channels, 96, 11, stride=4, padding=2)
        self.features = nn.Sequential(
            OrderedDict(
                conv1=stem,  # (N, 96, 55, 55) from 224x224, as in all shapes below
                relu1=nn.ReLU(),
                norm1=ResponseNorm(),
                pool1=nn.MaxPool2d(3, stride=2),  # (N, 96, 27, 27)
                conv2=nn.Conv2d(96, 256, 5, padding=2),
                relu2=nn.ReLU(),
                norm2=ResponseNorm(),
                pool2=nn.MaxPool2d(3, stride=2),  # (N, 256, 13, 13)
                conv3=nn.Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(384, 384, 3, padding=1),
                relu4=nn.ReLU(),
                conv5=nn.Conv2d(384, 256, 3, padding=1),
                relu5=nn.ReLU(),
                pool5=nn.MaxPool2d(3, stride=2),  # (N, 256, 6, 6)
            )
        )
        side, hidden = (3, _SMALL_HIDDEN) if small else (6, 4096)
        self.classifier = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(side),  # changes nothing on 224x224; brings other sizes to (N, 256, 6, 6)
                flatten=nn.Flatten(),
                dropout6=choices.make_dropout(),
                fc6=nn.Linear(256 * side * side, hidden),
                relu6=nn.ReLU(),
                dropout7=choices.make_dropout(),
                fc7=nn.Linear(hidden, hidden),
                relu7=nn.ReLU(),
                fc8=nn.Linear(hidden, n_classes),
            )
        )
        if small:
            draw_as_he(self)  # after a stem this narrow, the signal of the paper's weights fades
        else:
            self._draw()

    def _draw(self) -> None:
        """Weights normal with deviation 0.01; biases 1 where that gives ReLUs something to start from, else 0 (section 5)."""
        for name, layer in self.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.bias, float(name.rpartition(".")[2] in ("conv2", "conv4", "conv5", "fc6", "fc7")))

    @classmethod
    def build(cls, image: ImageSpec, n_classes: int, architecture: Architecture) -> AlexNet:
        """The network for images of ``image``; the small-image variant up to 64x64.

        Raises:
            UsageError: They are below 15x15, or something is chosen that it does not offer.
        """
        check_size("alexnet", image, 15)
        choices = choose("alexnet", architecture, Architecture(dropout=0.5))
        return cls(n_classes, choices, channels=image.channels, small=is_small(image))

    def forward(self, pixels: Tensor) -> Tensor:
        """From normalised pixels, float (N, C, H, W), to logits, float (N, classes)."""
        logits: Tensor = self.classifier(self.features(pixels))
        return logits
