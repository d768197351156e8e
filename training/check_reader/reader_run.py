"""One training of a check reader: from a recipe and fields to a reader with its records, and the run folder of both.

::

    runs/check-reader-20261127-130501-5f0c/
      weights.safetensors   the trained network, and the calibration of its confidence
      run.json              ReaderRecord: recipe, rules of the grammar, data, seed, versions
      metrics.json          ReaderMetrics: history, amounts read right, the curve of coverage against error
      reject.png            that curve
      fields.png            synthetic fields as it saw them, beside real ones where there were any
"""

from __future__ import annotations

import hashlib
import io
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from pydantic import Field as PydanticField
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from convoy.contract.errors import ContractError, DataError, DigestMismatchError
from convoy.contract.files import Document, new_folder, sha256_bytes
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Label, Sha256, TrainingFacts
from convoy.contract.reading import OperatingPoint, ReadingSpec
from convoy.training.check_reader.building import build_reader, draw_synthetic, load_handwriting
from convoy.training.check_reader.examples import Example, field_spec, from_real
from convoy.training.check_reader.field_image import SyntheticFields
from convoy.training.check_reader.fields import GAP, Fields, load_fields
from convoy.training.check_reader.fitting import ReaderEpoch, fit_reader
from convoy.training.check_reader.grammar import compile_grammar, read_grammar
from convoy.training.check_reader.judging import (
    Read,
    choose_threshold,
    fit_confidence,
    is_right,
    read_all,
    reject_curve,
    wilson,
)
from convoy.training.check_reader.preview import draw_sheet
from convoy.training.check_reader.reader import AmountReader
from convoy.training.check_reader.reject_plot import draw_reject_curve
from convoy.training.data import DataLocation
from convoy.training.loop.seeding import seeded
from convoy.training.recipes.reader import ReaderRecipe
from convoy.training.run import versions

KIND: Final = "amount-reading"
RUN_FILE: Final = "run.json"
METRICS_FILE: Final = "metrics.json"
WEIGHTS_FILE: Final = "weights.safetensors"
N_HELD_BACK: Final = 1_000
"""Synthetic fields that a run without real ones is judged by, written with the test digits of its handwriting."""
_LEAST_REAL: Final = 60
_HELD_BACK_SEED: Final = 1_000_003  # added to the run's: other amounts, other writers


class FieldFacts(Document):
    """Which fields a run saw.

    Attributes:
        handwriting: The data set whose digits the synthetic fields are written with.
        n_synthetic: How many there were.
        real: The folder of the real ones; empty where there were none.
        n_real: Real fields that it learnt from.
        n_held_back: Fields that it was judged by: a block of the real ones, else synthetic ones.
        sha256: Of all real pixels and labels; empty where there were none.
    """

    handwriting: str
    n_synthetic: int
    real: str = ""
    n_real: int = 0
    n_held_back: int
    sha256: str = ""


class ReaderRecord(Document):
    """``run.json``: what was trained, on what, how and where.

    Attributes:
        schema_version: The version of this document's form.
        kind: What tells it from a classifier's.
        run_id: The run's name.
        created_at: When it ended, ISO 8601, UTC.
        recipe: The recipe, with the person's changes.
        grammar: The rules, as they were.
        data: Which fields it saw.
        labels: The characters in the order of the network's classes behind the blank.
        image: How any image becomes the network's pixels.
        reading: What its answers mean, with the threshold.
        seed: The one seed of the run.
        n_threads: CPU threads of torch; sums are added in another order with another number.
        versions: The versions of Python and the libraries.
        n_parameters: How many numbers the network learns.
        weights_sha256: Digest of ``weights.safetensors``.
    """

    schema_version: Literal[1] = 1
    kind: Literal["amount-reading"] = KIND
    run_id: str
    created_at: str
    recipe: ReaderRecipe
    grammar: str
    data: FieldFacts
    labels: tuple[Label, ...] = PydanticField(min_length=2)
    image: ImageSpec
    reading: ReadingSpec
    seed: int
    n_threads: int
    versions: dict[str, str]
    n_parameters: int
    weights_sha256: Sha256


class EpochFacts(Document):
    """One epoch: see ``ReaderEpoch``."""

    phase: str
    epoch: int
    loss: float
    seconds: float


