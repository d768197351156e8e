"""The run folder: what training hands on, written whole or not at all.

::

    runs/lenet5-mnist-20251123-182403-5f0c/
      weights.safetensors   the trained weights
      run.json              RunRecord: recipe, data, labels, image, preprocessing, seed, versions
      metrics.json          Metrics: history, best epoch, validation and test error, classes, calibration
      report.html           all of it for people, one page that needs nothing else
      curves.png            its pictures: loss and error over the epochs, and also, where there is something to see,
      ...                   confusion.png, mistakes.png, calibration.png, filters.png, augmentation.png
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from convoy.contract.errors import ContractError, DigestMismatchError, UsageError
from convoy.contract.files import new_folder, sha256_bytes
from convoy.contract.manifest import TrainingFacts
from convoy.training.loop.checkpoint import RUN_FILE as RUN_FILE
from convoy.training.networks.classifier import ImageClassifier, build_classifier
from convoy.training.report.page import render_report
from convoy.training.run import Metrics, RunRecord, TrainedRun, training_facts

WEIGHTS_FILE: Final = "weights.safetensors"
METRICS_FILE: Final = "metrics.json"


@dataclass(frozen=True)
class LoadedRun:
    """A run that was read back.

    Attributes:
        folder: Where it is.
        run: What was trained, on what, how and where.
        metrics: How it went.
        classifier: The trained classifier, in evaluation mode, on the CPU.
    """

    folder: Path
    run: RunRecord
    metrics: Metrics
    classifier: ImageClassifier

    @property
    def facts(self) -> TrainingFacts:
        """What a manifest says about the run."""
        return training_facts(self.run, self.metrics)


def check_destination(folder: Path) -> None:
    """Make sure, before hours of work, that a run can be written to ``folder``.

    Raises:
        UsageError: It is a file, or a folder that is not empty, or nothing may be written there.
    """
    if folder.is_dir():
        if any(folder.iterdir()):
            raise UsageError(f"{folder}: expected a new or an empty folder, found files in it. Give another with --out.")
    elif folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder}: expected a new or an empty folder, found a file. Give another with --out.")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: nothing can be written to {parent}. Give another folder with --out.")


def write_run(folder: Path, run: TrainedRun) -> None:
    """Write ``run`` to ``folder``, whole or not at all.

    The files are written to a hidden folder beside it, flushed to disk, and the folder is renamed.

    Raises:
        UsageError: ``folder`` is a file, or a folder that is not empty.
        OSError: The disk is full or may not be written; nothing stays behind.
    """
    check_destination(folder)
    with new_folder(folder.resolve()) as aside:
        (aside / WEIGHTS_FILE).write_bytes(run.weights)
        (aside / RUN_FILE).write_bytes(run.record.to_bytes())
        (aside / METRICS_FILE).write_bytes(run.metrics.to_bytes())
        for name, data in render_report(run).items():
            (aside / name).write_bytes(data)


def load_run(run_dir: Path) -> LoadedRun:
    """Read a run folder back and check it.

    Raises:
        ContractError: A file is missing or damaged, or the weights do not fit the network.
        DigestMismatchError: The weights are not those that ``run.json`` names.
    """
    if not run_dir.is_dir():
        raise ContractError(f"{run_dir}: expected a run folder that `convoy train` made, found no folder.")
    if not (run_dir / RUN_FILE).exists():
        raise ContractError(f"{run_dir}: expected a run folder that `convoy train` made, found a folder without {RUN_FILE}.")
    record = RunRecord.load(run_dir / RUN_FILE)
    metrics = Metrics.load(run_dir / METRICS_FILE)
    weights = read_weights(run_dir / WEIGHTS_FILE, record.weights_sha256)
    classifier = build_classifier(
        record.recipe.network,
        image=record.image,
        n_classes=len(record.labels),
        preprocessing=record.preprocessing,
        architecture=record.recipe.architecture,
    )
    _check_weights(run_dir / WEIGHTS_FILE, expected=classifier.state_dict(), found=weights)
    classifier.load_state_dict(weights)
    return LoadedRun(run_dir, record, metrics, classifier.eval())


def read_weights(path: Path, expected_sha256: str) -> dict[str, Tensor]:
    """The weights of a run.

    Raises:
        ContractError: They are missing or damaged.
        DigestMismatchError: They are others than ``run.json`` names.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ContractError(f"{path}: expected the weights of a run, but they cannot be read: {error.strerror or error}") from error
    actual = sha256_bytes(data)
    if actual != expected_sha256:
        raise DigestMismatchError(
            f"{path}: {RUN_FILE} names SHA-256 {expected_sha256[:16]}..., found {actual[:16]}.... "
            "The file was changed or cut short after training: train again, or fetch the run folder again."
        )
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise ContractError(f"{path}: expected a safetensors file: {error}. Train again.") from error


def _check_weights(path: Path, *, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Every tensor of the network is there, of its shape and dtype, and there is no other."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not of this network" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        wanted, given = expected[name], found[name]
        if wanted.shape != given.shape or wanted.dtype != given.dtype:
            problems.append(f"{name}: expected {wanted.dtype} {tuple(wanted.shape)}, found {given.dtype} {tuple(given.shape)}")
    if problems:
        raise ContractError(
            f"{path}: the weights are not those of the network that {RUN_FILE} names: {'; '.join(sorted(problems))}."
        )
