"""``convoy train``: from a recipe and data to a run folder."""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from convoy.cli.console import json_option, print_json, progress, remark, stdout_console
from convoy.cli.train_reader import ReaderOrder, stopped_reader, train_reader_command
from convoy.cli.unfinished import refuse_to_begin_over, unfinished
from convoy.contract.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from convoy.training.data import Dataset
    from convoy.training.loop import Hardware, Listener
    from convoy.training.recipes import Recipe
    from convoy.training.run import Metrics, RunRecord, TrainedRun
    from convoy.training.transfer import TakeOver

_RUNS: Final = Path("runs")
_SECONDS_BETWEEN_LINES: Final = 3.0


@click.command("train", short_help="Train a network; writes a run folder.")
@click.argument("recipe", required=False)
@click.option("--data", metavar="NAME_OR_DIR", help="A data set's name, or a folder of images. Default: the recipe's own.")
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Change a field of the recipe; may be given several times."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="The run folder. Default: runs/<run id>."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Of everything random. Default: 0.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take weights over from this file or run folder: `transfer`.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read, and name them.")
@click.option("--device", default="auto", show_default=True, help="auto (a GPU where there is one), cpu, cuda or cuda:N.")
@click.option("--devices", type=click.IntRange(1, 1024), default=1, show_default=True, help="How many; a process for each.")
@click.option(
    "--strategy", type=click.Choice(("auto", "ddp")), default="auto", show_default=True, help="How several devices share the work."
)
@click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "bf16")),
    default="auto",
    show_default=True,
    help="Of products; auto: bf16 on GPUs that have it, else fp32.",
)
@click.option("--compile/--no-compile", default=None, help="Whether to use torch.compile. Default: on GPUs, in long runs.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with a run that was stopped, to the same weights; RECIPE is not needed.",
)
@click.option(
    "--checkpoint-every",
    "every_s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="How much work a crash may cost; 0: a checkpoint each step.",
)
@click.option(
    "--log",
    "logs",
    type=click.Choice(("tensorboard", "mlflow")),
    multiple=True,
    help="Write the run down there too, under `logs` beside the run folder; may be given twice.",
)
@json_option
def command(
    recipe: str | None,
    data: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    seed: int | None,
    weights: Path | None,
    skip_bad: bool,
    resume: Path | None,
    every_s: float,
    logs: tuple[str, ...],
    as_json: bool,
    **hardware: Any,
) -> None:
    """Train RECIPE and write a run folder: weights, configuration, metrics, learning curves.

    \b
    convoy train lenet5                                     on digits that come along, a few seconds
    convoy train lenet5 --data mnist                        on MNIST: in $CONVOY_DATA/mnist, else downloaded
    convoy train lenet5 --set epochs=5 --set augmentation.rotation_deg=0
    convoy train check-reader                               amounts of checks: synthetic ones, or with --data your own
    convoy train --resume runs/RUN                          goes on with a run that was stopped

    `convoy recipes` lists the recipes, `convoy recipes RECIPE` the fields that --set changes.
    The same recipe, data and seed give the same weights on the same machine.

    While it runs, runs/RUN.partial holds what it takes to go on after Ctrl-C, SIGTERM (exit status 143), a crash or a
    power cut.
    """  # noqa: D301  click's mark for text that is not to be wrapped
    # what can be wrong with the call is said before torch is imported
    from convoy.training.recipes import get_recipe
    from convoy.training.recipes.reader import READER_RECIPES

    if recipe in READER_RECIPES or (resume is not None and recipe is None and stopped_reader(resume)):
        named = {"--weights": weights is not None, "--skip-bad": skip_bad, "--log": bool(logs)}
        named |= {f"--{name}": _is_given(name) for name in ("devices", "strategy", "precision")}
        named |= {"--compile": bool(hardware["compile"])}
        order = ReaderOrder(recipe, data, assignments, out, seed, hardware["device"] if _is_given("device") else None, every_s)
        train_reader_command(order, resume, named, as_json=as_json)
        return
    if recipe is None and resume is None:
        raise click.UsageError("Missing argument 'RECIPE': what to train. `convoy recipes` lists them.")
    if recipe is None and (data is not None or assignments):
        raise click.UsageError("--resume goes on with the recipe and the data that the run began with: leave out --data and --set.")
    resolved = None if recipe is None else get_recipe(recipe, data=data, assignments=assignments)
    if weights is not None and resolved is not None:
        resolved = _with_weights(resolved, assignments)
    try:
        from convoy.training.loop import Hardware
        from convoy.training.run_folder import RUN_FILE, check_destination, load_run
    except ImportError as error:
        raise MissingDependencyError(f"training needs {error.name}: pip install '.[train]' in Convoy's folder.") from error

    machine = Hardware(**hardware)
    if resume is None:
        assert resolved is not None
        plan = _begin(resolved, out, seed or 0, weights, skip_bad)
    else:
        plan, before = _go_on(resume, resolved, out, seed, weights, skip_bad)
        machine = before.model_copy(update={name: value for name, value in hardware.items() if _is_given(name)})
    machine.check()
    if resume is not None and (plan.folder / RUN_FILE).exists():  # it was stopped after its end
        done = load_run(plan.folder)
        shutil.rmtree(plan.partial, ignore_errors=True)
        _say(plan.folder, done.run, done.metrics, as_json=as_json)
        return
    check_destination(plan.folder)
    with unfinished(plan.partial, resumed=resume is not None):
        run = _train(plan, machine, every_s, logs)
    _say(plan.folder, run.record, run.metrics, as_json=as_json)


