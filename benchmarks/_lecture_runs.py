"""The runs behind the lecture's page: one row and one seed each, in a process of its own, kept line by line in a file."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.harness import Document
from convoy.contract.errors import ConvoyError, DataError, TrainingError
from convoy.training.data import DataLocation, Dataset, load_dataset
from convoy.training.data.dataset import Split, draw_stratified
from convoy.training.recipes import Recipe, get_recipe

_DIGITS: Final = 5  # of the fractions in a course: the file stays small


class Row(BaseModel):
    """One line of the page: what is trained, on what, and what the lecture says of it.

    Attributes:
        name: Unique; what ``--rows`` takes.
        section: Under which heading it stands.
        title: How the page calls it.
        recipe: The recipe's name.
        data: The data set's name.
        settings: ``key=value`` each, as ``convoy train --set`` takes them.
        n_train: So many training images, drawn by the seed, and as many to validate on; None: all there are.
        judged: Whose test error counts. ``best``: the epoch with the lowest validation error, as ``convoy train`` does; ``last``:
            the last epoch, with no choice; the test images then take the place of the validation images, so that the errors of all
            epochs are known.
        figure: What the row measures.
        lecture: The lecture's figure: percent of the test images, or None.
        lecture_says: In words, where it is no such figure.
        band: Where ours must lie, in percent or in epochs, as a mean over the seeds; None where it may lie anywhere.
        why: Why ours differs from the lecture's, or what is to be known about the row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    section: str
    title: str
    recipe: str
    data: str = "mnist"
    settings: tuple[str, ...] = ()
    n_train: int | None = None
    judged: Literal["best", "last"] = "best"
    figure: Literal["test error", "epochs to 25 %"] = "test error"
    lecture: float | None = None
    lecture_says: str = ""
    band: tuple[float, float] | None = None
    why: str = ""

    def recipe_for(self, epochs_scale: float = 1.0) -> Recipe:
        """The recipe that the row trains, with so many times its epochs."""
        recipe = get_recipe(self.recipe, data=self.data, assignments=self.settings)
        epochs = max(1, round(recipe.epochs * epochs_scale))
        return recipe.model_copy(update={"epochs": epochs, "patience_epochs": min(recipe.patience_epochs, epochs)})

    def digest(self, epochs_scale: float = 1.0) -> str:
        """Of all that decides what comes out: a run with another digest is another run.

        Fields that have their defaults are left out, so that a field that recipes gain does not void what was measured.
        """
        recipe = self.recipe_for(epochs_scale).model_dump(mode="json", exclude_defaults=True, exclude={"title", "source"})
        facts = json.dumps([recipe, self.data, self.n_train, self.judged], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


class Run(BaseModel):
    """What came out of one row with one seed. Errors are fractions in [0, 1], losses in nats.

    Attributes:
        row: The row's name.
        seed: The seed.
        settings: ``Row.digest()``.
        test_top1_error: Of the weights that the row judges.
        test_loss: Likewise.
        n_train: Training images.
        n_test: Test images.
        n_parameters: Numbers that are trained.
        epoch: Whose weights are judged, from 1.
        seconds: What the run took, beside the others that ran.
        train_errors: Epoch by epoch, while the weights moved; empty in docs/lecture.jsonl where the page does not show it.
        held_out_errors: Epoch by epoch on the validation images; on the test images where the last epoch is judged. Likewise empty.
        held_out_losses: Likewise.
        device: Where it ran, in words.
        machine: Processor and cores.
        versions: Of Python and torch.
        commit: Of the checkout; None where there was no git.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str
    seed: int
    settings: str
    test_top1_error: float = Field(ge=0, le=1)
    test_loss: float
    n_train: int
    n_test: int
    n_parameters: int
    epoch: int
    seconds: float
    train_errors: tuple[float, ...]
    held_out_errors: tuple[float, ...]
    held_out_losses: tuple[float, ...]
    device: str
    machine: str = ""
    versions: str = ""
    commit: str | None = None

    @property
    def epochs_to_25(self) -> int | None:
        """The first epoch with a training error of at most 25 %; None where there is none."""
        return next((epoch for epoch, error in enumerate(self.train_errors, start=1) if error <= 0.25), None)


@dataclass(frozen=True)
class Task:
    """One run that is to be made.

    Attributes:
        row: What.
        seed: With which seed.
        epochs_scale: With so many times the row's epochs.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        location: Where the data is.
    """

    row: Row
    seed: int
    epochs_scale: float
    device: str
    location: DataLocation

    @property
    def cost(self) -> float:
        """About how long it takes, beside the others: steps, weighted by how long one takes."""
        recipe = self.row.recipe_for(self.epochs_scale)
        n = self.row.n_train or {"mnist": 54_000, "cifar10": 2_880}.get(self.row.data, 1_300)
        each = {"cifar-resnet20": 8.0, "lenet5-1998": 2.5, "lenet1": 2.0}.get(recipe.network, 1.0)
        return recipe.epochs * (n / recipe.batch_size) * each * (1 if recipe.augmentation.is_off else 1.5)


def perform(task: Task) -> Run:
    """Train and test, in this process.

    Raises:
        ConvoyError: The data is not there, or the loss is not finite any more.
    """
    from convoy.training.loop import Hardware
    from convoy.training.run import train

    row = task.row
    recipe = row.recipe_for(task.epochs_scale)
    dataset = _data_of(row, recipe, task)
    # the same arithmetic on every machine; and a dozen processes that compile at once would be at it longer than they train
    hardware = Hardware(device=task.device, precision="fp32", compile=False)
    try:
        trained = train(recipe, dataset, seed=task.seed, hardware=hardware)
    except TrainingError as error:
        raise TrainingError(f"{row.name}, seed {task.seed}: {error}") from error
    metrics = trained.metrics
    last = metrics.history[-1]
    chosen = row.judged == "best"
    return Run(
        row=row.name,
        seed=task.seed,
        settings=row.digest(task.epochs_scale),
        test_top1_error=metrics.test_top1_error if chosen else last.validation_top1_error,
        test_loss=round(metrics.test_loss if chosen else last.validation_loss, _DIGITS),
        n_train=len(dataset.train),
        n_test=len(dataset.test),
        n_parameters=trained.record.n_parameters,
        epoch=metrics.best_epoch if chosen else last.epoch,
        seconds=round(metrics.seconds, 1),
        train_errors=tuple(round(record.train_top1_error, _DIGITS) for record in metrics.history),
        held_out_errors=tuple(round(record.validation_top1_error, _DIGITS) for record in metrics.history),
        held_out_losses=tuple(round(record.validation_loss, _DIGITS) for record in metrics.history),
        device=trained.record.device,
    )


def _data_of(row: Row, recipe: Recipe, task: Task) -> Dataset:
    dataset = _load(row.data, task.seed, recipe.validation_fraction, recipe.image_size_px, task.location)
    if row.n_train is not None:
        generator = np.random.default_rng(task.seed)
        train, validation = (_draw(split, row.n_train, generator) for split in (dataset.train, dataset.validation))
        dataset = replace(dataset, train=train, validation=validation)
    return replace(dataset, validation=dataset.test) if row.judged == "last" else dataset


def _draw(split: Split, n: int, generator: np.random.Generator) -> Split:
    chosen, _ = draw_stratified(split.labels, n / len(split), generator)
    return split.take(chosen)


@functools.lru_cache(maxsize=8)
def _load(name: str, seed: int, fraction: float, image_size_px: int | None, location: DataLocation) -> Dataset:
    return load_dataset(name, seed=seed, validation_fraction=fraction, image_size_px=image_size_px, location=location)


def perform_all(tasks: Sequence[Task], processes: int) -> Iterator[Run]:
    """Perform tasks, the longest first, each in one of so many processes of one thread; runs come as they end.

    Raises:
        ConvoyError: A task failed; the others were performed all the same.
    """
    # spawned, not forked: CUDA does not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, max(1, len(tasks))), mp_context=context, initializer=_one_thread) as pool:
        futures = [pool.submit(perform, task) for task in sorted(tasks, key=lambda task: -task.cost)]
        failed: list[ConvoyError] = []
        try:
            for future in as_completed(futures):
                try:
                    run = future.result()
                except ConvoyError as error:
                    failed.append(error)
                else:
                    yield run
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        raise failed[0]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def read_runs(path: Path) -> list[Run]:
    """The runs of a file of JSON lines; none where there is no file. A last line that was cut off is left out.

    Raises:
        DataError: Another line is no run.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    runs = []
    for number, line in enumerate(lines, start=1):
        try:
            runs.append(Run.model_validate_json(line))
        except ValidationError as error:
            raise DataError(f"{path}, line {number}: expected a run of this benchmark: {error.errors()[0]['msg']}.") from error
    return runs


def append_run(path: Path, run: Run) -> None:
    """Add a run to a file of JSON lines, in place of the part of a line that a killed process may have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(f"{run.model_dump_json()}\n".encode())


def of_rows(runs: Iterable[Run], rows: Sequence[Row], *, seeds: int, epochs_scale: float = 1.0) -> dict[tuple[str, int], Run]:
    """By row and seed, the runs that were made with the rows' settings; the later of two wins."""
    digests = {row.name: row.digest(epochs_scale) for row in rows}
    return {(run.row, run.seed): run for run in runs if digests.get(run.row) == run.settings and run.seed < seeds}


def facts(document: Document) -> dict[str, str | None]:
    """Where a run was made, for ``Run``: from a benchmark's document."""
    machine = document.machine
    return {
        "machine": f"{machine['processor']}, {machine['cores']} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in document.versions.items()),
        "commit": document.commit,
    }
