from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from convoy.contract.errors import TrainingError, UsageError
from convoy.training.data import Augment, Dataset
from convoy.training.loop import EpochRecord, Hardware, Listener, choose_device, evaluate, fit, seeded
from convoy.training.loop.optimization import make_optimizer
from convoy.training.loop.schedule import learning_rate_at
from convoy.training.networks import ImageClassifier, LeNet5, build_classifier
from convoy.training.recipes import Recipe, get_recipe
from convoy.training.run import TrainedRun, resolve_preprocessing, train

CPU = Hardware(device="cpu")


def fresh(dataset: Dataset, recipe: Recipe) -> ImageClassifier:
    return build_classifier(
        recipe.network,
        image=dataset.image,
        n_classes=len(dataset.labels),
        preprocessing=resolve_preprocessing(recipe, dataset),
    )


def weights(classifier: ImageClassifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in classifier.state_dict().items()}


class Ear(Listener):
    """Hears everything."""

    def __init__(self) -> None:
        self.total = 0
        self.images = 0
        self.epochs: list[tuple[EpochRecord, bool]] = []

    def on_start(self, *, epochs: int, images_per_epoch: int) -> None:
        self.total = epochs * images_per_epoch

    def on_step(self, *, n_images: int) -> None:
        self.images += n_images

    def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
        self.epochs.append((record, is_best))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    few_digits: Dataset, quick_recipe: Recipe, trained: TrainedRun
) -> None:
    again = train(quick_recipe, few_digits, seed=7, hardware=CPU)
    other = train(quick_recipe, few_digits, seed=8, hardware=CPU)
    assert again.weights == trained.weights
    assert again.record.weights_sha256 == trained.record.weights_sha256
    assert other.weights != trained.weights


def test_the_loop_is_the_plain_one_to_the_bit(few_digits: Dataset, quick_recipe: Recipe) -> None:
    """What a person would write for AdamW, one-cycle and distortions; all that the loop can do besides changes no bit of it."""
    with seeded(7) as generator:
        classifier = fresh(few_digits, quick_recipe).to(memory_format=torch.channels_last)
        images, labels = torch.from_numpy(few_digits.train.images[:]), torch.from_numpy(few_digits.train.labels)
        matrices = [parameter for parameter in classifier.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in classifier.parameters() if parameter.ndim == 1]
        groups = [{"params": matrices, "weight_decay": quick_recipe.weight_decay}, {"params": biases, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=quick_recipe.learning_rate, betas=(0.9, 0.99))
        augment, step, ends = Augment(quick_recipe.augmentation, generator), 0, []
        for _ in range(3):
            order = torch.randperm(96, generator=generator)
            for indices in order.split(32):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, 9, quick_recipe)
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(classifier(augment(images[indices])), labels[indices])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
            ends.append(weights(classifier))
    run = train(quick_recipe, few_digits, seed=7, hardware=CPU)
    for name, tensor in run.classifier.state_dict().items():
        assert torch.equal(tensor, ends[run.metrics.best_epoch - 1][name])


def test_training_does_not_disturb_what_the_caller_draws(few_digits: Dataset, quick_recipe: Recipe) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002

    with seeded(3):
        expected = draw()
    with seeded(3):
        train(quick_recipe, few_digits, seed=1, hardware=CPU)
        assert draw() == expected


def test_it_learns(digits: Dataset) -> None:
    recipe = get_recipe("lenet5", assignments=["epochs=6", "patience_epochs=6"])
    run = train(recipe, digits, seed=0, hardware=CPU)
    assert run.metrics.test_top1_error < 0.15
    assert run.metrics.history[-1].train_loss < 0.5 * run.metrics.history[0].train_loss


def test_the_listener_hears_every_image_and_every_epoch(few_digits: Dataset, quick_recipe: Recipe) -> None:
    ear = Ear()
    run = train(quick_recipe, few_digits, seed=0, hardware=CPU, listener=ear)
    assert ear.images == ear.total == 3 * len(few_digits.train)
    assert tuple(record for record, _ in ear.epochs) == run.metrics.history
    assert [record.epoch for record, is_best in ear.epochs if is_best][-1] == run.metrics.best_epoch


def test_early_stopping_keeps_the_best_weights(few_digits: Dataset) -> None:
    # a rate that is far too large: after some good epoch the weights only get worse
    recipe = get_recipe("lenet5", assignments=["epochs=40", "patience_epochs=4", "schedule=constant", "batch_size=32"])
    with seeded(0) as generator:
        classifier = fresh(few_digits, recipe)
        copies: list[dict[str, torch.Tensor]] = []

        class Copy(Listener):
            def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
                copies.append(weights(classifier))

        result = fit(classifier, few_digits, recipe, generator=generator, listener=Copy())
    assert len(result.history) == result.best_epoch + 4 < 40
    kept, best, last = weights(classifier), copies[result.best_epoch - 1], copies[-1]
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)
    record = result.history[result.best_epoch - 1]
    ranks = [(r.validation_top1_error, r.validation_loss) for r in result.history]
    assert (record.validation_top1_error, record.validation_loss) == min(ranks)
    score = evaluate(classifier, torch.from_numpy(few_digits.validation.images), torch.from_numpy(few_digits.validation.labels))
    assert score == result.validation
    assert not classifier.training