def _is_given(option: str) -> bool:
    """Whether an option stands on the command line."""
    return click.get_current_context().get_parameter_source(option) is not ParameterSource.DEFAULT


def _with_weights(recipe: Recipe, assignments: tuple[str, ...]) -> Recipe:
    """The recipe for ``--weights FILE``."""
    from convoy.training.recipes import override

    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key.strip() in ("weights", "transfer.weights") and value.strip() != "file":
            raise UsageError(f"--weights FILE and --set {assignment} contradict each other: leave one out.")

    if recipe.transfer is None:
        raise UsageError(
            f"--weights: recipe {recipe.name!r} takes no weights over. Use `convoy train transfer --set backbone={recipe.network}`."
        )
    return override(recipe, ["transfer.weights=file"])


@dataclass(frozen=True)
class _Plan:
    """Which run it is, and where it goes.

    Attributes:
        recipe: What is trained, resolved.
        seed: Of everything random.
        run_id: The run's name.
        weights: The file that weights are taken over from.
        skip_bad: Whether images that cannot be read are left out.
        folder: The run folder that will be written.
        partial: What the run leaves while it is unfinished.
    """

    recipe: Recipe
    seed: int
    run_id: str
    weights: Path | None
    skip_bad: bool
    folder: Path
    partial: Path


def _begin(recipe: Recipe, out: Path | None, seed: int, weights: Path | None, skip_bad: bool) -> _Plan:
    from convoy.training.data import check_dataset_name
    from convoy.training.loop.checkpoint import partial_of
    from convoy.training.run import new_run_id

    recipe = recipe.model_copy(update={"data": check_dataset_name(recipe.data)})  # a folder is found again from elsewhere
    run_id = new_run_id(recipe)
    folder = out or _RUNS / run_id
    partial = partial_of(folder)
    refuse_to_begin_over(folder, partial)
    return _Plan(recipe, seed, run_id, weights, skip_bad, folder, partial)


