"""``python -m benchmarks.training``: how fast Convoy trains LeNet5 on MNIST, beside the loop that most people write.

In each round, one after another in an order that turns:

- ``convoy``: the recipe ``lenet5``, its distortions included; ``convoy plain``: the same without them.
- ``common``: the same network on torchvision's ``MNIST`` with ``ToTensor`` and ``Normalize``, a ``DataLoader`` with 2 workers,
  batches of 64, Adam; ``common affine``: the same with torchvision's ``RandomAffine`` of the same amounts.
- ``lenet5-fast``: from its first batch to its last evaluation (``--no-fast`` leaves it out).

An epoch is 54,000 images. Convoy's includes the evaluation on the other 6,000, the common loop's includes none. MNIST is looked
for where ``CONVOY_DATA`` says.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch

from benchmarks import _common_loop
from benchmarks.harness import Figure, benchmark, interleave, ratios
from convoy.contract.errors import DataError
from convoy.training.data import DataLocation, Dataset, load_dataset
from convoy.training.loop import Hardware, Listener
from convoy.training.networks import build_network
from convoy.training.recipes import Augmentation, Recipe, get_recipe
from convoy.training.run import train

_FOLDERS: Final = ("mnist", "mnist/raw", "MNIST/raw")


@dataclass
class Errors:
    """Top-1 errors on the test split, a value a round, by case."""

    by_case: dict[str, list[float]] = field(default_factory=dict)

    def note(self, case: str, top1_error: float) -> None:
        """Remember the error of a round."""
        self.by_case.setdefault(case, []).append(top1_error)


@benchmark("training", packages=("torch", "torchvision", "numpy"))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 99), help="How often each case is trained.")
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1, 99), help="Of each training but lenet5-fast's.")
@click.option("--images", default=54_000, show_default=True, type=click.IntRange(64, 54_000), help="Images an epoch.")
@click.option("--fast/--no-fast", default=True, show_default=True, help="Train lenet5-fast too.")
def main(rounds: int, epochs: int, images: int, fast: bool) -> Iterator[Figure]:
    """Measure the epochs of lenet5 on MNIST beside the common loop's."""
    location = DataLocation.from_environment()
    source = next((location.root / name for name in _FOLDERS if (location.root / name).is_dir()), None) if location.root else None
    if source is None:
        raise DataError(f"CONVOY_DATA: expected a folder with one of {', '.join(_FOLDERS)}, found {location.root}.")
    dataset = load_dataset("mnist", seed=0, validation_fraction=0.1, location=location)
    dataset = _first(dataset, images)
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        _common_loop.lay_out(source, Path(folder))
        yield from measure(dataset, Path(folder), rounds=rounds, epochs=epochs, fast=fast)


def measure(dataset: Dataset, root: Path, *, rounds: int, epochs: int, fast: bool) -> Iterator[Figure]:
    """The figures.

    Args:
        dataset: MNIST.
        root: The same for torchvision.
        rounds: How often each case is trained.
        epochs: Of each training.
        fast: Whether ``lenet5-fast`` is among the cases.
    """
    errors = Errors()
    recipe = get_recipe("lenet5", data="mnist", assignments=[f"epochs={epochs}", f"patience_epochs={epochs}"])
    plain = recipe.model_copy(update={"augmentation": Augmentation()})
    cases = {
        "convoy": _convoy("convoy", recipe, dataset, errors),
        "convoy plain": _convoy("convoy plain", plain, dataset, errors),
        "common": _common("common", recipe, dataset, root, None, errors),
        "common affine": _common("common affine", recipe, dataset, root, recipe.augmentation, errors),
    }
    if fast:
        cases["lenet5-fast"] = _whole("lenet5-fast", get_recipe("lenet5-fast", data="mnist"), dataset, errors)
    found = interleave(cases, rounds, warm_up=0)
    n = len(dataset.train)
    for case in ("convoy", "convoy plain", "common", "common affine"):
        yield Figure.of(f"{case}: an epoch", found[case], "s")
        yield Figure.of(f"{case}: images", [n / seconds for seconds in found[case]], "images/s")
        yield Figure.of(f"{case}: test error", errors.by_case[case], "fraction")
    for theirs, ours, goal in (
        ("common affine", "convoy", ">= 3"),
        ("common", "convoy", ">= 3"),
        ("common", "convoy plain", None),
    ):
        yield Figure.of(f"{theirs} / {ours}: an epoch", ratios(found[theirs], found[ours]), "ratio", goal)
    # a test error of 1 % on 10,000 images has a standard error of 0.1 %
    gaps = [a - b for a, b in zip(errors.by_case["convoy"], errors.by_case["common affine"], strict=True)]
    yield Figure.of("convoy - common affine: test error", gaps, "fraction", "<= 0.002")
    if fast:
        yield Figure.of("lenet5-fast: first batch to last evaluation", found["lenet5-fast"], "s", "<= 10")
        yield Figure.of("lenet5-fast: test error", errors.by_case["lenet5-fast"], "fraction", "<= 0.01")


def _convoy(name: str, recipe: Recipe, dataset: Dataset, errors: Errors) -> Callable[[], float]:
    def once() -> float:
        metrics = train(recipe, dataset, seed=_round(errors, name), hardware=Hardware(device="cpu")).metrics
        errors.note(name, metrics.test_top1_error)
        return min(record.seconds for record in metrics.history)

    return once


def _common(
    name: str, recipe: Recipe, dataset: Dataset, root: Path, distortion: Augmentation | None, errors: Errors
) -> Callable[[], float]:
    def once() -> float:
        seed = _round(errors, name)
        torch.manual_seed(seed)
        network = build_network(recipe.network, image=dataset.image, n_classes=10, architecture=recipe.architecture)
        outcome = _common_loop.train(
            network, root, epochs=recipe.epochs, n_images=len(dataset.train), distortion=distortion, seed=seed
        )
        errors.note(name, outcome.top1_error)
        return min(outcome.seconds)

    return once


def _whole(name: str, recipe: Recipe, dataset: Dataset, errors: Errors) -> Callable[[], float]:
    """From the first batch to the last evaluation, the one on the test split included."""

    class Clock(Listener):
        started = 0.0

        def on_start(self, *, epochs: int, images_per_epoch: int) -> None:
            del epochs, images_per_epoch
            self.started = time.perf_counter()

    def once() -> float:
        clock, called = Clock(), time.perf_counter()
        metrics = train(recipe, dataset, seed=_round(errors, name), hardware=Hardware(device="cpu"), listener=clock).metrics
        errors.note(name, metrics.test_top1_error)
        return metrics.seconds - (clock.started - called)

    return once


def _round(errors: Errors, case: str) -> int:
    """Which round it is, for another seed each time."""
    return len(errors.by_case.get(case, ()))


def _first(dataset: Dataset, n: int) -> Dataset:
    return dataset if n >= len(dataset.train) else replace(dataset, train=dataset.train.take(np.arange(n)))


if __name__ == "__main__":
    main()
