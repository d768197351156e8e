from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from convoy.contract.errors import DataError, MissingDependencyError, UsageError
from convoy.contract.image import to_pixels
from convoy.training.data import DataLocation, Dataset, check_dataset_name, dataset_names, load_dataset


def test_the_data_sets_that_come_along_have_names() -> None:
    assert dataset_names()[:4] == ("digits", "mnist", "fashion-mnist", "cifar10")


def test_a_folder_is_loaded_by_its_path(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    whole = load_dataset(photos, image_size_px=16)
    for same in (str(photos), "photos", "./photos", "photos/", "../" + photos.parent.name + "/photos"):
        assert load_dataset(same, image_size_px=16).sha256() == whole.sha256()
        assert check_dataset_name(same) == str(photos)


def test_a_known_name_wins_over_a_folder_unless_it_is_a_path(
    photos: Path, monkeypatch: pytest.MonkeyPatch, digits: Dataset
) -> None:
    photos.rename(photos.parent / "digits")
    monkeypatch.chdir(photos.parent)
    assert check_dataset_name("digits") == "digits"
    assert load_dataset("digits").sha256() == digits.sha256()
    for path in ("./digits", Path("digits")):
        assert check_dataset_name(path) == str(photos.parent / "digits")
        assert load_dataset(path).labels == ("cat", "dog")


def test_what_is_neither_a_name_nor_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no data set 'mnits', and no folder of that name here: did you mean 'mnist'"):
        load_dataset("mnits")
    with pytest.raises(UsageError, match="known: digits, mnist, fashion-mnist, cifar10"):
        check_dataset_name("xyz")
    for path in ("./photos", "a/b", "/none", Path("photos")):
        with pytest.raises(UsageError, match=r"expected a folder with one sub-folder of images a class, found nothing there"):
            load_dataset(path)
    (tmp_path / "photos").touch()
    with pytest.raises(UsageError, match="found a file there"):
        load_dataset("./photos")


def test_damaged_files_are_skipped_on_demand(photos: Path) -> None:
    (photos / "cat/1.png").write_bytes(b"bad")
    with pytest.raises(DataError, match="1 of 20 images cannot be read"):
        load_dataset(photos)
    assert len(load_dataset(photos, skip_bad=True).skipped) == 1


def test_a_named_data_set_comes_at_another_size_as_the_client_would_bring_it(digits: Dataset) -> None:
    larger = load_dataset("digits", image_size_px=32)
    assert larger.image == digits.image.model_copy(update={"height_px": 32, "width_px": 32})
    for name, split in larger.splits.items():
        assert np.array_equal(split.labels, digits.splits[name].labels)
        for pixels, before in zip(split.images[:20], digits.splits[name].images[:20], strict=True):
            assert np.array_equal(pixels, to_pixels(before, larger.image))
    assert load_dataset("digits", image_size_px=28).sha256() == digits.sha256()


PLUGIN = """
import numpy as np
from convoy.contract.image import ImageSpec
from convoy.training.data import Dataset, Split

IMAGE = ImageSpec(height_px=4, width_px=4, channels=1)

def load(*, seed, validation_fraction, location):
    def split(n):
        return Split(np.full((n, 4, 4, 1), seed, dtype=np.uint8), np.arange(n) % 2)
    return Dataset("stamps", ("a", "b"), IMAGE, split(10), split(round(validation_fraction * 10)), split(location.download + 2))

def fail(*, seed, validation_fraction, location):
    raise KeyError("no stamps")

def other(**_):
    return 7
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Installs a package that brings a data set ``stamps``."""
    site = tmp_path / "site"
    info = site / "philately-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: philately\nVersion: 1.0\n")
    (site / "philately.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(site))

    def install(value: str, name: str = "stamps") -> None:
        (info / "entry_points.txt").write_text(f"[convoy.datasets]\n{name} = {value}\n")

    yield install
    sys.modules.pop("philately", None)


def test_another_package_brings_a_data_set(package: Callable[[str], None]) -> None:
    package("philately:load")
    assert "stamps" in dataset_names()
    assert "philately" not in sys.modules  # names alone import nothing
    data = load_dataset("stamps", seed=3, validation_fraction=0.4, location=DataLocation(download=False))
    assert [len(split) for split in data.splits.values()] == [10, 4, 2]
    assert data.train.images[0, 0, 0, 0] == 3
    assert load_dataset("stamps", image_size_px=9).train.images.shape == (10, 9, 9, 1)
    with pytest.raises(UsageError, match="did you mean 'stamps'"):
        load_dataset("stamp")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("philately:nothing", MissingDependencyError, r"of the package philately .*AttributeError.*Repair or uninstall"),
        ("no_such_module:load", MissingDependencyError, r"of the package philately .*No module named 'no_such_module'"),
        ("philately:fail", DataError, r"failed: KeyError: 'no stamps'. Repair or uninstall"),
        ("philately:other", DataError, r"expected a Dataset, found int"),
    ],
)
def test_a_broken_package_is_named(package: Callable[[str], None], value: str, error: type[Exception], message: str) -> None:
    package(value)
    assert "stamps" in dataset_names()
    with pytest.raises(error, match=rf"'stamps' \(convoy.datasets\).*{message}"):
        load_dataset("stamps")


def test_a_package_replaces_no_data_set_of_convoys(package: Callable[..., None], digits: Dataset) -> None:
    package("philately:load", name="digits")
    assert dataset_names().count("digits") == 1
    assert load_dataset("digits").sha256() == digits.sha256()
