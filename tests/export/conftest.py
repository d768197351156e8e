"""A small classifier with everything that a real one has: preprocessing, convolution, batch norm, pooling, dense layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Preprocessing, TrainingFacts
from convoy.export import EvaluationSet, ModelFacts


class TinyClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4))
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(4 * 5 * 5, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = image.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean
        return self.head(self.features(pixels).flatten(1))


@dataclass(frozen=True)
class Case:
    classifier: TinyClassifier
    facts: ModelFacts
    evaluation: EvaluationSet


def _make_case() -> Case:
    torch.manual_seed(0)
    classifier = TinyClassifier()
    classifier.features[1].running_mean.uniform_(-0.2, 0.2)
    classifier.features[1].running_var.uniform_(0.5, 2.0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, 12, 12, 1), dtype=np.uint8)
    facts = ModelFacts(
        model_name="tiny",
        labels=("one", "two", "three"),
        image=ImageSpec(height_px=12, width_px=12, channels=1),
        preprocessing=Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.4,), std=(1.0,)),
        training=TrainingFacts(
            run_id="run", recipe="tiny", dataset="noise", seed=0, epochs=1, best_epoch=1, n_parameters=351, n_train=1,
            n_validation=1, n_test=120, validation_top1_error=0.5, test_top1_error=0.5,
        ),
        weights_sha256="0" * 64,
        max_batch_size=16,
    )  # fmt: skip
    return Case(classifier.eval(), facts, EvaluationSet("noise", images, rng.integers(0, 3, 120)))


@pytest.fixture
def case() -> Case:
    """A fresh one, which a test may change."""
    return _make_case()


@pytest.fixture(scope="session")
def make_case() -> Callable[[], Case]:
    """Makes a ``case``, for what several tests share."""
    return _make_case


@pytest.fixture
def signing_key(tmp_path_factory) -> Path:
    """A fresh private key, P-256, in PEM form."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = tmp_path_factory.mktemp("keys") / "private.pem"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return path
