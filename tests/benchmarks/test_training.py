"""The training benchmark compares what it says: the same network on the same images, each told to train as much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import _common_loop, settings, training
from benchmarks.settings import AS_IT_IS
from convoy.contract.errors import DataError
from convoy.training.data import DataLocation, load_dataset
from convoy.training.networks import build_network
from convoy.training.recipes import get_recipe


def mnist_folder() -> Path:
    location = DataLocation.from_environment()
    if location.root is None or not (location.root / "mnist").is_dir():
        pytest.skip("CONVOY_DATA has no mnist")
    return location.root / "mnist"


def test_the_common_loop_refuses_a_folder_without_mnist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected train-images-idx3-ubyte or .*gz, found neither"):
        _common_loop.lay_out(tmp_path, tmp_path / "root")


@pytest.mark.mnist
def test_the_common_loop_learns(tmp_path: Path) -> None:
    _common_loop.lay_out(mnist_folder(), tmp_path)
    torch.manual_seed(0)
    dataset = load_dataset("mnist", location=DataLocation.from_environment())
    network = build_network("lenet5", image=dataset.image, n_classes=10)
    distortion = get_recipe("lenet5").augmentation
    outcome = _common_loop.train(network, tmp_path, epochs=1, n_images=3200, distortion=distortion, seed=0)
    assert len(outcome.seconds) == 1
    assert outcome.top1_error < 0.6  # 0.9 by chance


@pytest.mark.mnist
def test_the_training_benchmark_prints_its_ratios() -> None:
    mnist_folder()
    result = CliRunner().invoke(training.main, ["--rounds", "1", "--epochs", "1", "--images", "256", "--no-fast", "--json"])
    assert result.exit_code in (0, 1), result.output  # a goal may not hold on so few images
    figures = {figure["name"]: figure for figure in json.loads(result.stdout)["figures"]}
    ratio = figures["common affine / convoy: an epoch"]
    assert ratio["value"] == pytest.approx(figures["common affine: an epoch"]["value"] / figures["convoy: an epoch"]["value"])
    assert ratio["goal"] == ">= 3"


def test_settings_are_compared_side_by_side() -> None:
    arguments = ["lenet5", "--data", "digits", "--set", "epochs=1", "--set", "patience_epochs=1", "--jobs", "2"]
    result = CliRunner().invoke(
        settings.main, [*arguments, "--try", "rotation_deg=0 learning_rate=1e-9", "--json", "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    errors = {figure["name"]: figure["value"] for figure in json.loads(result.stdout)["figures"]}
    assert errors[f"{AS_IT_IS}: test error"] < errors["rotation_deg=0 learning_rate=1e-9: test error"]  # which learns nothing
