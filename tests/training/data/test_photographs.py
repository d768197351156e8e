from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from convoy.contract.errors import ImageError
from convoy.contract.image import ImageSpec, to_pixels
from convoy.training.data.photographs import Photographs

IMAGE = ImageSpec(height_px=6, width_px=6, channels=3, resize="crop")
ONE = 6 * 6 * 3


@pytest.fixture
def paths(tmp_path: Path, write_image: Callable[..., Path]) -> list[Path]:
    return [write_image(f"{i}.png") for i in range(9)]


@pytest.fixture
def pixels(paths: list[Path]) -> npt.NDArray[np.uint8]:
    return np.stack([to_pixels(path, IMAGE) for path in paths])


@pytest.mark.parametrize("n_kept", [0, 1, 4, 9, 100])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_any_part_comes_in_its_order_whatever_is_kept(
    paths: list[Path], pixels: npt.NDArray[np.uint8], n_kept: int, n_threads: int
) -> None:
    photographs = Photographs(paths, IMAGE, max_bytes=n_kept * ONE + ONE - 1, n_threads=n_threads)
    assert (photographs.shape, photographs.dtype, len(photographs)) == ((9, 6, 6, 3), np.uint8, 9)
    for key in (slice(None), slice(2, 7), slice(8, 1, -3), slice(3, 3), np.array([8, 0, 8, 4]), np.array([-1]), np.arange(0)):
        found = photographs[key]
        assert found.dtype == np.uint8
        assert np.array_equal(found, pixels[key])


def test_no_more_is_kept_than_the_bound_allows(
    paths: list[Path], pixels: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = Photographs(paths, IMAGE, max_bytes=4 * ONE)
    assert photographs.in_memory is None
    decoded: list[Path] = []

    def count(path: Path, image: ImageSpec) -> npt.NDArray[np.uint8]:
        decoded.append(path)
        return to_pixels(path, image)

    monkeypatch.setattr("convoy.training.data.photographs.to_pixels", count)
    assert np.array_equal(photographs[np.arange(9)], pixels)
    assert sorted(decoded) == paths[4:]


def test_what_fits_is_an_array_that_is_not_copied(paths: list[Path], pixels: npt.NDArray[np.uint8]) -> None:
    photographs = Photographs(paths, IMAGE, max_bytes=9 * ONE)
    whole = photographs.in_memory
    assert whole is not None
    assert np.array_equal(whole, pixels)
    assert photographs.in_memory is whole


def test_the_bound_is_a_share_of_what_is_available(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.training.data.photographs.available_bytes", lambda: 9 * ONE * 4)
    assert Photographs(paths, IMAGE).in_memory is not None
    monkeypatch.setattr("convoy.training.data.photographs.available_bytes", lambda: 9 * ONE * 4 - 4)
    assert Photographs(paths, IMAGE).in_memory is None


@pytest.mark.parametrize("n_kept", [0, 4, 9])
def test_damaged_files_are_told_and_the_others_stay_in_order(paths: list[Path], pixels: npt.NDArray[np.uint8], n_kept: int) -> None:
    paths[0].write_bytes(b"bad")
    paths[5].unlink()
    photographs = Photographs(paths, IMAGE, max_bytes=n_kept * ONE)
    assert list(photographs.damaged) == [0, 5]
    assert "no such file" in str(photographs.damaged[5])
    assert photographs.paths == (*paths[1:5], *paths[6:])
    assert np.array_equal(photographs[:], pixels[[1, 2, 3, 4, 6, 7, 8]])


def test_a_file_that_goes_bad_later_is_named(paths: list[Path]) -> None:
    photographs = Photographs(paths, IMAGE, max_bytes=0)
    paths[3].write_bytes(b"bad")
    with pytest.raises(ImageError, match=r"3\.png: expected an image"):
        photographs[:]


def test_it_serves_another_thread_and_another_process(paths: list[Path], pixels: npt.NDArray[np.uint8]) -> None:
    photographs = Photographs(paths, IMAGE, max_bytes=2 * ONE)
    found: list[npt.NDArray[np.uint8]] = []
    thread = threading.Thread(target=lambda: found.append(photographs[:]))
    thread.start()
    thread.join()
    assert np.array_equal(found[0], pixels)
    assert np.array_equal(pickle.loads(pickle.dumps(photographs))[:], pixels)
