from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from convoy.contract.errors import DataError
from convoy.training.data import Dataset, Split, load_dataset
from convoy.training.data.dataset import draw_stratified


def test_all_1797_digits_are_there_in_stratified_splits(digits: Dataset) -> None:
    sizes = {name: len(split) for name, split in digits.splits.items()}
    assert sum(sizes.values()) == 1797
    assert abs(sizes["test"] / 1797 - 0.2) < 0.01
    for split in digits.splits.values():
        shares = np.bincount(split.labels, minlength=10) / len(split)
        assert shares.min() > 0.08
        assert shares.max() < 0.12


def test_no_image_is_in_two_splits(digits: Dataset) -> None:
    seen = [image.tobytes() for split in digits.splits.values() for image in split.images]
    assert len(set(seen)) == len(seen)


def test_the_test_split_does_not_depend_on_the_seed(digits: Dataset) -> None:
    other = load_dataset("digits", seed=99, validation_fraction=0.2)
    assert np.array_equal(other.test.images, digits.test.images)
    assert np.array_equal(other.test.labels, digits.test.labels)
    assert not np.array_equal(other.validation.images[:50], digits.validation.images[:50])


def test_the_same_seed_gives_the_same_data(digits: Dataset) -> None:
    again = load_dataset("digits", seed=0, validation_fraction=0.1)
    assert again.sha256() == digits.sha256()


def test_they_are_light_on_dark_at_about_the_scale_of_mnist(digits: Dataset) -> None:
    images = digits.train.images[..., 0]
    assert images.dtype == np.uint8
    assert images[:, [0, -1], :].max() == images[:, :, [0, -1]].max() == 0  # a margin of background on all sides
    rows = (images > 32).any(axis=2).sum(axis=1)
    assert 18 <= np.median(rows) <= 21  # MNIST's digits are 20 px high
    assert images.max() > 230


def test_a_data_set_that_contradicts_itself_is_refused(digits: Dataset) -> None:
    with pytest.raises(DataError, match="expected a label for each of 359 images"):
        Split(digits.test.images, digits.test.labels[:-1])
    with pytest.raises(DataError, match="expected uint8 images"):
        Split(digits.test.images[..., 0], digits.test.labels)
    with pytest.raises(DataError, match="expected labels 0 to 8 in the train split, found 0 to 9"):
        dataclasses.replace(digits, labels=digits.labels[:9])
    with pytest.raises(DataError, match="expected images in the validation split, found none"):
        dataclasses.replace(digits, validation=digits.validation.take(np.arange(0)))


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.999])
def test_a_stratified_draw_has_some_of_each_class_and_leaves_some(fraction: float) -> None:
    labels = np.repeat(np.arange(3), [2, 10, 100]).astype(np.int64)
    drawn, rest = draw_stratified(labels, fraction, np.random.default_rng(0))
    assert sorted([*drawn, *rest]) == list(range(112))
    assert set(labels[drawn]) == set(labels[rest]) == {0, 1, 2}


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="at least two images of class 1"):
        draw_stratified(np.array([0, 0, 1], dtype=np.int64), 0.5, np.random.default_rng(0))


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.37])
def test_the_shares_of_a_draw_add_up_to_the_fraction(fraction: float) -> None:
    counts = np.array([97, 103, 88, 112, 5, 41])
    labels = np.repeat(np.arange(6), counts).astype(np.int64)
    drawn, _ = draw_stratified(labels, fraction, np.random.default_rng(0))
    assert len(drawn) == round(fraction * len(labels))
    assert np.abs(np.bincount(labels[drawn]) - fraction * counts).max() < 1
