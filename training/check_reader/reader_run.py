"""One training of a check reader: from a recipe and fields to a reader with its records."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save

from convoy.contract.errors import DataError
from convoy.contract.files import sha256_bytes
from convoy.contract.reading import OperatingPoint, ReadingSpec
from convoy.contract.reject import ERRORS, Curve, choose_threshold, reject_curve
from convoy.training.check_reader.building import build_reader, draw_synthetic, load_handwriting, synthetic_fields
from convoy.training.check_reader.examples import Example, field_spec, from_real
from convoy.training.check_reader.field_image import SyntheticField
from convoy.training.check_reader.fields import Field, load_fields
from convoy.training.check_reader.fitting import OnEpoch, OnStep, fit_reader
from convoy.training.check_reader.grammar import Grammar, compile_grammar, read_grammar
from convoy.training.check_reader.held_back import digest_of, split_fields, synthetic_held_back
from convoy.training.check_reader.judging import acceptably, fit_confidence, is_right, read_all, wilson
from convoy.training.check_reader.reader import AmountReader
from convoy.training.check_reader.reader_course import ReaderEpoch
from convoy.training.check_reader.reader_records import EpochFacts, FieldFacts, ReaderMetrics, ReaderRecord
from convoy.training.check_reader.reader_report import Misread, ReaderExhibits, render_reader_report
from convoy.training.check_reader.reader_start import ReaderStart
from convoy.training.data import DataLocation
from convoy.training.loop import Checkpoints, Hardware, choose_device
from convoy.training.loop.seeding import seeded
from convoy.training.recipes.reader import ReaderRecipe
from convoy.training.run import describe, name_run, versions

_MOST_POINTS: Final = 200
_ON_SHEET: Final = 36


@dataclass(frozen=True, eq=False)
class TrainedReader:
    """What a training gives.

    Attributes:
        record: What was trained.
        metrics: What came out.
        weights: ``weights.safetensors``.
        reader: In evaluation mode, on the CPU.
        report: ``report.html`` and its pictures, by file name.
    """

    record: ReaderRecord
    metrics: ReaderMetrics
    weights: bytes
    reader: AmountReader
    report: dict[str, bytes]


def train_reader(
    recipe: ReaderRecipe,
    real: Path | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    location: DataLocation | None = None,
    checkpoints: Checkpoints | None = None,
    run_id: str | None = None,
    on_split: Callable[[int, int], None] = lambda _, __: None,
    on_synthetic: Callable[[int], None] = lambda _: None,
    on_step: OnStep = lambda _, __: None,
    on_epoch: OnEpoch = lambda _: None,
) -> TrainedReader:
    """Train what ``recipe`` says.

    The same recipe, data and seed give the same weights on the same machine with the same number of threads.

    Args:
        recipe: What and how.
        real: A folder of real fields (see ``load_fields``); None: synthetic ones alone.
        seed: Of everything random, 0 or more.
        device: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
        location: Where to look for the handwriting, as ``load_dataset`` takes it.
        checkpoints: Where the run leaves what it goes on from, and where it goes on from what another left; to be removed when
            the run folder is written. None: nothing is left.
        run_id: The run's name; None: a new one.
        on_split: Told how many real fields there are, and how many of them are held back, before the work.
        on_synthetic: Told of each synthetic field that is drawn.
        on_step: Told how many fields all steps so far have seen, and how many there are to see.
        on_epoch: Told what an epoch brought.

    Raises:
        DataError: The grammar, the handwriting or the real fields cannot be read, or there are too few of them.
        UsageError: The grammar has amounts of any length, the device is not there, or another run was stopped here.
        TrainingError: The loss is not finite any more, or a checkpoint cannot be written.
        KeyboardInterrupt: Somebody asked for the end; a checkpoint is left where there are to be any.
    """
    started = time.perf_counter()
    target = choose_device(device)
    rules = read_grammar(recipe.grammar)
    grammar = compile_grammar(rules, Path(recipe.grammar).stem)
    fields = None if real is None else _RealFields.load(real, recipe, grammar)
    if fields is not None:
        on_split(fields.n, len(fields.held_back))
    hardware = Hardware(device=device, precision="fp32")
    begun = ReaderStart(
        run_id=run_id or name_run(recipe.name),
        recipe=recipe,
        seed=seed,
        grammar=rules,
        real=None if real is None else str(real.resolve()),
        dataset_sha256="" if fields is None else fields.sha256,
        hardware=hardware,
    )
    if checkpoints is not None:
        begun = checkpoints.begin(begun).model_copy(update={"hardware": hardware})
    with seeded(seed):
        reader = build_reader(recipe, grammar).to(target)
        handwriting = load_handwriting(recipe.handwriting, "train", location)
        n_synthetic = recipe.n_synthetic if recipe.epochs or recipe.synthetic_share else 0
        synthetic = draw_synthetic(recipe, handwriting, n_synthetic, seed, grammar=grammar, on_field=on_synthetic)
        history = fit_reader(
            reader,
            recipe,
            synthetic,
            () if fields is None else fields.learnt,
            seed=seed,
            checkpoints=checkpoints,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    return _conclude(begun, reader, history, _Data(fields, len(synthetic), location), started=started)


@dataclass(frozen=True, eq=False)
class _RealFields:
    """A person's fields, looked through before the work: those to learn from, and those that are held back."""

    folder: Path
    n: int
    sha256: str
    learnt: list[Example]
    held_back: list[Example]
    shown: list[Field]

    @classmethod
    def load(cls, folder: Path, recipe: ReaderRecipe, grammar: Grammar) -> _RealFields:
        fields, spec = load_fields(folder), field_spec(recipe.height_px)
        learnt, kept = split_fields(fields, recipe.validation_fraction)
        for field in (*learnt, *kept):
            try:
                grammar.spelled(field.label, latent=not field.text)
            except DataError as error:
                raise DataError(f"{field.name}: {error}") from error
        shown = list(kept)[:_ON_SHEET]
        return cls(folder, len(fields), digest_of(fields), from_real(learnt, spec), from_real(kept, spec), shown)


