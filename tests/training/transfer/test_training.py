"""Transfer through the whole of training: what is frozen stays as it was taken over, what learns does not, and the run says so."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load

from convoy.training.data import Dataset
from convoy.training.loop import Hardware
from convoy.training.recipes import Recipe, get_recipe
from convoy.training.run import TrainedRun, train
from convoy.training.run_folder import load_run, write_run


def recipe_for(dataset: Dataset, *more: str) -> Recipe:
    how = ("backbone=lenet5", "weights=file", f"image_size_px={dataset.image.height_px}", "epochs=2", "batch_size=32", "dropout=0")
    return get_recipe("transfer", data="digits", assignments=[*how, *more])


def test_frozen_blocks_stay_and_the_rest_learns(trained: TrainedRun, few_digits: Dataset, tmp_path: Path) -> None:
    write_run(tmp_path / "donor", trained)
    recipe = recipe_for(few_digits, "frozen_fraction=0.5", "head_epochs=0")
    run = train(recipe, few_digits, seed=3, hardware=Hardware(device="cpu"), weights=tmp_path / "donor")
    before, after = load(trained.weights), load(run.weights)
    assert before.keys() == after.keys()
    changed = {name.split(".")[1] for name in after if name.startswith("network.") and not torch.equal(before[name], after[name])}
    assert changed == {"c5", "f6", "output"}
    assert run.record.preprocessing == trained.record.preprocessing
    assert run.record.take_over is not None
    assert run.record.take_over.source == trained.record.run_id
    write_run(tmp_path / "run", run)
    assert load_run(tmp_path / "run").run.take_over == run.record.take_over
