"""What each of the paper's ideas buys on real amounts of checks (``python -m benchmarks.check_reader``).

Each row reads all fields of ``CONVOY_DATA/orand_car_a`` with weights that saw none of them, or none of their neighbours (block
cross-validation in five blocks, twenty fields left out on each side). What is trained is kept in ``--cache``, so that a run that
was stopped goes on. Whole amounts count, digit by digit, on the labels as they came and on labels whose errors are mended:
``check_reader_corrections.csv`` has each with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch

from benchmarks._reader_stages import N_FOLDS, SEED, Stages, Views, count, recipes
from benchmarks.harness import Figure, benchmark
from convoy.contract.image import to_pixels
from convoy.contract.reject import choose_threshold, reject_curve
from convoy.training.check_reader.building import build_network
from convoy.training.check_reader.fields import Field, block_folds
from convoy.training.check_reader.judging import Read, digits_of, fit_confidence, wilson
from convoy.training.check_reader.reader import log_odds
from convoy.training.check_reader.reject_plot import draw_reject_curve
from convoy.training.check_reader.views import MANY_VIEWS, VIEWS, vote
from convoy.training.data import DataLocation, load_dataset
from convoy.training.recipes import get_recipe
from convoy.training.run import train

_DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
PICTURE: Final = "check_reader_reject.png"
_GOALS: Final[Mapping[str, tuple[str, str]]] = {"small-spliced-many": (">= 91", ">= 70"), "both": (">= 96", ">= 90")}
"""Of whole amounts read right, and of fields read at 1 % of errors, both in percent, on mended labels."""


def isolated(stages: Stages) -> list[Read]:
    """The lecture's LeNet5, trained on MNIST, on each true box by itself: nothing is segmented, and nothing can be doubted."""
    mnist = load_dataset("mnist", seed=SEED, location=DataLocation.from_environment())
    run = train(get_recipe("lenet5", data="mnist", assignments=["epochs=8"]), mnist, seed=SEED)
    spec = run.record.image
    found = []
    for field in stages.real:
        crops = [_box(field, number) for number in range(len(field.boxes))]
        if not crops:
            found.append(Read((), (), -math.inf, 0.0))
            continue
        pixels = np.stack([to_pixels(crop, spec) for crop in crops])
        with torch.inference_mode():
            probabilities = run.classifier(torch.from_numpy(pixels)).softmax(1)
        best = probabilities.max(1)
        text = "".join(run.record.labels[place] for place in best.indices.tolist())
        found.append(Read((text,), (sure := float(best.values.log().sum()),), sure, math.exp(sure)))
    return found


def _box(field: Field, number: int) -> np.ndarray:  # type: ignore[type-arg]
    """The pixels of a box, as light strokes on dark in a square with a margin, as MNIST has its digits."""
    box = field.boxes[number]
    top, left = max(int(box.top_px), 0), max(int(box.left_px), 0)
    crop = field.image[top : int(box.top_px + box.height_px) + 1, left : int(box.left_px + box.width_px) + 1].astype(np.float64)
    paper, ink = np.percentile(crop, 90), np.percentile(crop, 2)
    strokes = ((paper - crop) / max(paper - ink, 30) * 255).clip(0, 255)
    side = round(max(crop.shape) * 1.4)
    square = np.zeros((side, side), np.uint8)
    y, x = (side - crop.shape[0]) // 2, (side - crop.shape[1]) // 2
    square[y : y + crop.shape[0], x : x + crop.shape[1]] = strokes
    return square


def rows(stages: Stages) -> Iterator[tuple[str, str, list[Read]]]:
    """Each row's key, what it is, and what it reads."""
    recipe = recipes()
    yield "boxes", "LeNet5 of MNIST on the true boxes", stages.kept("boxes.reads", lambda: isolated(stages))
    frames = stages.pretrained("frames", recipe["frames"])
    yield "frames-free", "swept (SDNN), best path", stages.read("frames-free", recipe["frames"], frames, free=True)
    yield "frames", "+ grammar", stages.read("frames", recipe["frames"], frames)
    trained = stages.pretrained("lenet5", recipe["lenet5"], frames)
    for key in ("viterbi", "ctc"):
        weights = stages.pretrained(key, recipe[key], frames)
        yield key, f"+ global training: {key}", stages.read(key, recipe[key], weights)
    yield "lenet5", "+ global training: forward", stages.read("lenet5", recipe["lenet5"], trained)
    yield "plain", "+ real fields after synthetic ones", stages.crossed("plain-real", recipe["plain"], trained)
    yield "lenet5-real", "+ augmentation", stages.crossed("lenet5-real", recipe["lenet5"], trained)
    yield "lenet5-views", "+ five views", stages.crossed("lenet5-real", recipe["lenet5"], trained, views=VIEWS)
    best = []
    for key, what in (("small", "residual network"), ("large", "larger residual network")):
        weights = stages.pretrained(key, recipe[key])
        yield f"{key}-synthetic", f"{what}, synthetic fields alone", stages.read(key, recipe[key], weights)
        yield f"{key}-real", f"{what}, + real fields", stages.crossed(f"{key}-real", recipe[key], weights)
        yield f"{key}-views", f"{what}, + real fields, five views", stages.crossed(f"{key}-real", recipe[key], weights, views=VIEWS)
        spliced = f"{key}-spliced"
        looks_at: list[tuple[str, str, Views]] = [("", "", ()), ("-views", ", five views", VIEWS)]
        if key == "small":
            looks_at.append(("-many", ", 25 views", MANY_VIEWS))
        for suffix, looks, views in looks_at:
            reads = stages.crossed(spliced, recipe[spliced], weights, views=views, mended=True)
            yield f"{spliced}{suffix}", f"{what}, + real fields spliced, labels mended{looks}", reads
            if views is VIEWS:
                best.append(reads)
    yield "both", "both residual networks, five views each", [vote(reads) for reads in zip(*best, strict=True)]