@dataclass(frozen=True, eq=False)
class _Data:
    """What a run saw."""

    real: _RealFields | None
    n_synthetic: int
    location: DataLocation | None

    def facts(self, recipe: ReaderRecipe, n_held_back: int) -> FieldFacts:
        real = self.real
        return FieldFacts(
            handwriting=recipe.handwriting,
            n_synthetic=self.n_synthetic,
            real="" if real is None else str(real.folder.resolve()),
            n_real=0 if real is None else len(real.learnt),
            n_held_back=n_held_back,
            sha256="" if real is None else real.sha256,
        )


def _conclude(
    begun: ReaderStart, reader: AmountReader, history: Sequence[ReaderEpoch], data: _Data, *, started: float
) -> TrainedReader:
    """Judge a trained reader by fields that were held back, fit its confidence and its threshold, and write it all down."""
    recipe, seed, grammar = begun.recipe, begun.seed, reader.lattice.grammar
    real = data.real
    held_back = synthetic_held_back(recipe, grammar, seed, data.location) if real is None else real.held_back
    reads = read_all(reader, held_back)
    right = [is_right(read.text, example, recipe.decimal) for read, example in zip(reads, held_back, strict=True)]
    told = [(read.log_share, good) for read, good in zip(reads, right, strict=True) if read.text]
    scale, shift = fit_confidence([log_share for log_share, _ in told], [good for _, good in told])
    reader.confidence_scale.fill_(scale)
    reader.confidence_shift.fill_(shift)
    sure = [read.confidence for read in read_all(reader, held_back)]
    acceptable = acceptably(reads, right)
    curve = reject_curve(sure, acceptable)
    metrics = ReaderMetrics(
        history=tuple(EpochFacts(**vars(epoch)) for epoch in history),
        held_back="synthetic" if real is None else "real",
        n=len(right),
        n_right=sum(right),
        accuracy=tuple(wilson(sum(right), len(right))),
        points=_points(curve, len(right)),
        confidence=(scale, shift),
        seconds=time.perf_counter() - started,
    )
    reader.cpu()
    weights = save({name: tensor.contiguous() for name, tensor in reader.state_dict().items()}, metadata={"format": "pt"})
    record = ReaderRecord(
        run_id=begun.run_id,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        recipe=recipe,
        grammar=begun.grammar,
        data=data.facts(recipe, len(held_back)),
        labels=tuple(reader.lattice.alphabet),
        image=field_spec(recipe.height_px),
        reading=_reading(reader, recipe, choose_threshold(sure, acceptable, recipe.accepted_error)),
        seed=seed,
        device=describe(begun.hardware),
        n_threads=torch.get_num_threads(),
        versions=versions(),
        n_parameters=sum(parameter.numel() for parameter in reader.parameters()),
        weights_sha256=sha256_bytes(weights),
    )
    wrong = sorted((place for place in range(len(right)) if not right[place]), key=lambda place: -sure[place])
    exhibits = ReaderExhibits(
        curve=curve,
        points=tuple(choose_threshold(sure, acceptable, error) for error in ERRORS),
        mistakes=tuple(
            Misread(held_back[place].name, held_back[place].pixels, held_back[place].label, reads[place].text, sure[place])
            for place in wrong
        ),
        synthetic=_some_synthetic(recipe, grammar, seed, data),
        real=[] if real is None else real.shown,
    )
    return TrainedReader(record, metrics, weights, reader, render_reader_report(record, metrics, exhibits))


def _points(curve: Curve, n: int) -> tuple[OperatingPoint, ...]:
    some = np.unique(np.linspace(0, len(curve.error) - 1, min(_MOST_POINTS, len(curve.error))).astype(np.intp))
    columns = (values[some].tolist() for values in curve)
    return tuple(OperatingPoint(threshold=a, coverage=b, error=c, n=n) for a, b, c in zip(*columns, strict=True))


def _reading(reader: AmountReader, recipe: ReaderRecipe, accept: OperatingPoint | None) -> ReadingSpec:
    limit = reader.lattice.max_length
    assert limit is not None  # the decoder refuses others
    return ReadingSpec(
        grammar=reader.lattice.grammar.name,
        decimal=recipe.decimal,
        n_best=recipe.n_best,
        max_characters=max(limit, 1),
        accept=accept,
    )


def _some_synthetic(recipe: ReaderRecipe, grammar: Grammar, seed: int, data: _Data) -> list[SyntheticField]:
    """Some of those that the run saw."""
    drawing = synthetic_fields(recipe, load_handwriting(recipe.handwriting, "train", data.location), seed, grammar)
    return [drawing.draw(index) for index in range(min(_ON_SHEET, data.n_synthetic))]
