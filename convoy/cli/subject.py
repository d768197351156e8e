"""What ``convoy export`` exports: a run, a person's own network, or an ONNX file that others made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from convoy.cli.console import remark

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from convoy.contract.bundle import Bundle
    from convoy.contract.signing_key import PrivateKey
    from convoy.export import EvaluationSet, FieldSet, ModelFacts, Reduction
    from convoy.training.check_reader.reader_run_folder import LoadedReaderRun
    from convoy.training.data.dataset import Dataset, Split
    from convoy.training.run_folder import LoadedRun

_MAX_BYTES: Final = 1 << 30
"""What the images of a split may take in memory: 10,000 of MNIST are 8 MB, 7,000 photographs of 224x224 pixels 1 GB."""


class Request(NamedTuple):
    """What was asked for on the command line."""

    run_dir: Path | None
    onnx_file: Path | None
    factory: str | None
    weights: Path | None
    labels_file: Path | None
    spec: str | None
    samples: Path | None
    pairs: Path | None
    input_name: str | None
    output_name: str | None
    precision: str
    max_accuracy_drop: float | None
    calibration: Path | None
    license_id: str | None
    name: str | None
    max_batch_size: int

    def check(self) -> None:
        """Raise where the options do not belong together.

        Raises:
            UsageError: They do not.
        """
        from convoy.contract.errors import UsageError

        sources = {"RUN_DIR": self.run_dir, "--onnx": self.onnx_file, "--torch": self.factory}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise UsageError(f"expected one of RUN_DIR, --onnx FILE and --torch MODULE:FACTORY, found {found}.")
        if self.run_dir is not None and self.run_dir.is_file():
            hint = f"An ONNX file is taken up by --onnx {self.run_dir}." if self.run_dir.suffix == ".onnx" else "Name the folder."
            raise UsageError(f"{self.run_dir}: expected a run folder that `convoy train` made, found a file. {hint}")
        needed = {"--labels": self.labels_file, "--preprocess": self.spec, "--samples": self.samples}
        of_onnx = {"--pairs": self.pairs, "--input": self.input_name, "--output": self.output_name}
        if given != ["RUN_DIR"] and (missing := [name for name, value in needed.items() if value is None]):
            raise UsageError(f"{given[0]} needs {', '.join(missing)} too.")
        foreign = {**needed, "--calibration": self.calibration} if given == ["RUN_DIR"] else {}
        wrong = {
            **foreign,
            **({} if given == ["--onnx"] else of_onnx),
            **({} if given == ["--torch"] else {"--weights": self.weights}),
        }
        if extra := [name for name, value in wrong.items() if value is not None]:
            raise UsageError(f"{', '.join(extra)}: not with {given[0]}.")
        if self.max_accuracy_drop is not None and self.precision == "fp32":
            raise UsageError(
                "--max-accuracy-drop bounds what --precision fp16 and int8 may cost; fp32 costs nothing: leave it out."
            )
        if self.calibration is not None and self.precision != "int8":
            raise UsageError(f"--calibration fixes the ranges of --precision int8; {self.precision} has none: leave it out.")
        if given != ["RUN_DIR"] and self.precision == "int8" and self.calibration is None:
            raise UsageError(
                "--precision int8 needs --calibration DIR: images that the network was trained on, not those of --samples."
            )

    def reduction(self, subject: Subject) -> Reduction | None:
        """The precision below float32 that was asked for."""
        from convoy.export import Reduction

        if self.precision == "fp32":
            return None
        calibration = subject.calibration() if self.precision == "int8" else None
        precision: Literal["fp16", "int8"] = "int8" if self.precision == "int8" else "fp16"
        if self.max_accuracy_drop is None:
            return Reduction(precision, calibration=calibration)
        return Reduction(precision, self.max_accuracy_drop, calibration)


class Subject(ABC):
    """What is exported. The command's three ways differ in how they come to a network, labels and images."""

    folder_name: str

    @abstractmethod
    def calibration(self) -> npt.NDArray[np.uint8]:
        """Training images, uint8 (n, H, W, C)."""

    @abstractmethod
    def export(self, out: Path, reduction: Reduction | None, signing_key: PrivateKey | None, force: bool) -> Bundle:
        """Write the export folder."""


class _Run(Subject):
    def __init__(self, run_dir: Path, request: Request) -> None:
        from convoy.training.run_folder import load_run

        self._run = load_run(run_dir)
        self._facts = _with_card(facts_of(self._run, name=request.name, max_batch_size=request.max_batch_size), request)
        self.folder_name = run_dir.resolve().name

    def calibration(self) -> npt.NDArray[np.uint8]:
        return _bounded(dataset_of(self._run).train)[0]

    def export(self, out: Path, reduction: Reduction | None, signing_key: PrivateKey | None, force: bool) -> Bundle:
        from convoy.export import export_classifier

        return export_classifier(
            self._run.classifier, self._facts, test_split(self._run), out,
            reduction=reduction, signing_key=signing_key, force=force, on_progress=_say,
        )  # fmt: skip


