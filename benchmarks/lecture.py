"""Every network and technique of the lecture, its figure beside ours.

``python -m benchmarks.lecture [--rows NAME,...] [--seeds 3] [--device auto] [--processes N] [--results FILE] [--write] [--json]``

A run is one row with one seed. With ``--results`` runs are kept as they come, a line each, and those that are there already are not
made again: the page can be put together from parts that several machines made. ``--write`` writes docs/lecture.md, its pictures
and docs/lecture.jsonl, from which ``tests/benchmarks/test_lecture.py`` writes the page again and compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import click

from benchmarks import _lecture_plots
from benchmarks._lecture_page import Outcome, outcomes, page
from benchmarks._lecture_rows import ROWS, rows_named
from benchmarks._lecture_runs import Row, Run, Task, append_run, facts, of_rows, perform_all, read_runs
from benchmarks.harness import Figure, benchmark, document
from convoy.contract.errors import UsageError
from convoy.contract.files import write_bytes
from convoy.training.data import DataLocation

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
PACKAGES: Final = ("torch", "numpy")
SEEDS: Final = 3


@benchmark("lecture", packages=PACKAGES)
@click.option("--rows", "names", help="Only these, separated by commas.")
@click.option("--seeds", default=SEEDS, show_default=True, type=click.IntRange(1, 100), help="Seeds 0 to N - 1.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1, 256), help="Runs at a time, each of one thread.")
@click.option(
    "--epochs-scale", default=1.0, show_default=True, type=click.FloatRange(0, 100, min_open=True),
    help="So many times the epochs of each row; no row then has a goal.",
)  # fmt: skip
@click.option(
    "--results", multiple=True, type=click.Path(dir_okay=False, path_type=Path),
    help="Runs in this file are not made again, and new ones are added to it. More than one: the others are only read.",
)  # fmt: skip
@click.option("--commit", help="What to note as the commit where there is no git.")
@click.option("--write", "writes", is_flag=True, help="Write docs/lecture.md, its pictures and docs/lecture.jsonl.")
def main(
    names: str | None,
    seeds: int,
    device: str,
    processes: int,
    epochs_scale: float,
    results: tuple[Path, ...],
    commit: str | None,
    writes: bool,
) -> Iterable[Figure]:
    """Train the lecture's networks with each of its techniques and put its figures beside ours."""
    rows = _chosen(names)
    if writes and (names is not None or epochs_scale != 1):
        raise UsageError("--write: the page has all rows, with all their epochs; leave out --rows and --epochs-scale.")
    kept = [run for path in results for run in read_runs(path)]
    runs = of_rows(kept, rows, seeds=seeds, epochs_scale=epochs_scale)
    location = DataLocation.from_environment()
    tasks = [
        Task(row, seed, epochs_scale, device, location) for row in rows for seed in range(seeds) if (row.name, seed) not in runs
    ]
    here = facts(document("lecture", (), ("torch",)))
    here["commit"] = here["commit"] or commit
    for number, made in enumerate(perform_all(tasks, processes) if tasks else (), start=1):
        run = made.model_copy(update=here)
        if results:
            append_run(results[0], run)
        runs[run.row, run.seed] = run
        click.echo(
            f"{number}/{len(tasks)} {run.row}, seed {run.seed}: {100 * run.test_top1_error:.2f} % in {run.seconds:.0f} s", err=True
        )
    found = outcomes(rows, runs)
    if writes:
        write(rows, runs)
    return figures_of(found.values(), with_goals=epochs_scale == 1)


def _chosen(names: str | None) -> tuple[Row, ...]:
    if names is None:
        return ROWS
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = sorted(set(chosen) - {row.name for row in ROWS})
    if not chosen or len(set(chosen)) != len(chosen) or unknown:
        known = ", ".join(row.name for row in ROWS)
        raise UsageError(f"--rows: expected names, each once, separated by commas; found {names!r}. Known: {known}.")
    return rows_named(chosen)


def figures_of(found: Iterable[Outcome], *, with_goals: bool = True) -> list[Figure]:
    """A figure a row, and how many rows lie below their bands: an error that is too small is as suspect as one too large."""
    figures, below = [], 0
    for outcome in found:
        row, values = outcome.row, [value if math.isfinite(value) else 1e6 for value in outcome.values]
        mean = sum(values) / len(values)
        below += row.band is not None and mean < row.band[0]
        figures.append(
            Figure(
                name=row.name,
                value=mean,
                low=min(values),
                high=max(values),
                unit="%" if row.figure == "test error" else "epochs",
                goal=f"<= {row.band[1]:g}" if with_goals and row.band else None,
            )
        )
    if with_goals:
        figures.append(Figure(name="below their bands", value=below, unit="rows", goal="== 0"))
    return figures


def write(rows: Sequence[Row], runs: Mapping[tuple[str, int], Run], folder: Path = DOCS) -> None:
    """Write the page, its pictures and its runs into ``folder``."""
    found = outcomes(rows, runs)
    places = {row.name: place for place, row in enumerate(rows)}
    lines = [run.model_dump_json() for run in sorted(runs.values(), key=lambda run: (places[run.row], run.seed))]
    write_bytes(folder / "lecture.jsonl", "".join(f"{line}\n" for line in lines).encode())
    write_bytes(folder / "lecture.md", page(rows, runs).encode())
    for name, draw in (
        ("lecture_mnist.png", _lecture_plots.draw_mnist),
        ("lecture_sigmoid.png", _lecture_plots.draw_convergence),
        ("lecture_overfitting.png", _lecture_plots.draw_overfitting),
    ):
        write_bytes(folder / name, draw(found))


if __name__ == "__main__":
    main()
