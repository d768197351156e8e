"""``convoy train check-reader``: from fields, drawn and real, to the run folder of a reader of amounts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.console import print_json, progress, remark, stdout_console
from convoy.contract.errors import UsageError

if TYPE_CHECKING:
    from convoy.training.check_reader.fitting import ReaderEpoch
    from convoy.training.check_reader.reader_records import ReaderMetrics, ReaderRecord
    from convoy.training.recipes.reader import ReaderRecipe

_RUNS: Final = Path("runs")


def train_reader_command(
    name: str, data: str | None, assignments: tuple[str, ...], out: Path | None, seed: int, refused: dict[str, bool], as_json: bool
) -> None:
    """Train a reader and write its run folder.

    Args:
        name: The recipe.
        data: A folder of real fields; None: synthetic ones alone.
        assignments: ``key=value`` each.
        out: The run folder; None: in ``runs``.
        seed: Of everything random.
        refused: Options of ``convoy train`` that readers do not take, and whether each was given.
        as_json: Print a document.

    Raises:
        UsageError: An option does not fit, or the folder is not there.
    """
    from convoy.training.recipes.reader import get_reader_recipe

    if given := [option for option, there in refused.items() if there]:
        raise UsageError(f"{', '.join(given)}: not with {name}, which trains on the CPU in one go; leave it out.")
    recipe = get_reader_recipe(name, assignments)
    real = None if data is None else Path(data)
    if real is not None and not (real / "amounts.csv").is_file():
        raise UsageError(
            f"--data {data}: expected a folder with amounts.csv (columns file and amount) and the images that it names. Leave "
            "--data out to train on synthetic amounts alone; --set handwriting=mnist writes them with MNIST's digits."
        )
    from convoy.training.check_reader.reader_run import train_reader
    from convoy.training.check_reader.reader_run_folder import write_reader_run
    from convoy.training.data import DataLocation
    from convoy.training.run_folder import check_destination

    if out is not None:
        check_destination(out)
    with progress(unit="fields") as bar:
        drawing = bar.add_task("drawing", total=recipe.n_synthetic)
        task = bar.add_task("training", total=None, visible=False)

        def on_step(n: int) -> None:
            bar.update(task, advance=n, visible=True)

        def on_epoch(epoch: ReaderEpoch) -> None:
            if bar.disable:
                remark(f"{epoch.phase} fields, epoch {epoch.epoch}: loss {epoch.loss:.3f}, {epoch.seconds:.0f} s")
            bar.update(task, description=f"{epoch.phase} {epoch.epoch}, loss {epoch.loss:.2f}")

        run = train_reader(
            recipe, real, seed=seed, location=DataLocation.from_environment(),
            on_synthetic=lambda n: bar.advance(drawing, n), on_step=on_step, on_epoch=on_epoch,
        )  # fmt: skip
    folder = out or _RUNS / run.record.run_id
    write_reader_run(folder, run)
    if as_json:
        print_json(_document(folder, run.record, run.metrics))
    else:
        _tell(folder, run.record, run.metrics)


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


def _document(folder: Path, record: ReaderRecord, metrics: ReaderMetrics) -> dict[str, Any]:
    accept = record.reading.accept
    return {
        "run": str(folder),
        "run_id": record.run_id,
        "recipe": record.recipe.name,
        "data": record.data.model_dump(mode="json"),
        "seed": record.seed,
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

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    data, accept = record.data, record.reading.accept
    seen = f"{data.n_synthetic:,} synthetic fields ({data.handwriting})" + (
        f", {data.n_real:,} real ones of {Path(data.real).name}" if data.real else ""
    )
    share, low, high = (f"{100 * value:.1f}" for value in metrics.accuracy)
    accepted = f"none: no threshold keeps the error among them to {100 * record.recipe.accepted_error:g} %"
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
        "pictures": f"{folder / 'fields.png'}, {folder / 'reject.png'}",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    stdout_console().print(table)
    click.echo(f"\nNext: convoy export {shlex.quote(str(folder))}")