def _go_on(
    resume: Path, recipe: Recipe | None, out: Path | None, seed: int | None, weights: Path | None, skip_bad: bool
) -> tuple[_Plan, Hardware]:
    """Which run it is, and what it ran on."""
    from convoy.training.data import check_dataset_name
    from convoy.training.loop.checkpoint import START_FILE, Start, check_is_same, find_partial, folder_of

    partial = find_partial(resume)
    if recipe is not None and stopped_reader(resume):
        raise UsageError(
            f"--resume {resume}: expected a stopped training of a classifier, found a reader's: leave {recipe.name} out."
        )
    stopped = Start.load(partial / START_FILE)
    folder = out or folder_of(partial)
    if recipe is not None:
        recipe = recipe.model_copy(update={"data": check_dataset_name(recipe.data)})
    plan = _Plan(
        recipe=recipe or stopped.recipe,
        seed=stopped.seed if seed is None else seed,
        run_id=stopped.run_id,
        weights=weights or (None if stopped.weights is None else Path(stopped.weights)),
        skip_bad=skip_bad or stopped.skip_bad,
        folder=folder,
        partial=partial,
    )
    weights_given = None if plan.weights is None else str(plan.weights)
    named = {"recipe": plan.recipe, "seed": plan.seed, "weights": weights_given, "skip_bad": plan.skip_bad}
    check_is_same(partial, stopped, stopped.model_copy(update=named))  # before data is read
    return plan, stopped.hardware


def _train(plan: _Plan, machine: Hardware, every_s: float, logs: tuple[str, ...]) -> TrainedRun:
    from convoy.training.loop import Checkpoints, Listeners
    from convoy.training.report import logging_listener
    from convoy.training.run import train
    from convoy.training.run_folder import write_run

    with ExitStack() as stack:
        records = [  # before data is loaded: what is missing is said at once
            stack.enter_context(logging_listener(log, plan.folder.parent / "logs", plan.recipe, plan.run_id))
            for log in dict.fromkeys(logs)
        ]
        dataset = _load(plan)
        listeners: list[Listener] = [stack.enter_context(training_bar()), *records]
        run = train(
            plan.recipe,
            dataset,
            seed=plan.seed,
            hardware=machine,
            weights=plan.weights,
            listener=Listeners(*listeners),
            checkpoints=Checkpoints(plan.partial, every_s=every_s),
            run_id=plan.run_id,
            skip_bad=plan.skip_bad,
        )
        write_run(plan.folder, run)
        for record in records:
            record.finish(run.metrics, plan.folder)
            remark(f"logged to {record.place}")
    return run


def _load(plan: _Plan) -> Dataset:
    from convoy.export.gate.evidence import MIN_IMAGES
    from convoy.training.data import DataLocation, load_dataset

    recipe = plan.recipe
    with progress(unit="images") as bar:
        task = bar.add_task("reading", total=None, visible=False)

        def read(n_done: int, n_all: int) -> None:
            bar.update(task, completed=n_done, total=n_all, visible=True)

        dataset = load_dataset(
            recipe.data,
            seed=plan.seed,
            validation_fraction=recipe.validation_fraction,
            location=DataLocation.from_environment(),
            image_size_px=recipe.image_size_px,
            skip_bad=plan.skip_bad,
            progress=read,
        )
    for line in (*(f"left out: {file}" for file in dataset.skipped), *dataset.remarks):
        remark(line)
    if len(dataset.test) < MIN_IMAGES:
        remark(
            f"convoy: the test split holds {len(dataset.test):,} images; with fewer than {MIN_IMAGES} the export leaves the "
            "accuracy undecided and `convoy deploy` refuses the model. Add images."
        )
    return dataset