def test_a_loss_that_is_not_finite_stops_and_says_what_to_try(few_digits: Dataset) -> None:
    recipe = get_recipe("lenet5", assignments=["optimizer=sgd", "learning_rate=100", "schedule=constant", "batch_size=8"])
    with pytest.raises(TrainingError, match=r"epoch \d+: expected a finite loss, found .*--set learning_rate=10"):
        train(recipe, few_digits, seed=0, hardware=CPU)


def test_a_score_does_not_depend_on_the_batch_size(trained: TrainedRun, few_digits: Dataset) -> None:
    images, labels = torch.from_numpy(few_digits.test.images), torch.from_numpy(few_digits.test.labels)
    whole, split = (evaluate(trained.classifier, images, labels, batch_size=size) for size in (100, 7))
    assert whole.top1_error == split.top1_error
    assert whole.loss == pytest.approx(split.loss, rel=1e-5)
    with torch.no_grad():
        logits = trained.classifier(images)
    assert whole.top1_error == (logits.argmax(dim=1) != labels).double().mean().item()
    assert whole.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_one_cycle_rises_and_falls_to_zero() -> None:
    recipe = get_recipe("lenet5", assignments=["schedule=one-cycle", "warmup_fraction=0.25", "learning_rate=1.0"])
    path = [learning_rate_at(step, 1000, recipe) for step in range(1000)]
    assert path[0] == pytest.approx(1 / 25)
    assert path.index(max(path)) == 250
    assert max(path) == pytest.approx(1.0)
    assert 0 < path[-1] < 1e-4
    assert all(a < b for a, b in pairwise(path[:251]))
    assert all(a > b for a, b in pairwise(path[250:]))


def test_cosine_falls_from_the_peak_and_constant_stays() -> None:
    cosine = get_recipe("lenet5", assignments=["schedule=cosine", "learning_rate=1.0"])
    constant = get_recipe("lenet5", assignments=["schedule=constant", "learning_rate=1.0"])
    assert [learning_rate_at(step, 100, cosine) for step in (0, 50)] == pytest.approx([1.0, 0.5])
    assert {learning_rate_at(step, 100, constant) for step in range(100)} == {1.0}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_leaves_biases_alone(optimizer: str) -> None:
    network = LeNet5()
    recipe = get_recipe("lenet5", assignments=[f"optimizer={optimizer}", "weight_decay=0.5"])
    decay = {id(p): group["weight_decay"] for group in make_optimizer(network, recipe).param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith("bias") else 0.5)


def test_devices_that_are_not_there_are_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "mps", "meta", ""):
        with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
            choose_device(name)
    with pytest.raises(UsageError, match="use --device cpu"):
        choose_device("cuda:99")


def test_the_preprocessing_is_measured_or_the_recipe_says_it(few_digits: Dataset) -> None:
    measured = resolve_preprocessing(get_recipe("lenet5"), few_digits)
    assert measured.polarity == "auto"
    assert measured.mean[0] == pytest.approx((few_digits.train.images / 255).mean(), abs=1e-5)
    given = resolve_preprocessing(
        get_recipe("lenet5", assignments=["normalisation.mean=[0.1307]", "normalisation.std=[0.3081]"]), few_digits
    )
    assert (given.mean, given.std, given.scale) == ((0.1307,), (0.3081,), 1 / 255)


def test_the_preprocessing_is_that_of_the_weights_where_they_saw_as_many_channels(few_digits: Dataset) -> None:
    taken = get_recipe("transfer", assignments=["backbone=efficientnet_v2_l"])
    assert taken.normalisation.mean is None
    coloured = {name: replace(split, images=np.repeat(split.images, 3, axis=-1)) for name, split in few_digits.splits.items()}
    photos = replace(few_digits, image=few_digits.image.model_copy(update={"channels": 3}), **coloured)
    assert resolve_preprocessing(taken, photos).mean == (0.5, 0.5, 0.5)
    grey = resolve_preprocessing(taken, few_digits)
    assert grey.mean[0] == pytest.approx((few_digits.train.images / 255).mean(), abs=1e-5)


@pytest.mark.mnist
def test_the_real_mnist_is_read_as_everyone_else_reads_it() -> None:
    from convoy.training.data import DataLocation, load_dataset

    location = DataLocation.from_environment()
    if location.root is None or not (location.root / "mnist").is_dir():
        pytest.skip("CONVOY_DATA has no mnist")
    data = load_dataset("mnist", seed=0, validation_fraction=0.1, location=DataLocation(location.root, Path("/nowhere"), False))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    pixels = np.concatenate([data.train.images, data.validation.images]) / 255
    assert pixels.mean() == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std() == pytest.approx(0.3081, abs=1e-4)
