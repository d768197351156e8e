"""Fixtures of the transfer tests: networks of a thousand parameters, and recipes around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convoy.contract.manifest import Preprocessing
from convoy.training.networks import ImageClassifier, PixelPreprocessing
from convoy.training.recipes import Recipe

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Residual(nn.Module):
    """conv, norm, ReLU, conv, norm, beside a shortcut."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.dropout = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(torch.relu(self.bn1(self.conv1(x))))
        return torch.relu(x + self.bn2(self.conv2(y)))


class SmallResNet(nn.Module):
    """A stem, four residual blocks and a head."""

    def __init__(self, n_classes: int = 10, maps: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, maps, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.layer1 = nn.Sequential(Residual(maps), Residual(maps))
        self.layer2 = nn.Sequential(Residual(maps), Residual(maps))
        self.linear = nn.Linear(maps, n_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(pixels)))
        logits: Tensor = self.linear(self.layer2(self.layer1(x)).mean(dim=(2, 3)))
        return logits


def classify(
    network: nn.Module, *, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> ImageClassifier:
    facts = Preprocessing(polarity="as-is", scale=1 / 255, mean=mean, std=std)
    return ImageClassifier(PixelPreprocessing(facts), network)


@pytest.fixture
def transfer_recipe() -> Callable[..., Recipe]:
    """A recipe that transfers; keyword arguments are fields of its ``transfer``."""

    def make(network: str = "small", **transfer: Any) -> Recipe:
        fields = {
            "name": "transfer",
            "title": "a test",
            "source": "none",
            "data": "none",
            "network": network,
            "epochs": 10,
            "transfer": {"weights": "file", **transfer},
        }
        return Recipe.model_validate(fields)

    return make


@pytest.fixture
def small() -> ImageClassifier:
    torch.manual_seed(0)
    return classify(SmallResNet())


@pytest.fixture
def build() -> Callable[..., ImageClassifier]:
    """A small classifier; keyword arguments are those of ``SmallResNet`` and the normalisation."""

    def make(*, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD, **options: int) -> ImageClassifier:
        return classify(SmallResNet(**options), mean=mean, std=std)

    return make
