from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.contract.image import ImageSpec
from convoy.contract.manifest import ModelInterface, TensorSpec
from convoy.serving.client import Client
from convoy.serving.client.testing import FakeModel, FakeTransport

LABELS = ("zero", "one", "two")


def by_first_pixel(pixels: np.ndarray) -> np.ndarray:
    """A classifier whose answer the test can foretell: the first pixel names the class."""
    probabilities = np.full((len(pixels), 3), 0.1, dtype=np.float32)
    probabilities[np.arange(len(pixels)), pixels[:, 0, 0, 0] % 3] = 0.8
    return probabilities


@pytest.fixture
def fake() -> FakeTransport:
    """A fake server with the classifier ``digits``, version 3, of 4x4 grey images, at most 4 at once."""
    interface = ModelInterface(
        labels=LABELS,
        image=ImageSpec(height_px=4, width_px=4, channels=1),
        inputs=(TensorSpec(name="image", datatype="UINT8", dims=(4, 4, 1)),),
        outputs=(
            TensorSpec(name="logits", datatype="FP32", dims=(3,)),
            TensorSpec(name="probabilities", datatype="FP32", dims=(3,)),
        ),
    )
    return FakeTransport({"digits": FakeModel.classifier(interface, by_first_pixel, max_batch_size=4, version="3")})


@pytest.fixture
def client(fake: FakeTransport) -> Iterator[Client]:
    with Client(transport=fake) as client:
        yield client


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, emptied."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def write_image() -> Callable[[Path, int], Path]:
    """Write an image whose class the fake foretells."""

    def write(path: Path, index: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), index).save(path)
        return path

    return write


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, fake: FakeTransport, run_convoy: Callable[..., tuple[int, str, str]]) -> Any:
    """Run ``convoy ...`` on the fake server; gives exit code, stdout and stderr."""
    monkeypatch.setattr("convoy.serving.client._client.open_transport", lambda endpoint, headers: fake)
    return run_convoy