class _ReaderRun(Subject):
    """A run of a check reader."""

    def __init__(self, run_dir: Path, request: Request) -> None:
        from convoy.contract.errors import UsageError
        from convoy.training.check_reader.reader_run_folder import load_reader_run

        if request.precision != "fp32":
            raise UsageError(f"--precision {request.precision}: a reader of amounts computes in float32 alone: leave it out.")
        self._run = load_reader_run(run_dir)
        facts = reader_facts_of(self._run, name=request.name, max_batch_size=request.max_batch_size)
        self._facts = _with_card(facts, request)
        self.folder_name = run_dir.resolve().name

    def calibration(self) -> npt.NDArray[np.uint8]:
        raise TypeError("a reader has no precision that is calibrated")

    def export(self, out: Path, reduction: Reduction | None, signing_key: PrivateKey | None, force: bool) -> Bundle:  # noqa: ARG002
        from convoy.export import export_reader

        return export_reader(
            self._run.reader, self._facts, held_back_fields(self._run), out,
            signing_key=signing_key, force=force, on_progress=_say,
        )  # fmt: skip


class _Foreign(Subject):
    """A network or a file that others made: labels, preprocessing and samples come from options."""

    _facts: ModelFacts

    def __init__(self, request: Request, name: str) -> None:
        from convoy.export.adopt.labels import read_labels
        from convoy.export.adopt.preprocess import parse_preprocess

        self._request = request
        self._labels = read_labels(_there(request.labels_file))
        self._preprocess = parse_preprocess(request.spec or "")
        self.folder_name = request.name or name

    def calibration(self) -> npt.NDArray[np.uint8]:
        return self._images(_there(self._request.calibration)).images

    def _images(self, path: Path) -> EvaluationSet:
        from convoy.export.adopt.samples import load_samples

        return load_samples(path, self._facts.image, self._labels)


class _Network(_Foreign):
    def __init__(self, factory: str, request: Request) -> None:
        from convoy.contract.files import sha256_file
        from convoy.contract.manifest import Origin
        from convoy.export import ModelFacts
        from convoy.export.adopt.foreign_classifier import image_of, wrap_torch
        from convoy.export.adopt.networks import load_torch

        super().__init__(request, factory.rpartition(":")[0].rpartition("/")[2].removesuffix(".py").replace(".", "-"))
        image = image_of(self._preprocess)
        loaded = load_torch(factory, request.weights)
        for what in loaded.remarks:
            remark(f"  {what}")
        self._classifier = wrap_torch(loaded.module, self._preprocess, image, len(self._labels))
        origin = None
        if request.weights is not None:
            origin = Origin(kind="torch", file=request.weights.name, sha256=sha256_file(request.weights), producer=factory)
        facts = ModelFacts(
            self.folder_name, self._labels, image, self._preprocess.facts(image.channels), origin=origin,
            max_batch_size=request.max_batch_size,
        )  # fmt: skip
        self._facts = _with_card(facts, request)

    def export(self, out: Path, reduction: Reduction | None, signing_key: PrivateKey | None, force: bool) -> Bundle:
        from convoy.export import export_classifier

        return export_classifier(
            self._classifier, self._facts, self._images(_there(self._request.samples)), out,
            reduction=reduction, signing_key=signing_key, force=force, on_progress=_say,
        )  # fmt: skip


class _File(_Foreign):
    def __init__(self, path: Path, request: Request) -> None:
        from convoy.contract.errors import DataError
        from convoy.contract.files import sha256_bytes
        from convoy.contract.manifest import Origin
        from convoy.export import ModelFacts
        from convoy.export.adopt.adoption import adopt_onnx
        from convoy.export.adopt.containment import read_contained
        from convoy.export.adopt.pairs import reference_pairs

        super().__init__(request, path.stem)
        self._pairs = reference_pairs(request.pairs or path.parent)
        if request.pairs is not None and not self._pairs:
            raise DataError(
                f"{request.pairs}: expected inputs with outputs, test_data_set_0/input_0.pb with output_0.pb or test_data_0.npz, "
                "found none."
            )
        self._model = read_contained(path)
        _say(f"{path.name}: finding its border, freeing its batch")
        self._adopted = adopt_onnx(
            self._model, self._preprocess, len(self._labels), max_batch_size=request.max_batch_size,
            title=f"{path.name} as it came", input_name=request.input_name, output_name=request.output_name,
        )  # fmt: skip
        for what in self._adopted.remarks:
            remark(f"  {what}")
        image = self._adopted.image
        facts = ModelFacts(
            self.folder_name, self._labels, image, self._preprocess.facts(image.channels),
            origin=Origin(kind="onnx", file=path.name, sha256=sha256_bytes(self._model), producer=self._adopted.producer),
            max_batch_size=request.max_batch_size,
        )  # fmt: skip
        self._facts = _with_card(facts, request)

    def export(self, out: Path, reduction: Reduction | None, signing_key: PrivateKey | None, force: bool) -> Bundle:
        from convoy.export import export_adopted
        from convoy.export.adopt.pairs import check_pairs

        checks = check_pairs(self._model, self._pairs)
        return export_adopted(
            self._adopted, self._facts, self._images(_there(self._request.samples)), out,
            checks=checks, reduction=reduction, signing_key=signing_key, force=force, on_progress=_say,
        )  # fmt: skip


