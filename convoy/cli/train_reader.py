"""``convoy train check-reader``: from fields, drawn and real, to the run folder of a reader of amounts."""

from __future__ import annotations

import math
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.console import print_json, progress, remark, stdout_console
from convoy.cli.unfinished import refuse_to_begin_over, unfinished
from convoy.contract.errors import UsageError

if TYPE_CHECKING:
    from convoy.training.check_reader.reader_course import ReaderEpoch
    from convoy.training.check_reader.reader_records import ReaderMetrics, ReaderRecord
    from convoy.training.check_reader.reader_run import TrainedReader
    from convoy.training.recipes.reader import ReaderRecipe

_RUNS: Final = Path("runs")


@dataclass(frozen=True)
class ReaderOrder:
    """What the command line says of a reader's training; None: nothing.

    Attributes:
        recipe: Its name.
        data: A folder of real fields.
        assignments: ``key=value`` each.
        out: The run folder.
        seed: Of everything random.
        device: Where it runs.
        every_s: Seconds from one checkpoint to the next.
    """

    recipe: str | None
    data: str | None
    assignments: tuple[str, ...]
    out: Path | None
    seed: int | None
    device: str | None
    every_s: float


@dataclass(frozen=True)
class _Plan:
    """Which run it is, and where it goes."""

    recipe: ReaderRecipe
    real: Path | None
    seed: int
    device: str
    run_id: str
    folder: Path
    partial: Path


def stopped_reader(resume: Path) -> bool:
    """Whether the run that was stopped there trains a reader.

    Raises:
        UsageError: There is none.
        ContractError: What it left is damaged.
    """
    from convoy.training.check_reader.reader_records import KIND
    from convoy.training.loop.checkpoint import find_partial, kind_of

    return kind_of(find_partial(resume)) == KIND


def train_reader_command(order: ReaderOrder, resume: Path | None, refused: dict[str, bool], *, as_json: bool) -> None:
    """Train a reader and write its run folder.

    Args:
        order: What and where to.
        resume: The run to go on with; None: a new one.
        refused: Options of ``convoy train`` that readers do not take, and whether each was given.
        as_json: Print a document.

    Raises:
        UsageError: An option does not fit, or the folder is not there.
    """
    from convoy.training.recipes.reader import get_reader_recipe

    if given := [option for option, there in refused.items() if there]:
        raise UsageError(f"{', '.join(given)}: readers of amounts take no such option, and train on one device; leave it out.")
    if order.recipe is None and (order.data is not None or order.assignments):
        raise UsageError("--resume goes on with the recipe and the fields that the run began with: leave out --data and --set.")
    recipe = None if order.recipe is None else _found_again(get_reader_recipe(order.recipe, order.assignments))
    real = None if order.data is None else _check_fields(Path(order.data))
    plan = _begin(order, recipe, real) if resume is None else _go_on(order, resume, recipe, real)
    from convoy.training.check_reader.reader_run_folder import load_reader_run, write_reader_run
    from convoy.training.loop import choose_device
    from convoy.training.run_folder import RUN_FILE, check_destination

    choose_device(plan.device)
    if resume is not None and (plan.folder / RUN_FILE).exists():  # it was stopped after its end
        done = load_reader_run(plan.folder)
        shutil.rmtree(plan.partial, ignore_errors=True)
        _say(plan.folder, done.record, done.metrics, as_json=as_json)
        return
    check_destination(plan.folder)
    with unfinished(plan.partial, resumed=resume is not None):
        run = _train(plan, order.every_s)
        write_reader_run(plan.folder, run)
    _say(plan.folder, run.record, run.metrics, as_json=as_json)


def _found_again(recipe: ReaderRecipe) -> ReaderRecipe:
    """The recipe with a grammar of one's own by its whole path: a stopped run may go on from elsewhere.

    Raises:
        UsageError: There is no such grammar, or no reader can have it.
    """
    from convoy.training.check_reader.grammar import grammar_names
    from convoy.training.check_reader.named_grammar import named_grammar

    if recipe.grammar in grammar_names():
        return recipe
    named_grammar(recipe.grammar)  # before fields are read or drawn
    return recipe.model_copy(update={"grammar": str(Path(recipe.grammar).resolve())})


