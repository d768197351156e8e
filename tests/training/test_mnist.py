from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pytest

from convoy.contract.errors import DataError, UsageError
from convoy.training.data import DataLocation, load_dataset
from convoy.training.data.idx import read_idx

RNG = np.random.default_rng(0)
TRAIN_IMAGES = RNG.integers(0, 256, (40, 28, 28), dtype=np.uint8)
TRAIN_LABELS = np.arange(40, dtype=np.uint8) % 10
TEST_IMAGES = RNG.integers(0, 256, (12, 28, 28), dtype=np.uint8)
TEST_LABELS = np.arange(12, dtype=np.uint8) % 10


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, compressed: bool = False) -> Path:
    folder.mkdir(parents=True)
    for name, array in {
        "train-images-idx3-ubyte": TRAIN_IMAGES,
        "train-labels-idx1-ubyte": TRAIN_LABELS,
        "t10k-images-idx3-ubyte": TEST_IMAGES,
        "t10k-labels-idx1-ubyte": TEST_LABELS,
    }.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return folder


def offline(root: Path, cache: Path | None = None) -> DataLocation:
    return DataLocation(root=root, cache=cache or root / "no-cache", download=False)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("place", ["mnist", "mnist/raw", "MNIST/raw"])
def test_it_is_found_in_every_usual_place_plain_or_compressed(tmp_path: Path, place: str, compressed: bool) -> None:
    write_mnist(tmp_path / place, compressed=compressed)
    data = load_dataset("mnist", location=offline(tmp_path))
    assert np.array_equal(data.test.images[..., 0], TEST_IMAGES)
    assert np.array_equal(data.test.labels, TEST_LABELS)
    assert data.labels == tuple("0123456789")
    assert data.image.dims == (28, 28, 1)


def test_training_and_validation_share_out_the_training_files(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    data = load_dataset("mnist", seed=1, validation_fraction=0.25, location=offline(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 12)
    assert np.bincount(data.validation.labels).tolist() == [1] * 10
    both = np.concatenate([data.train.images, data.validation.images])[..., 0]
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in TRAIN_IMAGES)


def test_the_seed_moves_the_validation_split_alone(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    first, again, other = (load_dataset("mnist", seed=s, validation_fraction=0.25, location=offline(tmp_path)) for s in (1, 1, 2))
    assert first.sha256() == again.sha256() != other.sha256()
    assert np.array_equal(first.test.images, other.test.images)
    assert not np.array_equal(first.validation.images, other.validation.images)


def test_downloads_of_before_are_found_without_a_data_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path / "cache" / "mnist")
    data = load_dataset("mnist", location=DataLocation(root=None, cache=tmp_path / "cache", download=False))
    assert len(data.test) == 12


def test_without_files_it_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of .*mnist/raw.*CONVOY_DATA.*--data digits.*reader.*--set handwriting=digits"):
        load_dataset("mnist", location=offline(tmp_path))


def test_a_download_that_fails_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        def __init__(self, root: str, *, download: bool) -> NoReturn:
            (Path(root) / "half.gz").write_bytes(b"half")
            raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST", Unreachable)
    with pytest.raises(DataError, match=r"fetching it failed: Error downloading train-images.*--data digits"):
        load_dataset("mnist", location=DataLocation(root=None, cache=tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reachable:
        def __init__(self, root: str, *, download: bool) -> None:
            sys.stdout.write("Downloading ...\n")  # as older versions do
            self.raw_folder = str(write_mnist(Path(root) / "MNIST" / "raw"))

    monkeypatch.setattr("torchvision.datasets.MNIST", Reachable)
    location = DataLocation(root=None, cache=tmp_path / "cache")
    assert len(load_dataset("mnist", location=location).test) == 12
    monkeypatch.delattr("torchvision.datasets.MNIST")
    assert len(load_dataset("mnist", location=location).test) == 12


def test_a_download_speaks_on_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    test_a_download_is_kept_and_found_again(tmp_path, monkeypatch)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Downloading" in captured.err


def test_a_folder_with_some_of_the_files_is_an_error_that_names_the_others(tmp_path: Path) -> None:
    (write_mnist(tmp_path / "mnist") / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"mnist: expected the four files.*missing: t10k-labels-idx1-ubyte"):
        load_dataset("mnist", location=offline(tmp_path))


def test_counts_that_differ_name_both_files(tmp_path: Path) -> None:
    (write_mnist(tmp_path / "mnist") / "train-labels-idx1-ubyte").write_bytes(idx(TRAIN_LABELS[:-1]))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: expected 40 labels.*train-images-idx3-ubyte; found 39"):
        load_dataset("mnist", location=offline(tmp_path))


def test_labels_above_nine_are_refused(tmp_path: Path) -> None:
    (write_mnist(tmp_path / "mnist") / "t10k-labels-idx1-ubyte").write_bytes(idx(TEST_LABELS + 1))
    with pytest.raises(DataError, match="expected labels 0 to 9, found 10"):
        load_dataset("mnist", location=offline(tmp_path))


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    (write_mnist(tmp_path / "mnist") / "train-images-idx3-ubyte").write_bytes(idx(TRAIN_IMAGES[:, :20]))
    with pytest.raises(DataError, match="expected images of 28x28 pixels, found 20x28"):
        load_dataset("mnist", location=offline(tmp_path))


GOOD = idx(TEST_IMAGES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"expected a 3-dimensional IDX file .*0x00000803.*found 0x\(an empty file\)"),
        (b"\x89PNG\r\n\x1a\n", "found 0x89504e47"),
        (idx(TEST_LABELS), "found 0x00000801"),
        (GOOD[:10], "the header is cut short"),
        (GOOD[:-1], "expected 9,408 bytes of values for shape .*, found 9,407"),
        (GOOD + b"\0", "found more"),
        (GOOD[:4] + b"\xff" * 12, "the header claims"),
        (gzip.compress(GOOD, mtime=0)[:-20], "cannot be read"),
        (gzip.compress(GOOD, mtime=0)[:100] + b"\0" * 400 + gzip.compress(GOOD, mtime=0)[500:], "cannot be read"),
        (gzip.compress(GOOD[:-1], mtime=0), "found 9,407"),
    ],
)
def test_a_damaged_file_is_named_with_what_was_expected_and_found(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, n_dims=3)
    assert str(path) in str(caught.value)


def test_a_file_reads_back_plain_and_compressed_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    for data in (idx(TEST_LABELS), gzip.compress(idx(TEST_LABELS))):
        path.write_bytes(data)
        assert np.array_equal(read_idx(path, n_dims=1), TEST_LABELS)


def test_the_environment_is_read_at_the_edge() -> None:
    location = DataLocation.from_environment({"CONVOY_DATA": "/data", "XDG_CACHE_HOME": "/cache"})
    assert location == DataLocation(root=Path("/data"), cache=Path("/cache/convoy"))
    assert DataLocation.from_environment({"CONVOY_DATA": ""}).root is None


def test_an_unknown_data_set_comes_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'mnist'"):
        load_dataset("mnits")
