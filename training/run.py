"""One training run, from a recipe and a data set to a trained classifier with its records."""

from __future__ import annotations

import logging
import platform
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from typing_extensions import Self

import convoy
from convoy.contract.files import Document, sha256_bytes
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Label, Preprocessing, Sha256, TrainingFacts
from convoy.training.data.augmentation import flip_warning
from convoy.training.data.dataset import Dataset
from convoy.training.loop import EpochRecord, Fit, Hardware, Listener, choose_device, fit, seeded
from convoy.training.loop.checkpoint import Checkpoints, Start
from convoy.training.loop.hardware import exact_products
from convoy.training.loop.processes import Job, fit_in_processes
from convoy.training.networks.classifier import ImageClassifier, build_classifier
from convoy.training.networks.preprocessing import measure
from convoy.training.recipes.recipe import Recipe
from convoy.training.report.calibration import Calibration, negative_log_likelihood
from convoy.training.report.exhibits import Exhibits, gather
from convoy.training.report.per_class import ClassScore, count_confusions, score_classes
from convoy.training.transfer import TakeOver, expected_preprocessing, take_over

_log = logging.getLogger(__name__)

_PHOTOS_MEASURED: Final = 1_024


class DatasetFacts(Document):
    """Which data a run saw.

    Attributes:
        name: The data set's name.
        n_train: Images in the training split.
        n_validation: Images in the validation split.
        n_test: Images in the test split.
        sha256: ``Dataset.sha256()``: of all pixels and labels, split by split.
        counts: By split, how many images each class has, in the order of the labels.
        skipped: Files that were left out because they cannot be read, and why.
        remarks: What is to be known about the data, such as images that are in two splits.
    """

    name: str
    n_train: int
    n_validation: int
    n_test: int
    sha256: Sha256
    counts: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, dataset: Dataset, sha256: str) -> DatasetFacts:
        """Those of ``dataset``, whose digest is known."""
        return cls(
            name=dataset.name,
            n_train=len(dataset.train),
            n_validation=len(dataset.validation),
            n_test=len(dataset.test),
            sha256=sha256,
            counts=dataset.counts(),
            skipped=dataset.skipped,
            remarks=dataset.remarks,
        )


class RunRecord(Document):
    """``run.json``: what was trained, on what, how and where.

    Attributes:
        schema_version: The version of this document's form.
        run_id: The run's name.
        created_at: When it ended, ISO 8601, UTC.
        recipe: The recipe, resolved: the data set's and the person's changes are in it.
        dataset: Which data it saw.
        labels: Class names, in the order of the logits.
        image: How any image becomes the network's pixels.
        preprocessing: What happens to the pixels before the network.
        seed: The one seed of the run.
        device: Where it ran, in words.
        n_threads: CPU threads of torch; sums are added in another order with another number.
        versions: The versions of Python and the libraries.
        n_parameters: How many numbers the network learns or could learn.
        take_over: What came from a network that was trained on other data; None where nothing did.
        weights_sha256: Digest of ``weights.safetensors``.
    """

    schema_version: Literal[1] = 1
    run_id: str
    created_at: str
    recipe: Recipe
    dataset: DatasetFacts
    labels: tuple[Label, ...] = Field(min_length=2)
    image: ImageSpec
    preprocessing: Preprocessing
    seed: int
    device: str
    n_threads: int
    versions: dict[str, str]
    n_parameters: int
    take_over: TakeOver | None = None
    weights_sha256: Sha256


class Metrics(Document):
    """``metrics.json``: how training went and what came out. Errors are fractions in [0, 1].

    Attributes:
        schema_version: The version of this document's form.
        history: A record an epoch.
        best_epoch: The epoch whose weights were kept, from 1.
        validation_loss: Mean cross entropy of those weights on the validation split, nats.
        validation_top1_error: Likewise.
        test_loss: On the test split, measured once.
        test_top1_error: Likewise.
        test_classes: Each class on the test split, in the order of the labels; empty in runs of older versions.
        test_confusion: In row i and column j the number of test images that show class i and were taken for j; likewise.
        calibration: How far probabilities can be believed; None in runs of older versions.
        seconds: The whole run, from the fresh network to the test.
    """

    schema_version: Literal[2] = 2
    history: tuple[EpochRecord, ...] = Field(min_length=1)
    best_epoch: int = Field(ge=1)
    validation_loss: float
    validation_top1_error: float = Field(ge=0, le=1)
    test_loss: float
    test_top1_error: float = Field(ge=0, le=1)
    test_classes: tuple[ClassScore, ...] = ()
    test_confusion: tuple[tuple[int, ...], ...] = ()
    calibration: Calibration | None = None
    seconds: float

    @classmethod
    def migrate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Version 1 knew neither classes nor calibration."""
        return {**fields, "schema_version": 2} if fields.get("schema_version") == 1 else fields

    def to_bytes(self) -> bytes:
        """The document as JSON, each row of the confusion matrix on a line of its own."""
        return re.sub(rb"\[\n[\s\d,]+\]", lambda row: b"[" + b", ".join(re.findall(rb"\d+", row[0])) + b"]", super().to_bytes())

    @property
    def temperature(self) -> float:
        """What the export divides logits by before the softmax; 1 where none was fitted."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.best_epoch > len(self.history):
            raise ValueError(f"best_epoch: {self.best_epoch} is more than the {len(self.history)} epochs of the history")
        return self