def _check_fields(folder: Path) -> Path:
    if not (folder / "amounts.csv").is_file():
        raise UsageError(
            f"--data {folder}: expected a folder with amounts.csv (columns file and amount) and the images that it names. Leave "
            "--data out to train on synthetic amounts alone; --set handwriting=mnist writes them with MNIST's digits."
        )
    return folder


def _warn_of_few_fields(n: int, n_held_back: int, fraction: float) -> None:
    """Say beforehand that the reader could not be deployed."""
    from convoy.export.gate.evidence import MIN_IMAGES

    if n_held_back < MIN_IMAGES:
        remark(
            f"convoy: {n_held_back:,} of the {n:,} fields are held back; with fewer than {MIN_IMAGES} the export leaves the "
            f"accuracy undecided and `convoy deploy` refuses the reader. Add fields ({math.ceil(MIN_IMAGES / fraction):,} do), "
            "or hold more of them back with --set validation_fraction=..."
        )


def _begin(order: ReaderOrder, recipe: ReaderRecipe | None, real: Path | None) -> _Plan:
    from convoy.training.loop.checkpoint import partial_of
    from convoy.training.run import name_run

    assert recipe is not None  # without --resume there is one
    run_id = name_run(recipe.name)
    folder = order.out or _RUNS / run_id
    partial = partial_of(folder)
    refuse_to_begin_over(folder, partial)
    return _Plan(recipe, real, order.seed or 0, order.device or "auto", run_id, folder, partial)


def _go_on(order: ReaderOrder, resume: Path, recipe: ReaderRecipe | None, real: Path | None) -> _Plan:
    """Which run it is, and what it ran on."""
    from convoy.training.check_reader.reader_start import ReaderStart
    from convoy.training.loop.checkpoint import START_FILE, check_is_same, find_partial, folder_of

    if not stopped_reader(resume):
        raise UsageError(
            f"--resume {resume}: expected a stopped training of {order.recipe}, found a classifier's: leave {order.recipe} out."
        )
    partial = find_partial(resume)
    stopped = ReaderStart.load(partial / START_FILE)
    named: dict[str, object] = {"recipe": recipe or stopped.recipe, "seed": stopped.seed if order.seed is None else order.seed}
    if recipe is not None:
        named["real"] = None if real is None else str(real.resolve())
    check_is_same(partial, stopped, stopped.model_copy(update=named))  # before fields are read
    return _Plan(
        recipe=stopped.recipe,
        real=None if stopped.real is None else _check_fields(Path(stopped.real)),
        seed=stopped.seed,
        device=order.device or stopped.hardware.device,
        run_id=stopped.run_id,
        folder=order.out or folder_of(partial),
        partial=partial,
    )


def _train(plan: _Plan, every_s: float) -> TrainedReader:
    from convoy.training.check_reader.reader_run import train_reader
    from convoy.training.data import DataLocation
    from convoy.training.loop import Checkpoints

    with progress(unit="fields") as bar:
        drawing = bar.add_task("drawing", total=plan.recipe.n_synthetic)
        task = bar.add_task("training", total=None, visible=False)

        is_drawing, is_last = False, False

        def on_synthetic(n: int) -> None:
            nonlocal is_drawing
            if bar.disable and not is_drawing:
                remark(f"drawing {plan.recipe.n_synthetic:,} synthetic fields")
            is_drawing = True
            bar.advance(drawing, n)

        def on_step(n_seen: int, n_all: int) -> None:
            nonlocal is_last
            is_last = n_seen >= n_all
            bar.update(task, completed=n_seen, total=n_all, visible=True)

        def on_epoch(epoch: ReaderEpoch) -> None:
            if bar.disable:
                remark(f"{epoch.phase} fields, epoch {epoch.epoch}: loss {epoch.loss:.3f}, {epoch.seconds:.0f} s")
            bar.update(task, description=f"{epoch.phase} {epoch.epoch}, loss {epoch.loss:.2f}")
            if is_last:
                if bar.disable:
                    remark("reading the fields that were held back: calibration, threshold, report")
                bar.update(task, description="calibrating")

        return train_reader(
            plan.recipe, plan.real, seed=plan.seed, device=plan.device, location=DataLocation.from_environment(),
            checkpoints=Checkpoints(plan.partial, every_s=every_s), run_id=plan.run_id,
            on_split=lambda n, n_held_back: _warn_of_few_fields(n, n_held_back, plan.recipe.validation_fraction),
            on_synthetic=on_synthetic, on_step=on_step, on_epoch=on_epoch,
        )  # fmt: skip


