"""Fixtures of the training tests: a small part of the real digits, a recipe that takes a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convoy.training.data import Dataset, load_dataset
from convoy.training.loop import Hardware
from convoy.training.recipes import Recipe, get_recipe
from convoy.training.run import TrainedRun, train


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits", seed=0, validation_fraction=0.1)


@pytest.fixture(scope="session")
def few_digits(digits: Dataset) -> Dataset:
    return replace(
        digits,
        train=digits.train.take(np.arange(96)),
        validation=digits.validation.take(np.arange(40)),
        test=digits.test.take(np.arange(40)),
    )


@pytest.fixture(scope="session")
def quick_recipe() -> Recipe:
    return get_recipe("lenet5", assignments=["epochs=3", "patience_epochs=3", "batch_size=32"])


@pytest.fixture(scope="session")
def trained(few_digits: Dataset, quick_recipe: Recipe) -> TrainedRun:
    return train(quick_recipe, few_digits, seed=7, hardware=Hardware(device="cpu"))