def open_subject(request: Request) -> Subject:
    """Read what was asked for.

    Raises:
        UsageError: Options do not fit it.
        ConvoyError: It cannot be read.
    """
    if request.run_dir is not None:
        return (_ReaderRun if is_reader_run(request.run_dir) else _Run)(request.run_dir, request)
    if request.factory is not None:
        return _Network(request.factory, request)
    return _File(_there(request.onnx_file), request)


def _there(path: Path | None) -> Path:
    """An option that ``Request.check`` made sure of."""
    if path is None:
        raise TypeError("an option is missing")
    return path


def _with_card(facts: ModelFacts, request: Request) -> ModelFacts:
    from convoy.export import CardFacts

    return replace(facts, card=CardFacts(license=request.license_id))


def facts_of(run: LoadedRun, *, name: str | None = None, max_batch_size: int = 64) -> ModelFacts:
    """What the manifest says of a run's network; its name is the recipe's where none is given."""
    from convoy.export import ModelFacts

    return ModelFacts(
        model_name=name or run.run.recipe.name,
        labels=run.run.labels,
        image=run.run.image,
        preprocessing=run.run.preprocessing,
        training=run.facts,
        weights_sha256=run.run.weights_sha256,
        max_batch_size=max_batch_size,
        temperature=run.metrics.temperature,
    )


def is_reader_run(run_dir: Path) -> bool:
    """Whether a run folder is a check reader's; one that cannot be read is for whoever loads it to tell of."""
    import json

    try:
        record = json.loads((run_dir / "run.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("kind") == "amount-reading"


def reader_facts_of(run: LoadedReaderRun, *, name: str | None = None, max_batch_size: int = 64) -> ModelFacts:
    """What the manifest says of a run's reader; its name is the recipe's where none is given."""
    from convoy.export import ModelFacts

    record = run.record
    return ModelFacts(
        model_name=name or record.recipe.name,
        labels=record.labels,
        image=record.image,
        training=run.facts,
        weights_sha256=record.weights_sha256,
        max_batch_size=max_batch_size,
        reading=record.reading,
    )


def held_back_fields(run: LoadedReaderRun) -> FieldSet:
    """The fields that a run was judged by."""
    from convoy.export import FieldSet
    from convoy.export.reading.evidence import as_field
    from convoy.training.data import DataLocation

    record = run.record
    examples = run.held_back(DataLocation.from_environment())
    split = f"{Path(record.data.real).name}, held back" if record.data.real else "synthetic amounts, held back"
    fields = tuple(as_field(example.pixels, record.image) for example in examples)
    return FieldSet(split, fields, tuple(example.label for example in examples), digits=True)


def dataset_of(run: LoadedRun) -> Dataset:
    """The data that a run was trained on; the very same data, by digest."""
    from convoy.contract.errors import DataError
    from convoy.training.data import DataLocation, load_dataset

    recipe, facts = run.run.recipe, run.run.dataset
    dataset = load_dataset(
        recipe.data,
        seed=run.run.seed,
        validation_fraction=recipe.validation_fraction,
        location=DataLocation.from_environment(),
        image_size_px=recipe.image_size_px,
        skip_bad=True,  # where a file went bad since, the digest tells
    )
    if dataset.sha256() != facts.sha256:
        raise DataError(
            f"{facts.name}: expected the data that the run saw (SHA-256 {facts.sha256[:16]}...), found other data. "
            "Point CONVOY_DATA to the data of the training run, or put its folder of images back as it was."
        )
    return dataset


def test_split(run: LoadedRun) -> EvaluationSet:
    """The test split of the data that a run was trained on."""
    from convoy.export import EvaluationSet

    test = dataset_of(run).test
    images, labels = _bounded(test)
    part = "" if len(labels) == len(test) else f" ({len(labels):,} of {len(test):,})"
    return EvaluationSet(f"{run.run.dataset.name} test{part}", images, labels)


def _bounded(split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images and labels in memory; of a split that is larger than the bound, some from all over it."""
    import numpy as np

    n = max(1, _MAX_BYTES // int(np.prod(split.images.shape[1:])))
    if len(split) > n:
        split = split.take(np.linspace(0, len(split) - 1, n).astype(np.intp))
    return split.images[:], split.labels


def _say(what: str) -> None:
    remark(f"  ... {what}")
