from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from convoy.contract.errors import DataError
from convoy.training.data import DataLocation, load_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).permutation(np.arange(60) % 10).astype(np.uint8)


def offline(root: Path | None, cache: Path | None = None) -> DataLocation:
    return DataLocation(root=root, cache=cache or Path("/nowhere"), download=False)


def write_sheets(folder: Path, labels: npt.NDArray[Any] = LABELS) -> Path:
    folder.mkdir()
    for i in range(12):  # more than ten: the order is that of the numbers
        sheet = np.full((5, 1024, 4), 255, dtype=np.uint8)
        sheet[..., :3] = IMAGES[5 * i : 5 * i + 5].reshape(5, 1024, 3)
        Image.fromarray(sheet).save(folder / f"cifar10_batch_{i}.png")
    np.save(folder / "labels.npy", labels)
    return folder


def test_a_part_says_that_it_is_one(tmp_path: Path) -> None:
    write_sheets(tmp_path / "cifar10")
    data = load_dataset("cifar10", location=offline(tmp_path))
    assert data.name == "cifar10 (60 of 60,000)"
    assert data.labels[:2] == ("airplane", "automobile")
    assert data.image.dims == (32, 32, 3)
    label_of = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    seen = [image.tobytes() for split in data.splits.values() for image in split.images[:]]
    assert len(set(seen)) == 60
    for split in data.splits.values():
        assert [label_of[image.tobytes()] for image in split.images[:]] == split.labels.tolist()
    assert sum(data.counts()["test"]) == 12
    assert min(data.counts()["test"]) == 1


def test_the_seed_moves_the_validation_split_alone(tmp_path: Path) -> None:
    write_sheets(tmp_path / "cifar10")
    first, other = (load_dataset("cifar10", seed=seed, location=offline(tmp_path)) for seed in (1, 2))
    assert np.array_equal(first.test.images[:], other.test.images[:])
    assert not np.array_equal(first.validation.images[:], other.validation.images[:])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:-1], "as many images as the 59 labels of labels.npy, found 60 in 12 sheets"),
        (LABELS + 1, "expected labels 0 to 9"),
        (LABELS.astype(float), "expected labels 0 to 9, found float64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: npt.NDArray[Any], message: str) -> None:
    write_sheets(tmp_path / "cifar10", labels)
    with pytest.raises(DataError, match=message):
        load_dataset("cifar10", location=offline(tmp_path))


def test_damaged_sheets_are_named(tmp_path: Path) -> None:
    folder = write_sheets(tmp_path / "cifar10")
    Image.new("RGB", (1000, 5)).save(folder / "cifar10_batch_3.png")
    with pytest.raises(DataError, match=r"batch_3.png: expected rows of 1,024 pixels, an image each, found 1,000"):
        load_dataset("cifar10", location=offline(tmp_path))
    (folder / "cifar10_batch_3.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"batch_3.png: expected a PNG image"):
        load_dataset("cifar10", location=offline(tmp_path))
    (folder / "labels.npy").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"labels.npy: expected an array of labels"):
        load_dataset("cifar10", location=offline(tmp_path))


class Torchvision:
    """torchvision's CIFAR10 as far as it is used: 40 images for training, 20 for testing."""

    calls: list[tuple[str, bool]]

    def __init__(self, root: Path, *, train: bool, download: bool) -> None:
        self.calls.append((str(root), download))
        (Path(root) / "cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
        part = slice(0, 40) if train else slice(40, 60)
        self.data, self.targets = IMAGES[part], LABELS[part].tolist()


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[str, bool]]]:
    Torchvision.calls = []
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Torchvision)
    return lambda: Torchvision.calls


def test_the_whole_set_wins_over_a_part(tmp_path: Path, torchvision: Callable[[], list[tuple[str, bool]]]) -> None:
    write_sheets(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "cifar-10-batches-py").mkdir()
    data = load_dataset("cifar10", location=DataLocation(root=tmp_path, cache=tmp_path / "cache"))
    assert data.name == "cifar10"
    assert np.array_equal(data.test.images[:], IMAGES[40:])
    assert len(data.train) + len(data.validation) == 40
    assert torchvision() == [(str(tmp_path / "cifar10"), False)] * 2  # the person's own folder is not written to


def test_the_whole_set_is_downloaded_into_the_cache(tmp_path: Path, torchvision: Callable[[], list[tuple[str, bool]]]) -> None:
    data = load_dataset("cifar10", location=DataLocation(root=None, cache=tmp_path / "cache"))
    assert data.name == "cifar10"
    assert torchvision() == [(str(tmp_path / "cache" / "cifar10"), True)] * 2
    again = load_dataset("cifar10", location=offline(None, tmp_path / "cache"))
    assert again.sha256() == data.sha256()


def test_without_files_it_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of .*cifar10/cifar-10-batches-py.*Set CONVOY_DATA"):
        load_dataset("cifar10", location=offline(tmp_path))


def test_a_download_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", unreachable)
    with pytest.raises(DataError, match=r"fetching it failed: no network. Set CONVOY_DATA"):
        load_dataset("cifar10", location=DataLocation(root=None, cache=tmp_path))


def test_damaged_batches_are_not_taken_for_a_failed_download(tmp_path: Path) -> None:
    (tmp_path / "cifar10" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cifar-10-batches-py: cannot be read: Dataset not found or corrupted"):
        load_dataset("cifar10", location=offline(tmp_path))