class ReaderMetrics(Document):
    """``metrics.json``: how training went and what came out. Shares are fractions in [0, 1].

    Attributes:
        schema_version: The version of this document's form.
        history: A record an epoch.
        held_back: What it was judged by: ``real`` or ``synthetic``.
        n: How many fields.
        n_right: Whole amounts read right.
        accuracy: Their share, with its 95 % interval.
        points: The curve of coverage against error: thresholds, coverage and error, at most 200 of them, the strictest first.
        confidence: Scale and shift of the calibration.
        seconds: The whole run.
    """

    schema_version: Literal[1] = 1
    history: tuple[EpochFacts, ...]
    held_back: Literal["real", "synthetic"]
    n: int
    n_right: int
    accuracy: tuple[float, float, float]
    points: tuple[OperatingPoint, ...]
    confidence: tuple[float, float]
    seconds: float


@dataclass(frozen=True, eq=False)
class TrainedReader:
    """What a training gives.

    Attributes:
        record: What was trained.
        metrics: What came out.
        weights: ``weights.safetensors``.
        reader: In evaluation mode, on the CPU.
        pictures: PNG files by name.
    """

    record: ReaderRecord
    metrics: ReaderMetrics
    weights: bytes
    reader: AmountReader
    pictures: dict[str, bytes]


@dataclass(frozen=True, eq=False)
class LoadedReaderRun:
    """A run that was read back.

    Attributes:
        folder: Where it is.
        record: What was trained.
        metrics: What came out.
        reader: In evaluation mode, on the CPU.
    """

    folder: Path
    record: ReaderRecord
    metrics: ReaderMetrics
    reader: AmountReader

    @property
    def facts(self) -> TrainingFacts:
        """What a manifest says about the run; its errors are shares of whole amounts."""
        record, error = self.record, 1 - self.metrics.accuracy[0]
        data = record.data
        return TrainingFacts(
            run_id=record.run_id,
            recipe=record.recipe.name,
            dataset=Path(data.real).name if data.real else f"synthetic amounts, {data.handwriting}",
            seed=record.seed,
            epochs=len(self.metrics.history),
            best_epoch=max(len(self.metrics.history), 1),
            n_parameters=record.n_parameters,
            n_train=data.n_synthetic + data.n_real,
            n_validation=data.n_held_back,
            n_test=data.n_held_back,
            validation_top1_error=error,
            test_top1_error=error,
        )

    def held_back(self, location: DataLocation | None = None) -> list[Example]:
        """The fields that the run was judged by: what an export is proven on.

        Args:
            location: Where to look for the handwriting, as ``load_dataset`` takes it.

        Raises:
            DataError: The real ones are not there any more, or are others.
        """
        record = self.record
        if not record.data.real:
            return _synthetic_held_back(record.recipe, record.seed, location)
        real = load_fields(Path(record.data.real))
        if _digest(real) != record.data.sha256:
            raise DataError(f"{record.data.real}: expected the fields that run {record.run_id} saw, found others.")
        return from_real(_split(real, record.recipe.validation_fraction)[1], record.image)


def train_reader(
    recipe: ReaderRecipe,
    real: Path | None = None,
    *,
    seed: int = 0,
    location: DataLocation | None = None,
    on_synthetic: Callable[[int], None] = lambda _: None,
    on_step: Callable[[int], None] = lambda _: None,
    on_epoch: Callable[[ReaderEpoch], None] = lambda _: None,
) -> TrainedReader:
    """Train what ``recipe`` says.

    The same recipe, data and seed give the same weights on the same machine with the same number of threads.

    Args:
        recipe: What and how.
        real: A folder of real fields (see ``load_fields``); None: synthetic ones alone.
        seed: Of everything random, 0 or more.
        location: Where to look for the handwriting, as ``load_dataset`` takes it.
        on_synthetic: Told of each synthetic field that is drawn.
        on_step: Told how many fields a step saw.
        on_epoch: Told what an epoch brought.

    Raises:
        DataError: The grammar, the handwriting or the real fields cannot be read, or there are too few of them.
        UsageError: The grammar has amounts of any length.
        TrainingError: The loss is not finite any more.
    """
    started = time.perf_counter()
    rules = read_grammar(recipe.grammar)
    grammar = compile_grammar(rules, Path(recipe.grammar).stem)
    spec = field_spec(recipe.height_px)
    fields = None if real is None else load_fields(real)
    learnt, kept = ([], []) if fields is None else _split(fields, recipe.validation_fraction)
    for field in learnt + kept:
        grammar.spelled(field.label, latent=not field.text)  # a label that is no amount is refused before the work
    with seeded(seed):
        reader = build_reader(recipe, grammar)
        handwriting = load_handwriting(recipe.handwriting, "train", location)
        synthetic = draw_synthetic(recipe, handwriting, recipe.n_synthetic, seed, on_field=on_synthetic)
        history = fit_reader(reader, recipe, synthetic, from_real(learnt, spec), seed=seed, on_step=on_step, on_epoch=on_epoch)
    return conclude(
        recipe, reader, history, seed=seed, real=real, fields=fields, n_synthetic=len(synthetic), location=location, started=started
    )


