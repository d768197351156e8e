"""The images that the gate runs: real ones with labels, and edge cases that real ones seldom hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec

MIN_IMAGES: Final = 100
"""With n images that all agree, at most 3/n of all images disagree (95 % confidence): 100 bound it by 3 %."""
N_GOLDENS: Final = 16
UNKNOWN_LABEL: Final = -1
EDGES: Final = ("black", "white", "one pixel", "checkerboard", "saturated noise")


@dataclass(frozen=True)
class EvaluationSet:
    """Real images on which both sides are compared.

    Attributes:
        split: Where they come from, for people ("mnist test").
        images: uint8, shape (n, H, W, C).
        labels: int64, shape (n,); all of them -1 where nobody knows what the images show.

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
        unknown = int((self.labels == UNKNOWN_LABEL).sum())
        if unknown not in (0, len(self)):
            raise UsageError(
                f"evaluation labels: expected one for every image, or {UNKNOWN_LABEL} for all of them, found {unknown} images of "
                f"{len(self)} without."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether it is known what the images show."""
        return bool(self.labels[0] != UNKNOWN_LABEL)

    def goldens(self) -> npt.NDArray[np.int64]:
        """Indices of images to keep as goldens: the first of each class in turn, up to 16 images."""
        by_class = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        rounds = range(max((len(indices) for indices in by_class), default=0))
        order = [indices[i] for i in rounds for indices in by_class if i < len(indices)]
        return np.asarray(order[:N_GOLDENS], dtype=np.int64)


def edge_images(image: ImageSpec) -> npt.NDArray[np.uint8]:
    """Black, white, one lit pixel, a checkerboard and saturated noise, as ``EDGES`` names them: uint8, shape (5, H, W, C)."""
    height, width, channels = image.dims
    edges = np.zeros((len(EDGES), height, width, channels), dtype=np.uint8)
    edges[1] = 255
    edges[2, height // 2, width // 2] = 255
    edges[3] = (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    edges[4] = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), size=image.dims)
    return edges


@dataclass(frozen=True)
class Exhibits:
    """Everything that both sides are asked about: the real images, then the edge images.

    Attributes:
        evaluation: The real images.
        images: uint8, shape (n + 5, H, W, C).
    """

    evaluation: EvaluationSet
    images: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, evaluation: EvaluationSet, image: ImageSpec) -> Exhibits:
        """The evaluation set with the edge images of ``image`` behind it."""
        return cls(evaluation, np.concatenate([evaluation.images, edge_images(image)]))

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """What an image is called in reports."""
        n = len(self.evaluation)
        return f"image {index} of {self.evaluation.split}" if index < n else f"edge image: {EDGES[index - n]}"

    def sample(self, n: int) -> npt.NDArray[np.int64]:
        """Indices of all edge images and of ``n`` real ones, spread evenly over the set."""
        real = len(self.evaluation)
        spread = np.unique(np.linspace(0, real - 1, min(n, real)).round().astype(np.int64))
        return np.concatenate([spread, np.arange(real, len(self))])
