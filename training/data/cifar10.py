"""CIFAR-10: photographs of 32x32 pixels in ten classes, the whole set or a part of it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.contract.errors import DataError, MissingDependencyError
from convoy.contract.image import ImageSpec
from convoy.training.data.dataset import Dataset, Split, draw_stratified
from convoy.training.data.location import DataLocation
from convoy.training.data.tree import natural_key

LABELS: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE: Final = ImageSpec(height_px=32, width_px=32, channels=3, resize="crop")
TEST_FRACTION: Final = 0.2
"""Of the part that has no test images of its own."""

_TEST_SEED: Final = 1797  # a constant: the test split is the same whatever the training's seed
_WHOLE: Final = 60_000
_BATCHES: Final = "cifar-10-batches-py"  # torchvision's folder
_LABELS_FILE: Final = "labels.npy"


def load_cifar10(location: DataLocation, *, seed: int = 0, validation_fraction: float = 0.1) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images).

    The whole set is looked for in ``cifar10`` of ``location.root``, in ``location.root`` itself and among the downloads in
    ``location.cache``, as the folder ``cifar-10-batches-py``. Where it is in neither of the first two and ``cifar10`` has
    sheets of images, ``cifar10_batch_0.png`` and so on (one image a row of 1,024 pixels) with ``labels.npy``, these are taken,
    and the name of the data set says how many they are. Else torchvision fetches the whole set.

    Args:
        location: Where to look.
        seed: Which of the images outside the test split make the validation split.
        validation_fraction: Their share.

    Returns:
        32x32 RGB; the test split is the official one, or a fixed fifth of each class where only a part is there.

    Raises:
        DataError: It is not there and cannot be fetched, or is damaged.
        MissingDependencyError: torchvision is needed and is not installed.
    """
    own = [] if location.root is None else [location.root / "cifar10", location.root]
    whole = next((folder for folder in own if (folder / _BATCHES).is_dir()), None)
    if whole is None and own and (own[0] / _LABELS_FILE).is_file():
        everything = _read_sheets(own[0])
        in_test, outside = draw_stratified(everything.labels, TEST_FRACTION, np.random.default_rng(_TEST_SEED), names=LABELS)
        name, rest, test = f"cifar10 ({len(everything):,} of {_WHOLE:,})", everything.take(outside), everything.take(in_test)
    else:
        name, (rest, test) = "cifar10", _read_whole(whole, own, location)
    in_validation, in_train = draw_stratified(rest.labels, validation_fraction, np.random.default_rng(seed), names=LABELS)
    return Dataset(name=name, labels=LABELS, image=IMAGE, train=rest.take(in_train), validation=rest.take(in_validation), test=test)


def _read_sheets(folder: Path) -> Split:
    paths = sorted(folder.glob("cifar10_batch_*.png"), key=lambda path: natural_key(path.name))
    try:
        labels = np.load(folder / _LABELS_FILE, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / _LABELS_FILE}: expected an array of labels; it cannot be read: {error}.") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.max(initial=0) >= len(LABELS):
        raise DataError(f"{folder / _LABELS_FILE}: expected labels 0 to 9, found {labels.dtype} {labels.shape}.")
    images = np.concatenate([np.empty((0, *IMAGE.dims), dtype=np.uint8), *(_read_sheet(path) for path in paths)])
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: expected as many images as the {len(labels):,} labels of {_LABELS_FILE}, "
            f"found {len(images):,} in {len(paths)} sheets cifar10_batch_*.png."
        )
    return Split(images, labels.astype(np.int64))


def _read_sheet(path: Path) -> npt.NDArray[np.uint8]:
    """The images of a sheet: (n, 1024) pixels become (n, 32, 32, 3)."""
    try:
        with Image.open(path) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: expected a PNG image: {error}. Fetch the file again.") from error
    height, width = IMAGE.dims[:2]
    if pixels.shape[1] != height * width:
        raise DataError(f"{path}: expected rows of {height * width:,} pixels, an image each, found {pixels.shape[1]:,}.")
    return pixels.reshape(-1, *IMAGE.dims)


def _read_whole(found: Path | None, looked: list[Path], location: DataLocation) -> tuple[Split, Split]:
    """The official training and test images; torchvision checks every file's digest before it reads it."""
    kept = location.cache / "cifar10"
    folder = kept if found is None else found
    there = (folder / _BATCHES).is_dir()
    places = ", ".join(str(place / _BATCHES) for place in [*looked, kept])
    advice = f"Set CONVOY_DATA to a folder that has cifar10/{_BATCHES} (or cifar10/cifar10_batch_0.png with {_LABELS_FILE})."
    if not there and not location.download:
        raise DataError(f"CIFAR-10 is in none of {places}. {advice}")
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise MissingDependencyError("CIFAR-10 is read by torchvision: pip install '.[train]' in Convoy's folder.") from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision tells its progress; stdout is for results
            # a half download does not pass torchvision's digests and is fetched again
            parts = [CIFAR10(folder, train=train, download=location.download and found is None) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError), a wrong checksum, a full disk
        reason = " ".join(str(error).split()).removesuffix(".")
        what = f"{folder / _BATCHES}: cannot be read" if there else f"CIFAR-10 is in none of {places}, and fetching it failed"
        raise DataError(f"{what}: {reason}. {advice}") from error
    train, test = (Split(np.asarray(part.data), np.asarray(part.targets, dtype=np.int64)) for part in parts)
    return train, test
