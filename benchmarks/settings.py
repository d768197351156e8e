"""``python -m benchmarks.settings RECIPE``: train a recipe with several settings side by side on one device, and compare them.

    python -m benchmarks.settings lenet5-best --data mnist --device cuda --jobs 6 \\
        --try "elastic_px=0.7" --try "elastic_px=1.3 weight_decay=5e-4" --set epochs=100

Networks as small as LeNet5 leave most of a GPU idle: several processes share it. A setting is chosen by its validation error; the
test error stands beside it and chooses nothing.
"""  # noqa: D301  the backslash goes on with a command

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import click

from benchmarks.harness import Figure, benchmark
from convoy.training.recipes import Recipe, get_recipe

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
        validation_top1_error: Of the weights that were kept.
        test_top1_error: Likewise.
        seconds: The whole run.
    """

    validation_top1_error: float
    test_top1_error: float
    seconds: float


@benchmark("settings", packages=("torch", "numpy"))
@click.argument("recipe")
@click.option("--data", default=None, help="A data set's name or a folder; the recipe's own without it.")
@click.option("--set", "shared", multiple=True, metavar="KEY=VALUE", help="In all settings.")
@click.option("--try", "tries", multiple=True, metavar="KEY=VALUE...", help="A setting: assignments with spaces between.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1, 99), help="Runs of each setting.")
@click.option("--device", default="auto", show_default=True)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 64), help="Runs at a time.")
def main(
    recipe: str, data: str | None, shared: tuple[str, ...], tries: tuple[str, ...], seeds: int, device: str, jobs: int
) -> Iterator[Figure]:
    """Train RECIPE as it is and with each setting."""
    settings = {AS_IT_IS: get_recipe(recipe, data=data, assignments=shared)}
    settings.update({text: get_recipe(recipe, data=data, assignments=[*shared, *text.split()]) for text in tries})
    yield from compare(settings, seeds=seeds, device=device, jobs=jobs)


def compare(settings: dict[str, Recipe], *, seeds: int, device: str, jobs: int) -> Iterator[Figure]:
    """The figures of each setting, in the order of ``settings``."""
    # processes start afresh: one that was forked from another cannot use its GPU
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        runs = {name: [pool.submit(run, recipe, seed, device, jobs) for seed in range(seeds)] for name, recipe in settings.items()}
        for name, futures in runs.items():
            found = [future.result() for future in futures]
            yield Figure.of(f"{name}: validation error", [one.validation_top1_error for one in found], "fraction")
            yield Figure.of(f"{name}: test error", [one.test_top1_error for one in found], "fraction")
            yield Figure.of(f"{name}: time", [one.seconds for one in found], "s")


def run(recipe: Recipe, seed: int, device: str, jobs: int) -> Trained:
    """Train once, with the processor's share of one of ``jobs`` processes."""
    import torch

    from convoy.training.data import DataLocation, load_dataset
    from convoy.training.loop import Hardware
    from convoy.training.run import train

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    dataset = load_dataset(
        recipe.data, seed=seed, validation_fraction=recipe.validation_fraction, location=DataLocation.from_environment()
    )
    metrics = train(recipe, dataset, seed=seed, hardware=Hardware(device=device)).metrics
    return Trained(metrics.validation_top1_error, metrics.test_top1_error, metrics.seconds)


if __name__ == "__main__":
    main()
