"""What transfer buys: error against the number of training images, taken over and from scratch (``python -m benchmarks.transfer``).

ResNets of 20 and 56 layers that were trained on CIFAR-10 learn the six classes of TrashNet at 32x32 pixels, from 1 photo a class
to all. Both come from ``CONVOY_DATA`` (``cifar10_resnet_weights``, ``trashnet``).
"""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch

from benchmarks.harness import Document, Figure, benchmark, document
from convoy.contract.errors import DataError
from convoy.contract.files import write_bytes
from convoy.training.data import DataLocation, Dataset, Split, load_dataset
from convoy.training.loop import evaluate, fit, seeded
from convoy.training.networks import build_classifier
from convoy.training.recipes import Recipe, get_recipe
from convoy.training.run import resolve_preprocessing
from convoy.training.transfer import take_over

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "transfer.md"
PICTURE: Final = "transfer.png"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PACKAGES: Final = ("torch", "torchvision", "numpy")

IMAGE_SIZE_PX: Final = 32
ALL: Final = 0
EPOCHS: Final[Mapping[int, int]] = {1: 40, 2: 40, 5: 30, 10: 24, 20: 20, 50: 14, ALL: 8}
"""By the number of training images a class: few images need more passes."""

WAYS: Final[Mapping[str, Sequence[str]]] = {
    "new head alone": ("frozen_fraction=1", "learning_rate=0.03"),
    "refined": ("frozen_fraction=0", "layer_decay=0.9", "head_epochs=0"),
    "from scratch": ("weights=none",),
}
"""What each sets. A head that learns alone takes a rate ten times as high. What is refined learns everywhere: trash is far from
what CIFAR-10 shows, and with the first third frozen 20 photos a class gave 54 % of errors in place of 45 %."""
_COLOURS: Final = {"new head alone": "tab:green", "refined": "tab:blue", "from scratch": "tab:red"}


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        depth: Of the network.
        way: One of ``WAYS``.
        per_class: Training images a class; 0: all.
        seed: Which images these are, and everything else that is random.
        n_train: How many there are.
        top1_error: On the 431 test photos.
        seconds: Of training, without the test.
    """

    depth: int
    way: str
    per_class: int
    seed: int
    n_train: int
    top1_error: float
    seconds: float


def _counts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    counts = tuple(ALL if part == "all" else int(part) for part in value.split(",") if part == "all" or part.isdigit())
    if len(counts) != len(value.split(",")) or not set(counts) <= EPOCHS.keys():
        raise click.BadParameter(f"expected some of {','.join(map(_say, EPOCHS))}, found {value}", context, parameter)
    return counts


@benchmark("transfer", packages=PACKAGES)
@click.option("--depths", type=click.Choice(["20", "56"]), multiple=True, default=["20"], show_default=True, help="Of the network.")
@click.option("--images", "counts", default="1,2,5,10,20,50,all", show_default=True, callback=_counts, help="A class.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="How often each is trained.")
@click.option(
    "--kept", type=click.Path(dir_okay=False, path_type=Path), help="Keep each training in this file, and go on from those in it."
)
@click.option("--limit-s", type=click.FloatRange(min=0), help="Begin no training after so many seconds; needs --kept.")
@click.option("--write", is_flag=True, help="Write table and figure into docs/transfer.md.")
def main(
    depths: Sequence[str], counts: Sequence[int], seeds: int, kept: Path | None, limit_s: float | None, write: bool
) -> Iterable[Figure]:
    """Train networks that were taken over, and the same from scratch, on more and more photos."""
    root = DataLocation.from_environment().root
    if root is None or not (root / "trashnet").is_dir() or not (root / "cifar10_resnet_weights").is_dir():
        raise DataError("expected trashnet and cifar10_resnet_weights in the folder that CONVOY_DATA names.")
    started = time.monotonic()
    dataset = load_dataset(root / "trashnet", image_size_px=IMAGE_SIZE_PX)
    trials = [Trial(**json.loads(line)) for line in kept.read_text().splitlines()] if kept is not None and kept.exists() else []
    done = {(trial.depth, trial.way, trial.per_class, trial.seed) for trial in trials}
    for seed, depth, per_class, way in product(range(seeds), map(int, depths), counts, WAYS):
        if (depth, way, per_class, seed) in done:
            continue
        if limit_s is not None and time.monotonic() - started > limit_s:
            click.echo("the time is over: run it again with the same --kept to go on", err=True)
            break
        trial = measure(dataset, root, depth=depth, way=way, per_class=per_class, seed=seed)
        trials.append(trial)
        click.echo(f"ResNet-{depth}, {way}, {_say(per_class)} a class, seed {seed}: {trial.top1_error:.1%}", err=True)
        if kept is not None:
            with kept.open("a") as file:
                file.write(json.dumps(asdict(trial)) + "\n")
    figures = tuple(figures_of(trials))
    if write:
        write_page(trials, document("transfer", figures, PACKAGES))
    return figures


def measure(dataset: Dataset, root: Path, *, depth: int, way: str, per_class: int, seed: int) -> Trial:
    """Train once, on ``per_class`` photos of each class (0: all), and test."""
    few = draw_few(dataset, per_class, seed)
    epochs = EPOCHS[per_class]
    recipe = recipe_of(depth, way, epochs)
    weights = None if way == "from scratch" else next((root / "cifar10_resnet_weights").glob(f"resnet{depth}-*.th"))
    started = time.monotonic()
    with seeded(seed) as generator:
        preprocessing = resolve_preprocessing(recipe, few)
        classifier = build_classifier(
            recipe.network,
            image=few.image,
            n_classes=len(few.labels),
            preprocessing=preprocessing,
            architecture=recipe.architecture,
        )
        classifier = classifier.to(memory_format=torch.channels_last)
        take_over(classifier, recipe, weights)
        fit(classifier, few, recipe, generator=generator)
    seconds = time.monotonic() - started
    score = evaluate(classifier, _tensor(few.test.images), torch.from_numpy(few.test.labels))
    return Trial(depth, way, per_class, seed, len(few.train), score.top1_error, round(seconds, 2))


def recipe_of(depth: int, way: str, epochs: int) -> Recipe:
    """The recipe ``transfer`` for these small photos; the three ways differ in what stays and how fast the rest learns."""
    return get_recipe(
        "transfer",
        assignments=[
            *(f"backbone=cifar-resnet{depth}", "weights=file", f"image_size_px={IMAGE_SIZE_PX}", f"epochs={epochs}"),
            *(f"patience_epochs={epochs}", "batch_size=32", "learning_rate=0.003"),
            *("schedule=one-cycle", "crop_area_fraction=1", "crop_px=4", "flip_probability=0.5", *WAYS[way]),
        ],
    )


def draw_few(dataset: Dataset, per_class: int, seed: int) -> Dataset:
    """The data set with so many training images a class (0: all); who has few has few to validate on: as many, at most 10."""
    if per_class == ALL:
        return dataset
    generator = np.random.default_rng(seed)
    return replace(
        dataset,
        train=_draw(dataset.train, per_class, generator),
        validation=_draw(dataset.validation, min(per_class, 10), generator),
    )


def _draw(split: Split, per_class: int, generator: np.random.Generator) -> Split:
    chosen = [generator.permutation(np.flatnonzero(split.labels == label))[:per_class] for label in np.unique(split.labels)]
    return split.take(np.concatenate(chosen))


def _tensor(images: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images[:]))


def _groups(trials: Sequence[Trial]) -> Iterator[tuple[int, int, str, list[Trial]]]:
    for depth, per_class, way in product(sorted({trial.depth for trial in trials}), EPOCHS, WAYS):
        group = [t for t in trials if (t.depth, t.per_class, t.way) == (depth, per_class, way)]
        if group:
            yield depth, per_class, way, group


def figures_of(trials: Sequence[Trial]) -> Iterator[Figure]:
    """The error of each way for each number of images, and what it is of that from scratch."""
    errors: dict[tuple[int, int, str], list[float]] = {}
    for depth, per_class, way, group in _groups(trials):
        errors[depth, per_class, way] = [trial.top1_error for trial in group]
        yield Figure.of(f"resnet{depth}, {_say(per_class)} a class, {way}", [100 * trial.top1_error for trial in group], "% wrong")
    for (depth, per_class, way), taken in errors.items():
        scratch = errors.get((depth, per_class, "from scratch"))
        if way == "refined" and scratch is not None:
            ratio = statistics.mean(taken) / statistics.mean(scratch)
            yield Figure(
                name=f"resnet{depth}, {_say(per_class)} a class, refined over from scratch", value=ratio, unit="ratio", goal="< 1"
            )


def write_page(trials: Sequence[Trial], result: Document) -> None:
    """Put the table and the picture in their place in docs/transfer.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_bytes(PAGE.with_name(PICTURE), draw(trials))
    write_bytes(PAGE, f"{before}{BEGIN}\n{table(trials, result)}\n{END}{after}".encode())


