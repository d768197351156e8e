"""What a report shows of a run beyond its figures: answers, mistakes, distorted images. Gathered once, when training ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from convoy.training.report.calibration import Calibration, calibrate
from convoy.training.report.predictions import Predictions

if TYPE_CHECKING:
    from convoy.training.data.dataset import Dataset, Split
    from convoy.training.networks.classifier import ImageClassifier
    from convoy.training.recipes.recipe import Augmentation, Recipe

N_MISTAKES: Final = 40
N_SOURCES: Final = 6
N_DRAWS: Final = 7


@dataclass(frozen=True)
class Mistake:
    """A test image that was taken for another class.

    Attributes:
        index: Its place in the test split.
        image: uint8 (H, W, C).
        shows: The class that it shows.
        taken_for: The class of the largest logit.
        probability: Of that class, at the fitted temperature.
    """

    index: int
    image: npt.NDArray[np.uint8]
    shows: str
    taken_for: str
    probability: float


@dataclass(frozen=True)
class Exhibits:
    """What pictures and tables are made of.

    Attributes:
        validation: The answers to the validation split.
        test: The answers to the test split.
        calibration: The temperature fitted on the first, and what it does.
        n_train: Images of each class in the training split, int64 (classes,).
        mistakes: The most confident ones on the test split, the most confident first.
        augmented: Training images, each with draws of its augmentation behind it: uint8 (images, 1 + draws, H, W, C); None where
            the recipe distorts nothing.
    """

    validation: Predictions
    test: Predictions
    calibration: Calibration
    n_train: npt.NDArray[np.int64]
    mistakes: tuple[Mistake, ...]
    augmented: npt.NDArray[np.uint8] | None


def gather(classifier: ImageClassifier, dataset: Dataset, recipe: Recipe, *, seed: int) -> Exhibits:
    """Run the trained classifier once over the validation and the test split, and pick what is worth a look.

    Args:
        classifier: Trained, in evaluation mode; on any device.
        dataset: What it was trained on; images are taken by index, a few at a time.
        recipe: Where the augmentation comes from.
        seed: Of the run; the preview draws from a generator of its own.
    """
    validation, test = Predictions.of(classifier, dataset.validation), Predictions.of(classifier, dataset.test)
    calibration = calibrate(validation, test)
    return Exhibits(
        validation=validation,
        test=test,
        calibration=calibration,
        n_train=np.bincount(dataset.train.labels, minlength=len(dataset.labels)),
        mistakes=find_mistakes(test, dataset.test, dataset.labels, calibration.temperature),
        augmented=preview_augmentation(dataset.train, recipe.augmentation, seed),
    )


def find_mistakes(predictions: Predictions, split: Split, labels: tuple[str, ...], temperature: float) -> tuple[Mistake, ...]:
    """The wrong answers of which the classifier was surest, at most ``N_MISTAKES``."""
    confidence = predictions.confidence(temperature)
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:N_MISTAKES]
    images = split.images[worst] if len(worst) else ()
    return tuple(
        Mistake(
            index=int(index),
            image=image,
            shows=labels[predictions.labels[index]],
            taken_for=labels[predictions.predicted[index]],
            probability=float(confidence[index]),
        )
        for index, image in zip(worst, images, strict=True)
    )


def preview_augmentation(split: Split, amounts: Augmentation, seed: int) -> npt.NDArray[np.uint8] | None:
    """The first image of each of the first classes, and what the augmentation makes of it; None where it changes nothing."""
    from convoy.training.data.augmentation import Augment

    _, first = np.unique(split.labels, return_index=True)
    originals = torch.from_numpy(np.ascontiguousarray(split.images[first[:N_SOURCES]]))
    augment = Augment(amounts, torch.Generator().manual_seed(seed))
    rows = torch.stack([originals, *(augment(originals) for _ in range(N_DRAWS))], dim=1)
    return None if bool((rows == rows[:, :1]).all()) else rows.numpy()