def list_readers(width: int) -> None:
    """The readers, as ``convoy recipes`` lists them."""
    from convoy.training.recipes.reader import READER_RECIPES

    click.secho("Readers of amounts", bold=True)
    for recipe in READER_RECIPES.values():
        click.echo(f"  {recipe.name:<{width}}  {recipe.title}")
    click.echo()


def show_reader(recipe: ReaderRecipe) -> None:
    """A reader's source and its fields, as ``convoy recipes RECIPE`` shows them."""
    import json

    from rich.table import Table
    from rich.text import Text

    from convoy.training.recipes import settings

    click.echo(f"{click.style(recipe.name, bold=True)}  {recipe.title}\n  {recipe.source}\n")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("field", "value", "what it does"):
        table.add_column(heading)
    for setting in settings(recipe):
        value = setting.value if isinstance(setting.value, str) else json.dumps(setting.value)
        table.add_row(setting.key, value, Text(setting.description))
    stdout_console().print(table)
    click.echo(f"\nconvoy train {recipe.name} --data FOLDER_OF_REAL_FIELDS --set epochs={max(1, recipe.epochs // 2)}")


def _say(folder: Path, record: ReaderRecord, metrics: ReaderMetrics, *, as_json: bool) -> None:
    if as_json:
        print_json(_document(folder, record, metrics))
    else:
        _tell(folder, record, metrics)


def _document(folder: Path, record: ReaderRecord, metrics: ReaderMetrics) -> dict[str, Any]:
    accept = record.reading.accept
    return {
        "run": str(folder),
        "run_id": record.run_id,
        "recipe": record.recipe.name,
        "data": record.data.model_dump(mode="json"),
        "seed": record.seed,
        "device": record.device,
        "n_parameters": record.n_parameters,
        "held_back": metrics.held_back,
        "n": metrics.n,
        "accuracy": metrics.accuracy[0],
        "accuracy_interval": list(metrics.accuracy[1:]),
        "accept": None if accept is None else accept.model_dump(mode="json"),
        "seconds": metrics.seconds,
        "weights_sha256": record.weights_sha256,
    }


def _tell(folder: Path, record: ReaderRecord, metrics: ReaderMetrics) -> None:
    from rich.table import Table
    from rich.text import Text

    from convoy.contract.reject import least_accepted
    from convoy.training.report.page import REPORT_FILE

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    data, accept = record.data, record.reading.accept
    seen = f"{data.n_synthetic:,} synthetic fields ({data.handwriting})" + (
        f", {data.n_real:,} real ones of {Path(data.real).name}" if data.real else ""
    )
    share, low, high = (f"{100 * value:.1f}" for value in metrics.accuracy)
    least, rate = least_accepted(record.recipe.accepted_error), 100 * record.recipe.accepted_error
    accepted = f"none: no threshold accepts {least:,} fields or more with at most {rate:g} % of them wrong; all go to a person"
    if accept is not None:
        wrong = f"{100 * accept.error:.2f} % of these wrong"
        accepted = f"{100 * accept.coverage:.1f} % of them (confidence from {accept.threshold:.4f}), {wrong}"
    rows = {
        "network": f"{record.recipe.network}, {record.n_parameters:,} parameters; grammar {record.reading.grammar}",
        "learnt from": seen,
        "read right": f"{share} % ({low} to {high}) of {metrics.n:,} {metrics.held_back} fields that were held back",
        "accepted": accepted,
        "time": f"{metrics.seconds:.0f} s",
        "run": str(folder),
        "report": str(folder / REPORT_FILE),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    stdout_console().print(table)
    click.echo(f"\nNext: convoy export {shlex.quote(str(folder))}")
