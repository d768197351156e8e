"""``python -m benchmarks.tuning``: the search that ``convoy tune`` makes, against the full grid, on the real server.

Both start from the same setting and measure in the same way. The grid measures every combination beside the start, and takes the
best median; then the two winners meet, in turns. The space is a part of the whole one, which would take hours.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.harness import Figure, benchmark
from benchmarks.serving import MODELS, write_repository
from convoy.contract.errors import ConvoyError
from convoy.serving.tuning.contest import Contest, Method
from convoy.serving.tuning.objective import Comparison, Objective
from convoy.serving.tuning.search import Step, search
from convoy.serving.tuning.setting import Setting
from convoy.serving.tuning.space import Axis, grid, space
from convoy.serving.tuning.tuning import Subject

DELAYS_US: Final = (0, 200, 1000)
BATCHES: Final = (16, 64)
PREFERRED: Final = ((), (16,))
START: Final = {"max_queue_delay_microseconds": 1000, "instance_count": 2}
"""A start that is not the best, so that there is something to find."""


@benchmark("tuning", packages=("nvidia-pytriton", "onnxruntime-gpu", "onnxruntime"))
@click.option("--models", default="lenet5", show_default=True, help=f"Of {', '.join(MODELS)}, with commas.")
@click.option("--concurrency", default="1,64", show_default=True, help="Numbers of callers, with commas.")
@click.option("--grid-rounds", default=2, show_default=True, type=click.IntRange(1, 99), help="For each combination.")
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(3, 99), help="When the two winners meet.")
def main(models: str, concurrency: str, grid_rounds: int, rounds: int) -> Iterator[Figure]:
    """Compare the search with the full grid."""
    method = Method(Objective(tuple(map(int, concurrency.split(",")))))
    for name in models.split(","):
        with tempfile.TemporaryDirectory(prefix="bench-tuning-") as folder:
            write_repository(name, Path(folder))
            yield from compare_with_grid(name, Subject.of(Path(folder), name), method, grid_rounds, rounds)


def compare_with_grid(name: str, subject: Subject, method: Method, grid_rounds: int, rounds: int) -> Iterator[Figure]:
    """The figures of one model.

    Args:
        name: What to call it.
        subject: What is tuned.
        method: How.
        grid_rounds: How often each combination is measured.
        rounds: How often the winners are.
    """
    start = Setting(**{**Setting.of(subject.config.message).as_dict(), "preferred_batch_size": (), **START})
    axes = part_of(space(start, cores=len(os.sched_getaffinity(0)), largest_batch=subject.largest_batch))
    every = [setting for setting in grid(start, axes) if setting != start]
    with Contest(subject.model_folder, subject.config, subject.version, method) as contest:
        began = time.monotonic()
        searched, steps = search(start, axes, contest.compare, on_step=_show)
        search_s = time.monotonic() - began
        began = time.monotonic()
        found: dict[Setting, Comparison] = {}
        for setting in every:
            comparison = contest.compare(setting, start, grid_rounds)
            if comparison is not None:
                found[setting] = comparison
                click.echo(f"grid {len(found)}/{len(every)}: {setting}: {comparison.value:.3f}", err=True)
        grid_s = time.monotonic() - began
        best = max(found, key=lambda setting: found[setting].value)
        click.echo(f"search: {searched}; grid: {best}", err=True)
        meeting = Comparison((1.0,)) if searched == best else contest.compare(searched, best, rounds, to_the_end=True)
        gain = contest.compare(searched, start, rounds, to_the_end=True)
    if meeting is None or gain is None:
        raise ConvoyError(f"{name}: a setting that was served cannot be served any more.")
    yield Figure.of(f"{name}: the search's setting over the start", gain.ratios, "ratio", ">= 1")
    yield Figure.of(f"{name}: the search's setting over the grid's", meeting.ratios, "ratio", ">= 0.95")
    yield Figure.of(f"{name}: comparisons of the search", [len(steps)], "comparisons")
    yield Figure.of(f"{name}: comparisons of the grid", [len(every)], "comparisons")
    yield Figure.of(f"{name}: time of the search over the grid's", [search_s / grid_s], "ratio", "< 1")


def part_of(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes with the choices that the grid can afford."""
    kept: dict[str, set[Any]] = {
        "max_queue_delay_microseconds": set(DELAYS_US), "max_batch_size": set(BATCHES), "preferred_batch_size": set(PREFERRED),
    }  # fmt: skip
    return tuple(
        Axis(
            axis.name,
            tuple(one for one in axis.choices if all(value in kept.get(name, {value}) for name, value in one.items())),
            axis.ordered,
        )
        for axis in axes
    )


def _show(step: Step) -> None:
    found = "cannot be served" if step.comparison is None else f"{step.comparison.value:.3f}"
    click.echo(f"search: {step.candidate}: {found}{' taken' if step.taken else ''}", err=True)


if __name__ == "__main__":
    main()
