"""``convoy train``: from a recipe and data to a run folder."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.console import json_option, print_json, progress, remark, stdout_console
from convoy.contract.errors import MissingDependencyError

if TYPE_CHECKING:
    from convoy.training.loop import Listener
    from convoy.training.run import TrainedRun

_RUNS: Final = Path("runs")
_SECONDS_BETWEEN_LINES: Final = 3.0


@click.command("train", short_help="Train a network; writes a run folder.")
@click.argument("recipe")
@click.option("--data", metavar="NAME", help="The data set: digits (comes along) or mnist. Default: the recipe's own.")
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Change a field of the recipe; may be given several times."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="The run folder. Default: runs/<run id>."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of everything random.")
@click.option("--device", default="auto", show_default=True, help="auto (a GPU where there is one), cpu, cuda or cuda:N.")
@json_option
def command(
    recipe: str, data: str | None, assignments: tuple[str, ...], out: Path | None, seed: int, device: str, as_json: bool
) -> None:
    """Train RECIPE and write a run folder: weights, configuration, metrics, learning curves.

    \b
    convoy train lenet5                                     on digits that come along, a few seconds
    convoy train lenet5 --data mnist                        on MNIST: in $CONVOY_DATA/mnist, else downloaded
    convoy train lenet5 --set epochs=5 --set augmentation.rotation_deg=0

    `convoy recipes` lists the recipes, `convoy recipes RECIPE` the fields that --set changes.
    The same recipe, data and seed give the same weights on the same machine.
    """  # noqa: D301  click's mark for text that is not to be wrapped
    # what can be wrong with the call is said before torch is imported
    from convoy.training.recipes import get_recipe

    resolved = get_recipe(recipe, data=data, assignments=assignments)
    try:
        from convoy.training.data import DataLocation, load_dataset
        from convoy.training.loop import choose_device
        from convoy.training.run import train
        from convoy.training.run_folder import check_destination, write_run
    except ImportError as error:
        raise MissingDependencyError(f"training needs {error.name}: pip install '.[train]' in Convoy's folder.") from error

    check_destination(out or _RUNS / "new")
    choose_device(device)
    try:
        dataset = load_dataset(
            resolved.data, seed=seed, validation_fraction=resolved.validation_fraction, location=DataLocation.from_environment()
        )
        with training_bar() as listener:
            run = train(resolved, dataset, seed=seed, device=device, listener=listener)
        folder = out or _RUNS / run.record.run_id
        write_run(folder, run)
    except KeyboardInterrupt as interrupt:
        remark("\nconvoy: training was stopped before its end: no run folder was written.")
        raise click.Abort from interrupt  # of which click writes no empty line
    if as_json:
        print_json(_document(folder, run))
    else:
        _tell(folder, run)


@contextmanager
def training_bar() -> Iterator[Listener]:
    """A progress bar that listens: images done, images a second, time left, the best epoch so far.

    Where stderr is no terminal (a log file, a pipe) it is lines instead: one an epoch, of short epochs one every few seconds.
    """
    from convoy.training.loop import EpochRecord, Listener

    class Lines(Listener):
        def on_start(self, *, epochs: int, images_per_epoch: int) -> None:  # noqa: ARG002
            self._epochs = epochs
            self._started = self._told = time.monotonic()

        def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
            now = time.monotonic()
            if 1 < record.epoch < self._epochs and now - self._told < _SECONDS_BETWEEN_LINES:
                return
            self._told = now
            left_s = (now - self._started) / record.epoch * (self._epochs - record.epoch)
            best = ", the best so far" if is_best else ""
            left = f", about {left_s:.0f} s left" if record.epoch < self._epochs else ""
            remark(f"epoch {record.epoch} of {self._epochs}: validation error {record.validation_top1_error:.2%}{best}{left}")

    with progress(unit="images") as bar:
        if bar.disable:
            yield Lines()
            return
        task = bar.add_task("training", total=None)

        class Bar(Listener):
            def on_start(self, *, epochs: int, images_per_epoch: int) -> None:
                bar.update(task, total=epochs * images_per_epoch)

            def on_step(self, *, n_images: int) -> None:
                bar.advance(task, n_images)

            def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
                if is_best:  # short: the bar, the counts and the times share a line of 80 characters with it
                    bar.update(task, description=f"error {record.validation_top1_error:.2%}")

        yield Bar()


def _document(folder: Path, run: TrainedRun) -> dict[str, Any]:
    record, metrics = run.record, run.metrics
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


def _tell(folder: Path, run: TrainedRun) -> None:
    from rich.table import Table
    from rich.text import Text

    record, metrics = run.record, run.metrics
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
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    stdout_console().print(table)
    click.echo(f"\nNext: convoy export {shlex.quote(str(folder))}")


def _percent(fraction: float, n: int) -> str:
    return f"{100 * fraction:.2f} % ({round(fraction * n):,} of {n:,} wrong)"
