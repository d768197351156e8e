"""The loop that most people write for MNIST, from torchvision's and PyTorch's examples: what Convoy's is measured beside."""

from __future__ import annotations

import gzip
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from convoy.contract.errors import DataError
from convoy.training.recipes import Augmentation

N_WORKERS: Final = 2
BATCH_SIZE: Final = 64
_FILES: Final = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MEAN, _STD = (0.1307,), (0.3081,)


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        seconds: Of each epoch, without any evaluation.
        top1_error: On the test split, after the last.
    """

    seconds: tuple[float, ...]
    top1_error: float


def lay_out(source: Path, root: Path) -> None:
    """Bring MNIST's files to where torchvision expects them, unpacked.

    Args:
        source: A folder with the four IDX files, gzipped or not.
        root: What ``torchvision.datasets.MNIST`` gets.

    Raises:
        DataError: A file is not there.
    """
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in _FILES:
        plain, packed = source / name, source / f"{name}.gz"
        if plain.is_file():
            shutil.copy(plain, raw / name)
        elif packed.is_file():
            with gzip.open(packed) as reader, (raw / name).open("wb") as writer:
                shutil.copyfileobj(reader, writer)
        else:
            raise DataError(f"{source}: expected {name} or {name}.gz, found neither.")


def train(network: nn.Module, root: Path, *, epochs: int, n_images: int, distortion: Augmentation | None, seed: int) -> Outcome:
    """Train ``network`` by Adam on images that are decoded, converted and normalised one by one in worker processes.

    Args:
        network: Takes normalised pixels, float (N, 1, 28, 28).
        root: Of torchvision's MNIST.
        epochs: Passes over the images.
        n_images: How many of the 60,000.
        distortion: Done by torchvision's ``RandomAffine``, as far as that goes; None for none.
        seed: Of the order of the images.
    """
    from torchvision.datasets import MNIST
    from torchvision.transforms import Compose, Normalize, RandomAffine, ToTensor

    torch.manual_seed(seed)
    always: list[Any] = [ToTensor(), Normalize(_MEAN, _STD)]
    drawn: list[Any] = []
    if distortion is not None:
        shift, scale = distortion.shift_px / 28, 1 + distortion.scale_fraction
        drawn = [RandomAffine(distortion.rotation_deg, (shift, shift), (1 / scale, scale), distortion.shear_deg)]
    training = Subset(MNIST(root, train=True, transform=Compose(drawn + always)), range(n_images))
    loader = DataLoader(training, batch_size=BATCH_SIZE, shuffle=True, num_workers=N_WORKERS)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        network.train()
        loss_sum = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.item()
        seconds.append(time.perf_counter() - started)
    test = DataLoader(MNIST(root, train=False, transform=Compose(always)), batch_size=1000)
    return Outcome(tuple(seconds), _top1_error(network, test))


@torch.no_grad()
def _top1_error(network: nn.Module, loader: Iterable[Any]) -> float:
    network.eval()
    wrong = n = 0
    for images, labels in loader:
        wrong += int((network(images).argmax(dim=1) != labels).sum())
        n += len(labels)
    return wrong / n
