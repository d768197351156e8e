"""The data sets that ``CONVOY_DATA`` has, read whole; skipped where it has them not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convoy.training.data import DataLocation, load_dataset


def location(folder: str) -> DataLocation:
    found = DataLocation.from_environment()
    if found.root is None or not (found.root / folder).is_dir():
        pytest.skip(f"CONVOY_DATA has no {folder}")
    return DataLocation(found.root, Path("/nowhere"), download=False)


def test_the_lists_of_trashnet_give_its_classes_and_counts() -> None:
    root = location("trashnet").root
    assert root is not None
    data = load_dataset(root / "trashnet", image_size_px=32)
    assert data.labels == ("glass", "paper", "cardboard", "plastic", "metal", "trash")
    assert [len(split) for split in data.splits.values()] == [1768, 328, 431]
    assert np.sum(list(data.counts().values()), axis=0).tolist() == [501, 594, 403, 482, 410, 137]
    assert data.skipped == ()
    for split in data.splits.values():
        for file, label in zip(split.files, split.labels, strict=True):
            assert file.split("/")[1] == data.labels[label]
    assert sum("glass176.jpg = " in remark for remark in data.remarks) == 2  # a copy in another split, of another class


def test_the_part_of_cifar10_is_not_taken_for_the_whole() -> None:
    where = location("cifar10")
    if not (where.root / "cifar10" / "labels.npy").is_file():  # type: ignore[operator]
        pytest.skip("CONVOY_DATA has the whole of cifar10")
    data = load_dataset("cifar10", location=where)
    assert data.name == "cifar10 (4,000 of 60,000)"
    assert [len(split) for split in data.splits.values()] == [2880, 320, 800]
    # 4,000 of its images have the means of all within half a per cent
    assert np.concatenate([split.images[:] for split in data.splits.values()]).mean((0, 1, 2)) / 255 == pytest.approx(
        [0.4914, 0.4822, 0.4465], abs=0.005
    )


def test_fashion_mnist_has_its_official_counts() -> None:
    system = Path("/usr/share/datasets/fashion-mnist")
    where = DataLocation(None, Path("/nowhere"), download=False) if system.is_dir() else location("fashion-mnist")
    data = load_dataset("fashion-mnist", location=where)
    assert [len(split) for split in data.splits.values()] == [54_000, 6_000, 10_000]
    assert data.labels[data.test.labels[0]] == "Ankle boot"
    assert np.concatenate([data.train.images[:], data.validation.images[:]]).mean() / 255 == pytest.approx(0.2860, abs=1e-4)
