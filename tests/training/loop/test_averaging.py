from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from convoy.contract.manifest import Preprocessing
from convoy.training.data import Dataset
from convoy.training.loop import Hardware
from convoy.training.loop.averaging import Average, measure_batch_norms
from convoy.training.networks.classifier import ImageClassifier
from convoy.training.networks.preprocessing import PixelPreprocessing
from convoy.training.recipes import get_recipe
from convoy.training.run import train


@pytest.fixture
def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    facts = Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.0,), std=(1.0,))
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    return ImageClassifier(PixelPreprocessing(facts), network)


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (8, 6, 6, 1), dtype=torch.uint8, generator=generator) for _ in range(3)]


def weight(classifier: nn.Module) -> Tensor:
    return next(parameter for parameter in classifier.parameters()).detach()


def move(classifier: nn.Module, to: float) -> None:
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.fill_(to)


def test_ema_follows_its_formula_and_forgets_the_start_soon(classifier: ImageClassifier) -> None:
    recipe = get_recipe("lenet5", assignments=["averaging=ema", "averaging_decay=0.5"])
    move(classifier, 0.0)
    average = Average(classifier, recipe)
    expected = 0.0
    for step, value in enumerate((1.0, 3.0, -2.0, 5.0, 5.0, 1.0, 7.0, 2.0, 4.0, 4.0)):
        move(classifier, value)
        average.end_step(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    mean = average.end_epoch(1, [])
    assert mean is not classifier
    assert weight(mean).flatten().tolist() == pytest.approx([expected] * weight(mean).numel(), rel=1e-5)


def test_swa_is_the_mean_of_the_last_epochs(classifier: ImageClassifier, batches: list[Tensor]) -> None:
    recipe = get_recipe("lenet5", assignments=["epochs=8", "averaging=swa", "averaging_fraction=0.375"])
    average = Average(classifier, recipe)
    for epoch in range(1, 9):
        move(classifier, float(epoch))
        classifier.train()
        candidate = average.end_epoch(epoch, batches)
        if epoch < 6:
            assert candidate is classifier
    assert weight(candidate).unique().tolist() == [7.0]  # of 6, 7 and 8


def test_statistics_of_batch_norms_are_the_mean_over_the_batches(classifier: ImageClassifier, batches: list[Tensor]) -> None:
    classifier.train()
    before = copy.deepcopy(classifier.state_dict())
    measure_batch_norms(classifier, batches)
    conv, norm = classifier.network[0], classifier.network[1]
    with torch.no_grad():
        maps = [conv(classifier.preprocessing(images)) for images in batches]
    mean = torch.stack([each.mean(dim=(0, 2, 3)) for each in maps]).mean(dim=0)
    variance = torch.stack([each.var(dim=(0, 2, 3)) for each in maps]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.1
    assert classifier.training
    assert norm.training
    for name, tensor in classifier.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(tensor, before[name])


def test_frozen_batch_norms_keep_their_statistics(classifier: ImageClassifier, batches: list[Tensor]) -> None:
    before = classifier.network[1].running_mean.clone()
    measure_batch_norms(classifier, batches, frozen={"network.1"})
    assert torch.equal(classifier.network[1].running_mean, before)


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_what_is_kept_is_what_was_validated(few_digits: Dataset, averaging: str) -> None:
    recipe = get_recipe("lenet5", assignments=["epochs=3", f"averaging={averaging}", "averaging_fraction=1"])
    plain = get_recipe("lenet5", assignments=["epochs=3"])
    run, other = (train(each, few_digits, seed=0, hardware=Hardware(device="cpu")) for each in (recipe, plain))
    assert run.weights != other.weights
    from convoy.training.loop import evaluate

    validation = few_digits.validation
    score = evaluate(run.classifier, torch.from_numpy(validation.images[:]), torch.from_numpy(validation.labels))
    assert score.loss == pytest.approx(run.metrics.validation_loss, rel=1e-5)
    assert score.top1_error == run.metrics.validation_top1_error
