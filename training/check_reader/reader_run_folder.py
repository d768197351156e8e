"""The run folder of a reader, written whole or not at all.

::

    runs/check-reader-20261127-130501-5f0c/
      weights.safetensors   the trained network, and the calibration of its confidence
      run.json              ReaderRecord: recipe, rules of the grammar, data, seed, versions
      metrics.json          ReaderMetrics: history, amounts read right, the curve of coverage against error
      report.html           results, thresholds, the worst mistakes, learning, fields: one page that opens offline
      reject.png ...        its pictures
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convoy.contract.errors import ContractError, DataError
from convoy.contract.files import new_folder
from convoy.contract.manifest import TrainingFacts
from convoy.training.check_reader.building import build_reader
from convoy.training.check_reader.examples import Example, from_real
from convoy.training.check_reader.fields import load_fields
from convoy.training.check_reader.grammar import compile_grammar
from convoy.training.check_reader.held_back import digest_of, split_fields, synthetic_held_back
from convoy.training.check_reader.reader import AmountReader
from convoy.training.check_reader.reader_records import ReaderMetrics, ReaderRecord
from convoy.training.check_reader.reader_run import TrainedReader
from convoy.training.data import DataLocation
from convoy.training.run_folder import METRICS_FILE, RUN_FILE, WEIGHTS_FILE, read_weights


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
            return synthetic_held_back(record.recipe, self.reader.lattice.grammar, record.seed, location)
        real = load_fields(Path(record.data.real))
        if digest_of(real) != record.data.sha256:
            raise DataError(f"{record.data.real}: expected the fields that run {record.run_id} saw, found others.")
        return from_real(split_fields(real, record.recipe.validation_fraction)[1], record.image)


def write_reader_run(folder: Path, run: TrainedReader) -> None:
    """Write a run folder, whole or not at all.

    Raises:
        OSError: The disk is full or may not be written; nothing stays behind.
    """
    with new_folder(folder.resolve()) as aside:
        (aside / WEIGHTS_FILE).write_bytes(run.weights)
        (aside / RUN_FILE).write_bytes(run.record.to_bytes())
        (aside / METRICS_FILE).write_bytes(run.metrics.to_bytes())
        for name, data in run.report.items():
            (aside / name).write_bytes(data)


def load_reader_run(run_dir: Path) -> LoadedReaderRun:
    """Read a run folder back and check it.

    Raises:
        ContractError: A file is missing or damaged, or the weights do not fit the network.
        DigestMismatchError: The weights are not those that ``run.json`` names.
    """
    record = ReaderRecord.load(run_dir / RUN_FILE)
    metrics = ReaderMetrics.load(run_dir / METRICS_FILE)
    try:
        reader = build_reader(record.recipe, compile_grammar(record.grammar, record.reading.grammar))
        reader.load_state_dict(read_weights(run_dir / WEIGHTS_FILE, record.weights_sha256))
    except (DataError, RuntimeError) as error:
        raise ContractError(f"{run_dir}: expected the weights of the network that {RUN_FILE} names: {error}") from error
    if tuple(reader.lattice.alphabet) != record.labels:
        raise ContractError(f"{run_dir / RUN_FILE}: expected the characters of its grammar as labels, found others.")
    return LoadedReaderRun(run_dir, record, metrics, reader.eval())