def conclude(
    recipe: ReaderRecipe,
    reader: AmountReader,
    history: Sequence[ReaderEpoch],
    *,
    seed: int,
    real: Path | None,
    fields: Fields | None,
    n_synthetic: int,
    location: DataLocation | None,
    started: float,
) -> TrainedReader:
    """Judge a trained reader by fields that were held back, fit its confidence and its threshold, and write it all down.

    Args:
        recipe: What was trained.
        reader: In evaluation mode; its confidence is calibrated in place.
        history: What the epochs brought.
        seed: Of the training.
        real: The folder of the real fields; None: there were none.
        fields: The real fields.
        n_synthetic: How many synthetic ones there were.
        location: Where to look for the handwriting.
        started: When the run began, by ``time.perf_counter``.
    """
    spec = field_spec(recipe.height_px)
    learnt, kept = ([], []) if fields is None else _split(fields, recipe.validation_fraction)
    held_back = from_real(kept, spec) if kept else _synthetic_held_back(recipe, seed, location)
    reads = read_all(reader, held_back)
    right = [is_right(read.text, example, recipe.decimal) for read, example in zip(reads, held_back, strict=True)]
    confidence = _calibrate(reader, reads, right)
    reads = read_all(reader, held_back)
    sure = [read.confidence for read in reads]
    accept = choose_threshold(sure, right, recipe.accepted_error)
    curve = reject_curve(sure, right)
    metrics = ReaderMetrics(
        history=tuple(EpochFacts(**vars(epoch)) for epoch in history),
        held_back="real" if kept else "synthetic",
        n=len(right),
        n_right=sum(right),
        accuracy=tuple(wilson(sum(right), len(right))),
        points=tuple(
            OperatingPoint(
                threshold=float(curve.thresholds[i]), coverage=float(curve.coverage[i]), error=float(curve.error[i]), n=len(right)
            )
            for i in np.unique(np.linspace(0, len(curve.error) - 1, min(200, len(curve.error))).astype(np.intp)).tolist()
        ),
        confidence=confidence,
        seconds=time.perf_counter() - started,
    )
    weights = save({name: tensor.contiguous() for name, tensor in reader.state_dict().items()}, metadata={"format": "pt"})
    limit = reader.lattice.max_length
    assert limit is not None  # the decoder refuses others
    record = ReaderRecord(
        run_id=f"{recipe.name}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        recipe=recipe,
        grammar=read_grammar(recipe.grammar),
        data=FieldFacts(
            handwriting=recipe.handwriting,
            n_synthetic=n_synthetic,
            real="" if real is None else str(real.resolve()),
            n_real=len(learnt),
            n_held_back=len(held_back),
            sha256="" if fields is None else _digest(fields),
        ),
        labels=tuple(reader.lattice.alphabet),
        image=spec,
        reading=ReadingSpec(
            grammar=reader.lattice.grammar.name,
            decimal=recipe.decimal,
            n_best=recipe.n_best,
            max_characters=max(limit, 1),
            accept=accept,
        ),
        seed=seed,
        n_threads=torch.get_num_threads(),
        versions=versions(),
        n_parameters=sum(parameter.numel() for parameter in reader.parameters()),
        weights_sha256=sha256_bytes(weights),
    )
    pictures = {"reject.png": draw_reject_curve({record.run_id: curve}), "fields.png": _sheet(recipe, seed, location, kept)}
    return TrainedReader(record, metrics, weights, reader, pictures)


