"""Two small networks that were really trained, on real digits, with their float32 files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from convoy.contract.image import ImageSpec
from convoy.export import EvaluationSet
from convoy.export.graph.exporting import to_onnx
from convoy.export.precision import speed
from convoy.training.data.catalogue import load_dataset
from convoy.training.networks.classifier import build_classifier
from convoy.training.networks.preprocessing import measure

DIGITS = tuple(str(i) for i in range(10))


@dataclass(frozen=True)
class Digits:
    train: np.ndarray
    train_labels: np.ndarray
    evaluation: EvaluationSet
    image: ImageSpec


@dataclass(frozen=True)
class Trained:
    classifier: nn.Module
    model: bytes


class Residual(nn.Module):
    """Convolutions with batch norm around an addition, and what is put between the two halves."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.2))
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.between = between
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = image.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean  # (N, 1, 28, 28)
        x = self.between(self.stem(pixels))  # (N, 8, 14, 14)
        x = torch.relu(x + self.block(x))
        x = nn.functional.max_pool2d(self.down(x), 2, ceil_mode=True)  # (N, 16, 7, 7) -> (N, 16, 4, 4)
        return self.head(x.flatten(1))


class Gain(nn.Module):
    """Multiplies by a constant and, in the next layer, divides by it: the values in between become large."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.up = nn.Conv2d(8, 8, 1, bias=False)
        self.down = nn.Conv2d(8, 8, 1, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.eye(8)[:, :, None, None] * gain)
            self.down.weight.copy_(torch.eye(8)[:, :, None, None] / gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


class Outlier(nn.Module):
    """Two extra channels of huge values pass through one layer and cancel: in 8 bits, all others vanish beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(8, 10, 1)
        self.down = nn.Conv2d(10, 8, 1, bias=False)
        with torch.no_grad():
            self.up.weight.zero_()
            self.up.bias.zero_()
            self.up.weight[:8] = torch.eye(8)[:, :, None, None]
            self.up.bias[8:] = torch.tensor([1000.0, -1000.0])
            self.down.weight.zero_()
            self.down.weight[:, :8] = torch.eye(8)[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_dataset("digits")
    return Digits(
        data.train.images, data.train.labels, EvaluationSet("digits test", data.test.images, data.test.labels), data.image
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks as small as these train no faster on more, and far slower beside other work. What comes later has them all again."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def little_work() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured in shorter rounds here; nothing is asserted that would need longer ones."""
    monkeypatch.setattr(speed, "_ROUND_S", 0.01)


@one_thread()
def _train(classifier: nn.Module, digits: Digits) -> nn.Module:
    images, labels = torch.from_numpy(digits.train), torch.from_numpy(digits.train_labels)
    optimizer = torch.optim.Adam([p for p in classifier.parameters() if p.requires_grad], 3e-3)
    classifier.train()
    for _ in range(6):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return classifier.eval()


def _export(classifier: nn.Module, digits: Digits) -> Trained:
    proto = to_onnx(classifier, digits.image).proto
    proto.producer_name = "convoy"
    return Trained(classifier, proto.SerializeToString(deterministic=True))


@pytest.fixture(scope="session")
def lenet5(digits: Digits) -> Trained:
    torch.manual_seed(0)
    preprocessing = measure(torch.from_numpy(digits.train), polarity="auto")
    classifier = build_classifier("lenet5", image=digits.image, n_classes=10, preprocessing=preprocessing)
    return _export(_train(classifier, digits), digits)


@pytest.fixture(scope="session")
def residual(digits: Digits) -> Callable[[nn.Module], Trained]:
    """The residual network, trained once; another module may be put in the place between its halves."""
    torch.manual_seed(0)
    trained = _train(Residual(nn.Identity()), digits)

    def with_between(between: nn.Module) -> Trained:
        classifier = Residual(between)
        classifier.load_state_dict({**trained.state_dict(), **{f"between.{k}": v for k, v in between.state_dict().items()}})
        return _export(classifier.eval(), digits)

    return with_between
