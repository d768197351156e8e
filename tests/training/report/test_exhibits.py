from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from convoy.training.data import Dataset, Split
from convoy.training.recipes import Recipe
from convoy.training.recipes.recipe import Augmentation
from convoy.training.report import exhibits as module
from convoy.training.report.exhibits import find_mistakes, gather, preview_augmentation
from convoy.training.report.predictions import Predictions
from convoy.training.run import TrainedRun

SHIFTED = Augmentation(shift_px=3)


class Lazy:
    """Images that are read when they are asked for, as a folder's are; remembers how many at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self._images, self.shape, self.dtype = images, images.shape, images.dtype
        self.ndim = images.ndim
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, indices: Any) -> np.ndarray:
        images = self._images[indices]
        self.read.append(len(images))
        return images


def test_the_answers_are_those_of_the_classifier(trained: TrainedRun, few_digits: Dataset) -> None:
    with torch.inference_mode():
        expected = trained.classifier(torch.from_numpy(few_digits.test.images)).numpy()
    np.testing.assert_allclose(trained.exhibits.test.logits, expected, rtol=1e-4, atol=1e-4)
    assert np.array_equal(trained.exhibits.test.labels, few_digits.test.labels)
    assert trained.metrics.test_top1_error == (expected.argmax(1) != few_digits.test.labels).mean()
    assert trained.metrics.test_loss == pytest.approx(
        torch.nn.functional.cross_entropy(torch.from_numpy(expected), torch.from_numpy(few_digits.test.labels)).item(), rel=1e-4
    )
    assert trained.exhibits.n_train.tolist() == np.bincount(few_digits.train.labels, minlength=10).tolist()


def test_images_that_lie_elsewhere_are_read_in_batches(
    trained: TrainedRun, few_digits: Dataset, quick_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convoy.training.report.predictions._MOST_PIXELS", 16 * 28 * 28)
    monkeypatch.setattr(module, "N_MISTAKES", 3)
    train, test = Lazy(few_digits.train.images), Lazy(few_digits.test.images)
    lazy = replace(few_digits, train=Split(train, few_digits.train.labels), test=Split(test, few_digits.test.labels))
    found = gather(trained.classifier, lazy, quick_recipe, seed=7)
    np.testing.assert_allclose(found.test.logits, trained.exhibits.test.logits, rtol=1e-4, atol=1e-4)
    assert test.read == [16, 16, 8, 3]
    assert train.read == [6]


def test_mistakes_are_the_surest_first_and_show_their_own_images(trained: TrainedRun, few_digits: Dataset) -> None:
    test, labels = trained.exhibits.test, few_digits.labels
    mistakes = trained.exhibits.mistakes
    wrong = np.flatnonzero(test.predicted != test.labels)
    assert len(mistakes) == len(wrong) > 3  # three epochs on 96 images
    assert {mistake.index for mistake in mistakes} == set(wrong)
    surest = [mistake.probability for mistake in mistakes]
    assert surest == sorted(surest, reverse=True)
    for mistake in mistakes:
        assert np.array_equal(mistake.image, few_digits.test.images[mistake.index])
        assert mistake.shows == labels[test.labels[mistake.index]]
        assert mistake.taken_for == labels[test.predicted[mistake.index]]
        assert mistake.shows != mistake.taken_for


def test_the_probability_of_a_mistake_is_the_one_that_is_served(few_digits: Dataset) -> None:
    logits = np.zeros((40, 10), dtype=np.float32)
    logits[np.arange(40), (few_digits.test.labels + 1) % 10] = 4
    (first, *_) = find_mistakes(Predictions(logits, few_digits.test.labels), few_digits.test, few_digits.labels, 2.0)
    assert first.probability == pytest.approx(np.exp(2) / (np.exp(2) + 9))


def test_without_a_mistake_no_image_is_read(few_digits: Dataset) -> None:
    right = Predictions(np.eye(10, dtype=np.float32)[few_digits.test.labels], few_digits.test.labels)
    images = Lazy(few_digits.test.images)
    assert find_mistakes(right, Split(images, few_digits.test.labels), few_digits.labels, 1.0) == ()
    assert images.read == []


def test_the_preview_has_the_originals_and_draws_that_differ(few_digits: Dataset) -> None:
    rows = preview_augmentation(few_digits.train, SHIFTED, seed=3)
    assert rows is not None
    assert rows.shape == (6, 8, 28, 28, 1)
    for label, row in enumerate(rows):
        first = np.flatnonzero(few_digits.train.labels == label)[0]
        assert np.array_equal(row[0], few_digits.train.images[first])
        assert len({image.tobytes() for image in row}) == 8


def test_the_preview_depends_on_the_seed_alone_and_disturbs_no_other_draw(few_digits: Dataset) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (preview_augmentation(few_digits.train, SHIFTED, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_recipe_that_distorts_nothing_has_no_preview(few_digits: Dataset) -> None:
    assert preview_augmentation(few_digits.train, Augmentation(), seed=0) is None
