"""scikit-learn's digits: 1,797 real handwritten digits that come with the library."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import MissingDependencyError
from convoy.contract.image import ImageSpec, to_pixels
from convoy.training.data.dataset import Dataset, Split, draw_stratified

LABELS: Final = tuple("0123456789")
IMAGE: Final = ImageSpec(height_px=28, width_px=28, channels=1, resize="fit")
TEST_FRACTION: Final = 0.2
_TEST_SEED: Final = 1797  # a constant: the test split is the same whatever the training's seed
# The digits fill their 8x8 whole, as MNIST's fill 20x20 of 28x28. Two pixels of background on each side bring them to
# 8/12 of the image (18.7 px), close to MNIST's 20/28, with the digit in the middle: a network of one set reads the other.
_MARGIN_PX: Final = 2


def load_digits(*, seed: int = 0, validation_fraction: float = 0.1) -> Dataset:
    """Optical recognition of handwritten digits (E. Alpaydin, C. Kaynak 1998, UCI), the 1,797 of scikit-learn.

    Args:
        seed: Which of the images outside the test split make the validation split.
        validation_fraction: Their share.

    Returns:
        28x28 grey, light strokes on dark at about MNIST's scale; the test split is a fixed fifth of each class.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load_bundled
    except ImportError as error:
        raise MissingDependencyError(
            "the data set `digits` comes with scikit-learn: pip install '.[train]' in Convoy's folder."
        ) from error
    bundled = load_bundled()
    small = np.rint(np.asarray(bundled.images) * (255 / 16)).astype(np.uint8)  # (n, 8, 8), values 0 to 16 before
    everything = Split(_enlarge(small), np.asarray(bundled.target, dtype=np.int64))

    in_test, outside = draw_stratified(everything.labels, TEST_FRACTION, np.random.default_rng(_TEST_SEED))
    rest = everything.take(outside)
    in_validation, in_train = draw_stratified(rest.labels, validation_fraction, np.random.default_rng(seed))
    return Dataset(
        name="digits",
        labels=LABELS,
        image=IMAGE,
        train=rest.take(in_train),
        validation=rest.take(in_validation),
        test=everything.take(in_test),
    )


def _enlarge(small: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """From (n, 8, 8) to (n, 28, 28, 1), the way in which a client brings any image to the model's pixels."""
    framed = np.pad(small, ((0, 0), (_MARGIN_PX, _MARGIN_PX), (_MARGIN_PX, _MARGIN_PX)))  # (n, 12, 12), background 0
    return np.stack([to_pixels(image, IMAGE) for image in framed])
