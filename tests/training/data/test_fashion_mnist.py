from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from convoy.contract.errors import DataError
from convoy.training.data import DataLocation, load_dataset, mnist


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for part, n in (("train", 40), ("t10k", 20)):
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", (np.arange(n) % 10).astype(np.uint8))):
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return folder


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = mnist._FASHION
    monkeypatch.setattr(mnist, "_FASHION", mnist._Source(**{**vars(source), "system": (tmp_path / "system",)}))


@pytest.mark.parametrize(
    "place", ["data/fashion-mnist", "data/fashion-mnist/raw", "data/FashionMNIST/raw", "system", "cache/fashion-mnist"]
)
def test_it_is_found_in_every_usual_place(tmp_path: Path, place: str) -> None:
    write(tmp_path / place)
    data = load_dataset("fashion-mnist", location=DataLocation(tmp_path / "data", tmp_path / "cache", download=False))
    assert data.name == "fashion-mnist"
    assert (data.labels[0], data.labels[9]) == ("T-shirt/top", "Ankle boot")
    assert [len(split) for split in data.splits.values()] == [30, 10, 20]


def test_the_files_of_mnist_are_not_taken_for_it(tmp_path: Path) -> None:
    write(tmp_path / "mnist")
    with pytest.raises(DataError, match=r"Fashion-MNIST is in none of .*in fashion-mnist/; Debian .* dataset-fashion-mnist"):
        load_dataset("fashion-mnist", location=DataLocation(tmp_path, tmp_path / "cache", download=False))


def test_torchvision_fetches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reachable:
        def __init__(self, root: str, *, download: bool) -> None:
            self.raw_folder = str(write(Path(root) / "FashionMNIST" / "raw"))

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", Reachable)
    assert len(load_dataset("fashion-mnist", location=DataLocation(None, tmp_path)).test) == 20
    monkeypatch.delattr("torchvision.datasets.FashionMNIST")
    assert len(load_dataset("fashion-mnist", location=DataLocation(None, tmp_path)).test) == 20