@benchmark("check_reader", packages=("torch", "numpy", "pillow"))
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/check_reader"), show_default=True)
@click.option("--picture", is_flag=True, help=f"Draw docs/{PICTURE}.")
def command(cache: Path, picture: bool) -> Iterator[Figure]:
    """Read all real amounts in every way, from LeNet5 on true boxes to the residual network in five views."""
    cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # two runs beside each other are faster on two cores than one on both
    stages = Stages(cache, lambda words: click.echo(words, err=True))
    given = [field.digits for field in stages.real]
    mended = [field.digits for field in stages.mended]
    curves = {}
    for key, what, reads in rows(stages):
        accuracy, read_at = _GOALS.get(key, (None, None))
        answers = [digits_of(read.text) for read in reads]
        for labels, name in ((given, "labels as given"), (mended, "mended labels")):
            right = [answer == label for answer, label in zip(answers, labels, strict=True)]
            share, low, high = (100 * value for value in wilson(sum(right), len(right)))
            goal = accuracy if labels is mended else None
            yield Figure(name=f"{what}: read right, {name}", value=share, low=low, high=high, unit="%", goal=goal)
        confidence = [read.log_share for read in reads]
        right = [answer == label for answer, label in zip(answers, mended, strict=True)]
        point = choose_threshold(confidence_of(confidence, right), right, 0.01)
        yield Figure(
            name=f"{what}: read at 1 % of errors, mended labels", value=0.0 if point is None else 100 * point.coverage, unit="%",
            goal=read_at,
        )  # fmt: skip
        coverage, error = chosen_elsewhere(stages, confidence, right, 0.01)
        yield Figure(name=f"{what}: read at a threshold chosen on the other blocks for 1 %", value=100 * coverage, unit="%")
        yield Figure(name=f"{what}: wrong among them", value=100 * error, unit="%")
        if key in ("lenet5-views", *_GOALS):
            curves["LeNet5, + five views" if key == "lenet5-views" else what] = reject_curve(confidence, right)
    yield Figure(name="labels mended", value=len(stages.corrections))
    for key in ("lenet5", "small", "large"):
        yield Figure(name=f"parameters, {key}", value=count(build_network(recipes()[key], 21)))
    if picture:
        (_DOCS / PICTURE).write_bytes(draw_reject_curve(curves))


def chosen_elsewhere(stages: Stages, log_shares: list[float], right: list[bool], accepted_error: float) -> tuple[float, float]:
    """What is read, and the share of it that is wrong, where each block's threshold and calibration come from the other blocks."""
    n_accepted = n_wrong = 0
    for fold in block_folds(stages.real, N_FOLDS, SEED):
        inside = set(fold.test.tolist())
        others = [place for place in range(len(right)) if place not in inside]
        scale, shift = fit_confidence([log_shares[place] for place in others], [right[place] for place in others])
        sure = calibrated(log_shares, scale, shift)
        point = choose_threshold([sure[place] for place in others], [right[place] for place in others], accepted_error)
        accepted = [] if point is None else [place for place in inside if sure[place] >= point.threshold]
        n_accepted += len(accepted)
        n_wrong += sum(not right[place] for place in accepted)
    return n_accepted / len(right), n_wrong / max(n_accepted, 1)


def confidence_of(log_shares: list[float], right: list[bool]) -> list[float]:
    """Confidences for thresholds in [0, 1]: calibration keeps their order, which is all that counts here."""
    return calibrated(log_shares, *fit_confidence(log_shares, right))


def calibrated(log_shares: list[float], scale: float, shift: float) -> list[float]:
    """The confidences of answers, as a reader with these two numbers gives them."""
    return (log_odds(torch.tensor(log_shares, dtype=torch.float64)) * scale + shift).sigmoid().tolist()


if __name__ == "__main__":
    command()
