"""The images that the gate runs: real ones with labels, and edge cases that real ones seldom hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec

MIN_IMAGES = 100
"""With n images that all agree, at most 3/n of all images disagree (95 % confidence): 100 bound it by 3 %."""
N_GOLDENS = 16
N_SMALL_BATCH_IMAGES = 256


@dataclass(frozen=True)
class EvaluationSet:
    """Real images on which both sides are compared.

    Attributes:
        split: Where they come from, for people ("mnist test").
        images: uint8, shape (n, H, W, C).
        labels: int64, shape (n,).

    Raises:
        UsageError: They are not that.
    """

    split: str
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for what, array in (("images", self.images), ("labels", self.labels)):
            if not isinstance(array, np.ndarray):
                raise UsageError(f"evaluation {what}: expected a numpy array, found {type(array).__name__}.")
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise UsageError(
                "evaluation images: expected raw pixels, uint8 of shape (n, height, width, channels), "
                f"found {self.images.dtype} {self.images.shape}."
            )
        if self.labels.dtype.kind not in "iu" or self.labels.shape != self.images.shape[:1]:
            raise UsageError(
                f"evaluation labels: expected one whole number for each of {len(self.images)} images, "
                f"found {self.labels.dtype} {self.labels.shape}."
            )
        if len(self.images) == 0:
            raise UsageError("evaluation images: expected some, found none.")

    def __len__(self) -> int:
        return len(self.images)

    def goldens(self) -> npt.NDArray[np.int64]:
        """Indices of images to keep as goldens: the first of each class in turn, up to 16 images."""
        by_class = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        rounds = range(max((len(indices) for indices in by_class), default=0))
        order = [indices[i] for i in rounds for indices in by_class if i < len(indices)]
        return np.asarray(order[:N_GOLDENS], dtype=np.int64)


def edge_images(image: ImageSpec) -> npt.NDArray[np.uint8]:
    """Black, white, one lit pixel, a checkerboard and saturated noise: uint8, shape (5, H, W, C)."""
    height, width, channels = image.dims
    edges = np.zeros((5, height, width, channels), dtype=np.uint8)
    edges[1] = 255
    edges[2, height // 2, width // 2] = 255
    edges[3] = (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    edges[4] = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), size=image.dims)
    return edges
