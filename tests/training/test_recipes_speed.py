from __future__ import annotations

import pytest
import torch

from convoy.training.data import Dataset
from convoy.training.loop import Hardware
from convoy.training.networks import build_network
from convoy.training.recipes import get_recipe
from convoy.training.run import train


@pytest.mark.parametrize("name", ["lenet5-fast", "lenet5-best"])
def test_they_have_lenet5s_own_capacity(name: str, digits: Dataset) -> None:
    recipe = get_recipe(name)
    network = build_network(recipe.network, image=digits.image, n_classes=10, architecture=recipe.architecture)
    # a scale and a shift for each of 6 + 16 maps beside LeNet5's 61,706
    assert sum(parameter.numel() for parameter in network.parameters()) == 61_706 + 2 * (6 + 16)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", ["lenet5-fast", "lenet5-best"])
def test_they_mirror_nothing_and_distort_something(name: str) -> None:
    augmentation = get_recipe(name).augmentation
    assert augmentation.flip_probability == 0
    assert not augmentation.is_off


@pytest.mark.parametrize("name", ["lenet5-fast", "lenet5-best"])
def test_they_learn_other_digits_too(name: str, digits: Dataset) -> None:
    recipe = get_recipe(name, data="digits", assignments=["epochs=6", "patience_epochs=6", "batch_size=32"])
    assert recipe.normalisation.polarity == "auto"
    assert train(recipe, digits, seed=0, hardware=Hardware(device="cpu")).metrics.test_top1_error < 0.15
