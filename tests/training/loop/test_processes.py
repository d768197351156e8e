from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from convoy.contract.errors import TrainingError
from convoy.training.data import Dataset
from convoy.training.loop import Checkpoints, Hardware, Listener
from convoy.training.recipes import Recipe, get_recipe
from convoy.training.run import TrainedRun, train

ONE, TWO = Hardware(device="cpu"), Hardware(device="cpu", devices=2, strategy="ddp")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    # 96 images in steps of 19: the last one has a single image, which only one of two processes sees
    return get_recipe("lenet5", assignments=["epochs=2", "batch_size=19", "learning_rate=0.02", "optimizer=sgd", "averaging=ema"])


@pytest.fixture(scope="module")
def one(recipe: Recipe, few_digits: Dataset) -> TrainedRun:
    return train(recipe, few_digits, seed=5, hardware=ONE)


def assert_close(actual: TrainedRun, expected: TrainedRun) -> None:
    torch.testing.assert_close(load(actual.weights), load(expected.weights), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(actual.metrics.history, expected.metrics.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.train_top1_error == pytest.approx(theirs.train_top1_error, abs=1e-9)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)


def test_two_processes_reach_the_weights_of_one(recipe: Recipe, few_digits: Dataset, one: TrainedRun) -> None:
    class Ear(Listener):
        images = 0

        def on_step(self, *, n_images: int) -> None:
            self.images += n_images

    ear = Ear()
    two = train(recipe, few_digits, seed=5, hardware=TWO, listener=ear)
    assert_close(two, one)
    assert two.record.device == "2 x cpu"
    assert ear.images == 2 * 96


def test_two_processes_go_on_with_what_one_left(tmp_path: Path, recipe: Recipe, few_digits: Dataset, one: TrainedRun) -> None:
    class Stop(Listener):
        left = 8

        def on_step(self, *, n_images: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise ZeroDivisionError

    keeper = Checkpoints(tmp_path / "run.partial", every_s=0)
    with pytest.raises(ZeroDivisionError):
        train(recipe, few_digits, seed=5, hardware=ONE, checkpoints=keeper, listener=Stop())
    assert_close(train(recipe, few_digits, seed=5, hardware=TWO, checkpoints=keeper), one)


def test_a_process_that_dies_ends_all_with_its_name(recipe: Recipe, few_digits: Dataset) -> None:
    class Kill(Listener):
        def on_epoch(self, record: object, *, is_best: bool) -> None:
            victim = next(child for child in multiprocessing.active_children() if child.name == "convoy-train-1")
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)

    endless = recipe.model_copy(update={"epochs": 10_000, "patience_epochs": 10_000})
    with pytest.raises(TrainingError, match=r"training process 2 of 2 was ended by SIGKILL: often .*lack of memory"):
        train(endless, few_digits, seed=5, hardware=TWO, listener=Kill())
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("convoy-train")]


def test_what_goes_wrong_in_a_process_is_said_as_with_one(few_digits: Dataset) -> None:
    recipe = get_recipe("lenet5", assignments=["optimizer=sgd", "learning_rate=100", "schedule=constant", "batch_size=8"])
    with pytest.raises(TrainingError, match=r"epoch \d+: expected a finite loss"):
        train(recipe, few_digits, seed=0, hardware=TWO)