def write_reader_run(folder: Path, run: TrainedReader) -> None:
    """Write a run folder, whole or not at all.

    Raises:
        OSError: The disk is full or may not be written; nothing stays behind.
    """
    with new_folder(folder.resolve()) as aside:
        (aside / WEIGHTS_FILE).write_bytes(run.weights)
        (aside / RUN_FILE).write_bytes(run.record.to_bytes())
        (aside / METRICS_FILE).write_bytes(run.metrics.to_bytes())
        for name, data in run.pictures.items():
            (aside / name).write_bytes(data)


def load_reader_run(run_dir: Path) -> LoadedReaderRun:
    """Read a run folder back and check it.

    Raises:
        ContractError: A file is missing or damaged, or the weights do not fit the network.
        DigestMismatchError: The weights are not those that ``run.json`` names.
    """
    record = ReaderRecord.load(run_dir / RUN_FILE)
    metrics = ReaderMetrics.load(run_dir / METRICS_FILE)
    path = run_dir / WEIGHTS_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ContractError(f"{path}: expected the weights of a run, but they cannot be read: {error.strerror or error}") from error
    if sha256_bytes(data) != record.weights_sha256:
        raise DigestMismatchError(
            f"{path}: {RUN_FILE} names SHA-256 {record.weights_sha256[:16]}..., found {sha256_bytes(data)[:16]}.... "
            "The file was changed or cut short after training: train again, or fetch the run folder again."
        )
    try:
        reader = build_reader(record.recipe, compile_grammar(record.grammar, record.reading.grammar))
        reader.load_state_dict(load_tensors(data))
    except (DataError, SafetensorError, RuntimeError) as error:
        raise ContractError(f"{run_dir}: expected the weights of the network that {RUN_FILE} names: {error}") from error
    if tuple(reader.lattice.alphabet) != record.labels:
        raise ContractError(f"{run_dir / RUN_FILE}: expected the characters of its grammar as labels, found others.")
    return LoadedReaderRun(run_dir, record, metrics, reader.eval())


def _split(fields: Fields, fraction: float) -> tuple[list, list]:  # type: ignore[type-arg]
    """Fields to learn from, and a block of neighbours that is held back, with a gap between them."""
    n_held_back = round(len(fields) * fraction)
    gap = min(GAP, len(fields) // 20)
    if len(fields) < _LEAST_REAL or n_held_back < 1:
        raise DataError(f"{fields.name}: expected {_LEAST_REAL} fields or more, some to be held back; found {len(fields)}.")
    first = len(fields) - n_held_back
    return list(fields[: first - gap]), list(fields[first:])


def _digest(fields: Fields) -> str:
    digest = hashlib.sha256()
    for field in fields:
        digest.update(f"{field.name}\0{field.label}\0{field.image.shape}\0".encode())
        digest.update(np.ascontiguousarray(field.image).tobytes())
    return digest.hexdigest()


def _synthetic_held_back(recipe: ReaderRecipe, seed: int, location: DataLocation | None) -> list[Example]:
    handwriting = load_handwriting(recipe.handwriting, "test", location)
    return draw_synthetic(recipe, handwriting, N_HELD_BACK, seed + _HELD_BACK_SEED)


def _calibrate(reader: AmountReader, reads: Sequence[Read], right: Sequence[bool]) -> tuple[float, float]:
    """Fit the confidence on fields that were held back."""
    scale, shift = fit_confidence([read.log_share for read in reads], right)
    reader.confidence_scale.fill_(scale)
    reader.confidence_shift.fill_(shift)
    return scale, shift


def _sheet(recipe: ReaderRecipe, seed: int, location: DataLocation | None, real: Sequence) -> bytes:  # type: ignore[type-arg]
    drawing = SyntheticFields(load_handwriting(recipe.handwriting, "train", location), recipe.style, seed)
    file = io.BytesIO()
    draw_sheet([drawing.draw(index) for index in range(36)], list(real[:36])).save(file, "PNG")
    return file.getvalue()