@dataclass(frozen=True)
class TrainedRun:
    """A run that is not on disk yet.

    Attributes:
        record: What was trained; its ``weights_sha256`` is that of ``weights``.
        metrics: How it went.
        weights: The content of ``weights.safetensors``.
        classifier: The trained classifier, in evaluation mode, on the CPU.
        exhibits: What the report shows.
    """

    record: RunRecord
    metrics: Metrics
    weights: bytes
    classifier: ImageClassifier
    exhibits: Exhibits


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int = 0,
    hardware: Hardware | None = None,
    weights: Path | None = None,
    listener: Listener | None = None,
    checkpoints: Checkpoints | None = None,
    run_id: str | None = None,
    skip_bad: bool = False,
) -> TrainedRun:
    """Train what ``recipe`` says on ``dataset``.

    The same recipe, data and seed give the same weights on the same machine with the same number of threads; several devices
    give them to rounding, where the network draws nothing (dropout) and each device sees a part of every batch.

    Args:
        recipe: What and how, resolved.
        dataset: On what.
        seed: Of everything random, 0 or more.
        hardware: On what machine's parts; None: one GPU where there is one, else the CPU.
        weights: Where the recipe takes weights over from a file: that file.
        listener: Is told how it goes.
        checkpoints: Where the run leaves what it goes on from, and where it goes on from what another left; to be removed when
            the run folder is written. None: nothing is left.
        run_id: The run's name; None: a new one.
        skip_bad: Whether images that could not be read were left out of ``dataset``; noted for who goes on.

    Raises:
        UsageError: The device is not there, the network does not take such images, or another run was stopped here.
        DataError: The images have no contrast.
        TrainingError: The loss is not finite any more, a checkpoint cannot be written, or a process died.
    """
    from safetensors.torch import save

    started = time.perf_counter()
    hardware = hardware or Hardware()
    hardware.check()
    if (warning := flip_warning(recipe.augmentation, dataset.labels)) is not None:
        _log.warning("%s", warning)
    target = choose_device(hardware.device)
    dataset_sha256 = dataset.sha256()
    listener = listener or Listener()
    begun = Start(
        run_id=run_id or new_run_id(recipe),
        recipe=recipe,
        seed=seed,
        dataset_sha256=dataset_sha256,
        weights=None if weights is None else str(weights),
        skip_bad=skip_bad,
        hardware=hardware,
    )
    if checkpoints is not None:
        begun = checkpoints.begin(begun)
    with seeded(seed) as generator:
        preprocessing = resolve_preprocessing(recipe, dataset, weights)
        classifier = build_classifier(
            recipe.network,
            image=dataset.image,
            n_classes=len(dataset.labels),
            preprocessing=preprocessing,
            architecture=recipe.architecture,
        )
        taken = None
        if recipe.transfer is not None:
            taken = take_over(classifier, recipe, weights)
            listener.on_take_over(taken)
        # pixels arrive channels last; convolutions whose weights lie the same way need no
        # copies: a step on 128 images, timed alone on two cores, took 8.5 ms instead of 12.5 ms
        classifier = classifier.to(memory_format=torch.channels_last)
        if hardware.devices > 1:
            job = Job(classifier, dataset, recipe, generator.get_state(), hardware, checkpoints, seed)
            fitted = fit_in_processes(job, listener=listener)
            classifier = classifier.to(target)
        else:
            classifier = classifier.to(target)
            fitted = fit(
                classifier, dataset, recipe, generator=generator, hardware=hardware, listener=listener, checkpoints=checkpoints
            )
    classifier = classifier.to(memory_format=torch.contiguous_format)  # as `load_run` lays them out: the same sums
    with exact_products():
        exhibits = gather(classifier, dataset, recipe, seed=seed)
    metrics = _metrics(fitted, exhibits, dataset.labels, seconds=time.perf_counter() - started)
    classifier.cpu()
    content = save({name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, metadata={"format": "pt"})
    record = RunRecord(
        run_id=begun.run_id,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        recipe=recipe,
        dataset=DatasetFacts.of(dataset, dataset_sha256),
        labels=dataset.labels,
        image=dataset.image,
        preprocessing=preprocessing,
        seed=seed,
        device=describe(hardware),
        n_threads=torch.get_num_threads(),
        versions=versions(),
        n_parameters=classifier.n_parameters,
        take_over=taken,
        weights_sha256=sha256_bytes(content),
    )
    return TrainedRun(record, metrics, content, classifier, exhibits)


def _metrics(fitted: Fit, exhibits: Exhibits, labels: Sequence[str], *, seconds: float) -> Metrics:
    test = exhibits.test
    confusion = count_confusions(test.predicted, test.labels, len(labels))
    return Metrics(
        history=fitted.history,
        best_epoch=fitted.best_epoch,
        validation_loss=fitted.validation.loss,
        validation_top1_error=fitted.validation.top1_error,
        test_loss=negative_log_likelihood(test),
        test_top1_error=test.top1_error,
        test_classes=score_classes(confusion, labels, exhibits.n_train),
        test_confusion=tuple(map(tuple, confusion.tolist())),
        calibration=exhibits.calibration,
        seconds=seconds,
    )


def resolve_preprocessing(recipe: Recipe, dataset: Dataset, weights: Path | None = None) -> Preprocessing:
    """What happens to the pixels: the recipe's constants, else what the weights taken over saw, else what is measured.

    Args:
        recipe: Says what, or leaves it open.
        dataset: What is measured; as are images that have not as many channels as the weights saw.
        weights: Where the recipe takes weights over from a file: that file.

    Raises:
        DataError: They are to be measured and the images have no contrast.
        UsageError: There are no such weights.
        ContractError: The file of weights is damaged or hostile.
    """
    wanted = recipe.normalisation
    if wanted.mean is None or wanted.std is None:
        if recipe.transfer is not None:
            seen = expected_preprocessing(recipe, weights)
            if len(seen.mean) == dataset.image.channels:
                return seen.model_copy(update={"polarity": wanted.polarity})
        images = dataset.train.images
        if not isinstance(images, np.ndarray):  # photos that are read when they are needed: a sample does
            images = images[np.linspace(0, len(images) - 1, min(len(images), _PHOTOS_MEASURED)).astype(np.intp)]
        return measure(torch.from_numpy(images), polarity=wanted.polarity)
    return Preprocessing(polarity=wanted.polarity, scale=1 / 255, mean=wanted.mean, std=wanted.std)


def training_facts(record: RunRecord, metrics: Metrics) -> TrainingFacts:
    """What a manifest says about the run."""
    return TrainingFacts(
        run_id=record.run_id,
        recipe=record.recipe.name,
        dataset=record.dataset.name,
        seed=record.seed,
        epochs=len(metrics.history),
        best_epoch=metrics.best_epoch,
        n_parameters=record.n_parameters,
        n_train=record.dataset.n_train,
        n_validation=record.dataset.n_validation,
        n_test=record.dataset.n_test,
        validation_top1_error=metrics.validation_top1_error,
        test_top1_error=metrics.test_top1_error,
    )


def new_run_id(recipe: Recipe) -> str:
    """A name such as ``lenet5-mnist-20251123-182403-5f0c``: sorts by time, and two runs in one second differ."""
    return name_run(f"{recipe.name}-{Path(recipe.data).name or 'images'}")


def name_run(what: str) -> str:
    """``what`` with the time, UTC, and four digits by chance behind it."""
    return f"{what}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def describe(hardware: Hardware) -> str:
    """The hardware in words: ``cpu``, or the name of the GPU, with how many there are and the precision where it is not fp32."""
    device = choose_device(hardware.device)
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    count = f"{hardware.devices} x " if hardware.devices > 1 else ""
    return f"{count}{name}{', bf16' if hardware.resolved_precision == 'bf16' else ''}"


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide what comes out."""
    libraries = {name: metadata.version(name) for name in ("numpy", "safetensors", "torch")}
    return {"convoy": convoy.__version__, "python": platform.python_version(), **libraries}