def table(trials: Sequence[Trial], result: Document) -> str:
    """Markdown: mean error and range over the seeds, and seconds a training."""
    machine = ", ".join(f"{key} {value}" for key, value in result.machine.items())
    versions = ", ".join(f"{key} {value}" for key, value in result.versions.items())
    rows = {(depth, per_class, way): group for depth, per_class, way, group in _groups(trials)}
    lines = [
        f"`python -m benchmarks.transfer --write` at {(result.commit or 'no commit')[:12]}; {machine}; {versions}.",
        "",
        f"| network | photos a class | {' | '.join(WAYS)} |",
        f"|---|---|{'---|' * len(WAYS)}",
    ]
    for depth, per_class in dict.fromkeys((depth, per_class) for depth, per_class, _ in rows):
        cells = [_cell(rows[depth, per_class, way]) if (depth, per_class, way) in rows else "" for way in WAYS]
        lines.append(f"| ResNet-{depth} | {_say(per_class)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"![Error against the number of training images]({PICTURE})"])


def _cell(group: Sequence[Trial]) -> str:
    errors = [100 * trial.top1_error for trial in group]
    spread = f" ({min(errors):.1f} to {max(errors):.1f})" if len(errors) > 1 else ""
    return f"{statistics.mean(errors):.1f} %{spread}, {statistics.mean(trial.seconds for trial in group):.0f} s"


def draw(trials: Sequence[Trial]) -> bytes:
    """The picture, PNG: error against the number of training images; the band is the range over the seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for depth, way in product(sorted({trial.depth for trial in trials}), WAYS):
        groups = [group for d, _, w, group in _groups(trials) if (d, w) == (depth, way)]
        if not groups:
            continue
        numbers = [group[0].n_train for group in groups]
        errors = [[100 * trial.top1_error for trial in group] for group in groups]
        style, marker = ("-", "o") if depth == 20 else ("--", "s")
        means = [statistics.mean(group) for group in errors]
        axes.plot(numbers, means, style, marker=marker, markersize=4, color=_COLOURS[way], label=f"ResNet-{depth}, {way}")
        axes.fill_between(numbers, [min(g) for g in errors], [max(g) for g in errors], color=_COLOURS[way], alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set(xlabel="training photos", ylabel="wrong, % of 431 test photos", title="TrashNet at 32x32, six classes")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def _say(per_class: int) -> str:
    return "all" if per_class == ALL else str(per_class)


if __name__ == "__main__":
    main()
