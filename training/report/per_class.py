"""What a classifier does with each class: counts, precision, recall, and which classes come off badly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from convoy.contract.figures import interval95

Flag = Literal["few images", "low recall", "few images and low recall"]

FEW: Final = 0.5
"""A class has few images where it has less than this share of the mean over the classes."""


class ClassScore(BaseModel):
    """One class on the test split. What is a share of nothing is 0.

    Attributes:
        label: Its name.
        n_train: Its images in the training split.
        n: Its images in the test split (the support).
        n_predicted: How often it was predicted.
        n_right: How often rightly.
        precision: ``n_right / n_predicted``.
        recall: ``n_right / n``.
        f1: Their harmonic mean, ``2 n_right / (n + n_predicted)``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    n_train: int = Field(ge=0)
    n: int = Field(ge=0)
    n_predicted: int = Field(ge=0)
    n_right: int = Field(ge=0)
    precision: float = Field(ge=0, le=1)
    recall: float = Field(ge=0, le=1)
    f1: float = Field(ge=0, le=1)

    @property
    def recall_interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the recall; all of [0, 1] where the test split has no image of the class."""
        return interval95(self.recall, self.n) if self.n else (0.0, 1.0)


def count_confusions(predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], n_classes: int) -> npt.NDArray[np.int64]:
    """The confusion matrix.

    Args:
        predicted: The class that each image was taken for, int64 (n,).
        labels: The class that it shows, int64 (n,).
        n_classes: How many classes there are.

    Returns:
        int64 (classes, classes): in row i and column j the number of images that show i and were taken for j.
    """
    counts = np.bincount(labels * n_classes + predicted, minlength=n_classes * n_classes)
    return counts.reshape(n_classes, n_classes).astype(np.int64)


def score_classes(
    confusion: npt.NDArray[np.int64], labels: Sequence[str], n_train: npt.NDArray[np.int64]
) -> tuple[ClassScore, ...]:
    """A score for each class.

    Args:
        confusion: As ``count_confusions`` gives it.
        labels: Class names.
        n_train: Images of each class in the training split, int64 (classes,).
    """
    shown, predicted, right = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    return tuple(
        ClassScore(
            label=label,
            n_train=int(n_train[i]),
            n=int(shown[i]),
            n_predicted=int(predicted[i]),
            n_right=int(right[i]),
            precision=_share(right[i], predicted[i]),
            recall=_share(right[i], shown[i]),
            f1=_share(2 * right[i], shown[i] + predicted[i]),
        )
        for i, label in enumerate(labels)
    )


def flag_classes(scores: Sequence[ClassScore]) -> dict[str, Flag]:
    """The classes that training images or the network leave behind, by name.

    A class has few images where the training split holds less than half as many as of a class in the mean. Its recall is low
    where its 95 % interval lies wholly below the share of all test images that were recognised, and more than one image was not:
    among many classes, one mistake in a few images is chance.
    """
    mean = sum(score.n_train for score in scores) / len(scores)
    overall = sum(score.n_right for score in scores) / max(1, sum(score.n for score in scores))
    flags: dict[str, Flag] = {}
    for score in scores:
        few = score.n_train < FEW * mean
        low = score.recall_interval[1] < overall and score.n - score.n_right > 1
        if few or low:
            flags[score.label] = "few images and low recall" if few and low else "few images" if few else "low recall"
    return flags


def most_confused(confusion: npt.NDArray[np.int64], labels: Sequence[str], n: int) -> tuple[tuple[str, str, int], ...]:
    """The most frequent mistakes as (shows, taken for, how often), at most ``n`` of them."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:n]
    pairs = (np.unravel_index(index, wrong.shape) for index in order)
    return tuple((labels[i], labels[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j])


def _share(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else 0.0
