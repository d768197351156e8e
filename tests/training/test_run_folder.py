from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from convoy.cli.subject import facts_of
from convoy.contract.errors import ContractError, DigestMismatchError, UsageError
from convoy.contract.files import sha256_bytes
from convoy.training.data import Dataset
from convoy.training.recipes import get_recipe, recipe_names
from convoy.training.run import Metrics, RunRecord, TrainedRun
from convoy.training.run_folder import check_destination, load_run, write_run


@pytest.fixture
def folder(tmp_path: Path, trained: TrainedRun) -> Path:
    path = tmp_path / "runs" / "one"
    write_run(path, trained)
    return path


def replace_weights(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Other weights with the right digest: only the shapes can tell."""
    tensors = load((folder / "weights.safetensors").read_bytes())
    for name, tensor in change.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    data = save(tensors)
    (folder / "weights.safetensors").write_bytes(data)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "weights_sha256": sha256_bytes(data)}))


def test_a_run_reads_back_as_it_was(folder: Path, trained: TrainedRun, few_digits: Dataset) -> None:
    loaded = load_run(folder)
    assert loaded.folder == folder
    assert loaded.run == trained.record
    assert loaded.metrics == trained.metrics
    assert not loaded.classifier.training
    images = torch.from_numpy(few_digits.test.images)
    with torch.no_grad():
        assert torch.equal(loaded.classifier(images), trained.classifier(images))


@pytest.mark.parametrize("name", recipe_names())
def test_the_record_of_every_recipe_reads_back(tmp_path: Path, trained: TrainedRun, name: str) -> None:
    record = trained.record.model_copy(update={"recipe": get_recipe(name)})
    record.save(tmp_path / "run.json")
    assert RunRecord.load(tmp_path / "run.json") == record


def test_it_holds_all_that_the_next_stage_needs(folder: Path, trained: TrainedRun) -> None:
    assert {"metrics.json", "report.html", "run.json", "weights.safetensors"} <= {path.name for path in folder.iterdir()}
    facts = load_run(folder).facts
    assert (facts.recipe, facts.dataset, facts.seed, facts.n_parameters) == ("lenet5", "digits", 7, 61_706)
    assert (facts.n_train, facts.n_validation, facts.n_test) == (96, 40, 40)
    assert (facts.epochs, facts.best_epoch) == (3, trained.metrics.best_epoch)
    assert facts.test_top1_error == trained.metrics.test_top1_error


def test_only_trained_numbers_are_weights(folder: Path) -> None:
    tensors = load((folder / "weights.safetensors").read_bytes())
    assert sum(tensor.numel() for tensor in tensors.values()) == 61_706
    assert set(tensors) >= {"network.c1.weight", "network.output.bias"}


def test_the_curves_are_a_picture(folder: Path) -> None:
    with Image.open(folder / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_an_empty_folder_is_filled_and_one_with_files_is_refused(tmp_path: Path, trained: TrainedRun) -> None:
    target = tmp_path / "here"
    target.mkdir()
    write_run(target, trained)
    with pytest.raises(UsageError, match="expected a new or an empty folder, found files"):
        write_run(target, trained)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="found a file"):
        check_destination(tmp_path / "file")
    with pytest.raises(UsageError, match="nothing can be written to"):
        check_destination(tmp_path / "file" / "below")


@pytest.mark.parametrize("stage", ["convoy.training.run_folder.render_report", "convoy.contract.files.sync_tree"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_crash_in_the_middle_leaves_nothing(
    tmp_path: Path, trained: TrainedRun, monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(stage, fail)
    with pytest.raises(type(error)):
        write_run(tmp_path / "runs" / "one", trained)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("place", [0, 100, -1])
def test_changed_weights_are_refused(folder: Path, place: int) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError, match=r"run\.json names SHA-256 .*changed or cut short"):
        load_run(folder)


def test_weights_cut_short_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DigestMismatchError):
        load_run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network.f6.bias": None}, "network.f6.bias is missing"),
        ({"network.extra": torch.zeros(3)}, "network.extra is not of this network"),
        ({"network.f6.bias": torch.zeros(85)}, r"network.f6.bias: expected torch.float32 \(84,\), found torch.float32 \(85,\)"),
        ({"network.f6.bias": torch.zeros(84).half()}, "found torch.float16"),
    ],
)
def test_weights_of_another_network_are_refused(folder: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    replace_weights(folder, change)
    with pytest.raises(ContractError, match=message):
        load_run(folder)


def test_weights_that_are_no_safetensors_file_are_refused(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "weights.safetensors").write_bytes(b"not weights")
    (folder / "run.json").write_text(json.dumps({**record, "weights_sha256": sha256_bytes(b"not weights")}))
    with pytest.raises(ContractError, match="expected a safetensors file"):
        load_run(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "run.json", "metrics.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ContractError, match=name):
        load_run(folder)


def test_a_best_epoch_outside_the_history_is_refused(folder: Path) -> None:
    path = folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "best_epoch": 4}))
    with pytest.raises(ContractError, match="best_epoch: 4 is more than the 3 epochs"):
        load_run(folder)


def change_metrics(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "metrics.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_run_of_version_1_reads_as_one_without_classes_and_temperature(folder: Path) -> None:
    def age(document: dict[str, Any]) -> None:
        document["schema_version"] = 1
        for field in ("test_classes", "test_confusion", "calibration"):
            del document[field]

    change_metrics(folder, age)
    loaded = load_run(folder)
    assert (loaded.metrics.schema_version, loaded.metrics.test_classes, loaded.metrics.calibration) == (2, (), None)
    assert facts_of(loaded).temperature == loaded.metrics.temperature == 1.0


def test_the_temperature_of_a_run_reaches_the_facts_of_its_export(folder: Path) -> None:
    change_metrics(folder, lambda document: document["calibration"].update(temperature=2.5))
    assert facts_of(load_run(folder)).temperature == 2.5


def test_each_row_of_the_confusion_matrix_is_a_line(folder: Path, trained: TrainedRun) -> None:
    lines = [line.strip() for line in (folder / "metrics.json").read_text().splitlines()]
    for row in trained.metrics.test_confusion:
        assert str(list(row)) in [line.rstrip(",") for line in lines]
    assert sum(map(sum, trained.metrics.test_confusion)) == 40


@pytest.mark.parametrize("label", ["[1,2]", "a\n[ 3 ,\n 4]", "[\\n7,8]"])
def test_names_that_look_like_rows_stay_as_they_are(trained: TrainedRun, label: str) -> None:
    scores = tuple(score.model_copy(update={"label": label}) for score in trained.metrics.test_classes)
    metrics = trained.metrics.model_copy(update={"test_classes": scores})
    assert Metrics.model_validate_json(metrics.to_bytes()) == metrics


def test_the_page_and_its_pictures_lie_beside_the_weights(folder: Path) -> None:
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    pictures = {path.name for path in folder.glob("*.png")}
    assert {"curves.png", "confusion.png", "calibration.png", "filters.png"} <= pictures


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="expected a run folder that `convoy train` made"):
        load_run(tmp_path / "nowhere")