@contextmanager
def training_bar() -> Iterator[Listener]:
    """A progress bar that listens: images done, images a second, time left, the best epoch so far.

    Where stderr is no terminal (a log file, a pipe) it is lines instead: one an epoch, of short epochs one every few seconds.
    """
    from convoy.training.loop import EpochRecord, Listener

    class Lines(Listener):
        def on_take_over(self, report: TakeOver) -> None:
            remark("\n".join(report.describe()))

        def on_start(self, *, epochs: int, images_per_epoch: int) -> None:  # noqa: ARG002
            self._epochs = epochs
            self._started = self._told = time.monotonic()
            self._epochs_before = 0

        def on_resume(self, *, epochs_done: int, n_images: int) -> None:  # noqa: ARG002
            self._epochs_before = epochs_done

        def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
            now = time.monotonic()
            if 1 < record.epoch < self._epochs and now - self._told < _SECONDS_BETWEEN_LINES:
                return
            self._told = now
            left_s = (now - self._started) / (record.epoch - self._epochs_before) * (self._epochs - record.epoch)
            best = ", the best so far" if is_best else ""
            left = f", about {left_s:.0f} s left" if record.epoch < self._epochs else ""
            remark(f"epoch {record.epoch} of {self._epochs}: validation error {record.validation_top1_error:.2%}{best}{left}")

    with progress(unit="images") as bar:
        if bar.disable:
            yield Lines()
            return
        task = bar.add_task("training", total=None)

        class Bar(Listener):
            def on_take_over(self, report: TakeOver) -> None:
                bar.console.print("\n".join(report.describe()), markup=False, highlight=False)

            def on_start(self, *, epochs: int, images_per_epoch: int) -> None:
                bar.update(task, total=epochs * images_per_epoch)

            def on_resume(self, *, epochs_done: int, n_images: int) -> None:  # noqa: ARG002
                bar.update(task, completed=n_images)

            def on_step(self, *, n_images: int) -> None:
                bar.advance(task, n_images)

            def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
                if is_best:  # short: the bar, the counts and the times share a line of 80 characters with it
                    bar.update(task, description=f"error {record.validation_top1_error:.2%}")

        yield Bar()


def _say(folder: Path, record: RunRecord, metrics: Metrics, *, as_json: bool) -> None:
    if as_json:
        print_json(_document(folder, record, metrics))
    else:
        _tell(folder, record, metrics)


def _document(folder: Path, record: RunRecord, metrics: Metrics) -> dict[str, Any]:
    return {
        "run": str(folder),
        "run_id": record.run_id,
        "recipe": record.recipe.name,
        "data": record.dataset.name,
        "seed": record.seed,
        "device": record.device,
        "n_parameters": record.n_parameters,
        "n_train": record.dataset.n_train,
        "n_validation": record.dataset.n_validation,
        "n_test": record.dataset.n_test,
        "epochs": len(metrics.history),
        "best_epoch": metrics.best_epoch,
        "validation_loss": metrics.validation_loss,
        "validation_top1_error": metrics.validation_top1_error,
        "test_loss": metrics.test_loss,
        "test_top1_error": metrics.test_top1_error,
        "seconds": metrics.seconds,
        "weights_sha256": record.weights_sha256,
    }


def _tell(folder: Path, record: RunRecord, metrics: Metrics) -> None:
    from rich.table import Table
    from rich.text import Text

    epochs = len(metrics.history)
    stopped = f", stopped early: none better in {record.recipe.patience_epochs}" if epochs < record.recipe.epochs else ""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    rows = {
        "network": f"{record.recipe.network}, {record.n_parameters:,} parameters",
        "data": f"{record.dataset.name}: {record.dataset.n_train:,} to train, "
        f"{record.dataset.n_validation:,} to validate, {record.dataset.n_test:,} to test",
        "epochs": f"{epochs} of {record.recipe.epochs}, the best is {metrics.best_epoch}{stopped}",
        "validation error": _percent(metrics.validation_top1_error, record.dataset.n_validation),
        "test error": _percent(metrics.test_top1_error, record.dataset.n_test),
        "time": f"{metrics.seconds:.1f} s on {record.device}",
        "run": str(folder),
        "report": str(folder / "report.html"),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    stdout_console().print(table)
    named = ""
    if record.recipe.transfer is not None:  # by itself every such model would be called after the recipe
        word = re.sub(r"[^a-z0-9]+", "-", Path(record.recipe.data).name.lower()).strip("-")
        named = f" --name {word}" if word else ""
    click.echo(f"\nNext: convoy export {shlex.quote(str(folder))}{named}")


def _percent(fraction: float, n: int) -> str:
    return f"{100 * fraction:.2f} % ({round(fraction * n):,} of {n:,} wrong)"
