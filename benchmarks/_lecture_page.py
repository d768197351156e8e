"""The page about the lecture, from rows and runs alone: the same runs give the same page."""

from __future__ import annotations

import math
import statistics
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks._lecture_rows import SECTIONS
from benchmarks._lecture_runs import Row, Run
from convoy.contract.figures import interval95


@dataclass(frozen=True)
class Outcome:
    """What the runs of a row come to.

    Attributes:
        row: The row.
        runs: One a seed, in the order of the seeds; at least one.
    """

    row: Row
    runs: tuple[Run, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """One a run: percent of the test images, or epochs; infinite where 25 % was never reached."""
        if self.row.figure == "test error":
            return tuple(100 * run.test_top1_error for run in self.runs)
        return tuple(math.inf if run.epochs_to_25 is None else float(run.epochs_to_25) for run in self.runs)

    @property
    def mean(self) -> float:
        """Of ``values``."""
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """In percent, what another test set of this size may give (95 %): all runs see the same images, so these count once."""
        low, high = interval95(statistics.fmean(run.test_top1_error for run in self.runs), self.runs[0].n_test)
        return 100 * low, 100 * high


def outcomes(rows: Iterable[Row], runs: Mapping[tuple[str, int], Run]) -> dict[str, Outcome]:
    """By name, the rows that have runs."""
    found = {}
    for row in rows:
        mine = tuple(run for (name, _), run in sorted(runs.items()) if name == row.name)
        if mine:
            found[row.name] = Outcome(row, mine)
    return found


_HEAD: Final = """\
# The lecture, measured

`python -m benchmarks.lecture --write` wrote this page from the runs in [lecture.jsonl](lecture.jsonl), which it makes where they
are missing: every network and technique of the lecture, its figure beside ours.

{machines}
{missing}
- Ours is the mean over so many seeds, with the range from the least to the largest. A seed draws the weights, the order of the
  images, the distortions, and which images are held out for validation. Rows that take long have one seed.
- The 95 % interval is Wilson's, from the size of the test set: what another set of test images of that size may give. All seeds
  are tested on the same images, so they do not narrow it. Two rows whose intervals overlap may still differ: they saw the same
  images.
- A run is `convoy.training.run.train` on a recipe with the settings of its row (`benchmarks/_lecture_rows.py`), in float32. The
  epoch with the lowest validation error counts (a tenth of the training images is held out for that), unless a section says
  otherwise.
- As in the lecture's rows, no image is deslanted, and there are no ensembles, no boosting and no pretraining.
"""

_DIGITS: Final = """\
60,000 training images, of which 6,000 are held out; 10,000 test images. Batches of 256, AdamW, one-cycle. Plain rows see the
images as they are for 8 to 10 epochs; distorted rows see them turned by up to 10 degrees and moved by up to a pixel along each
axis, drawn anew each epoch, for 15 or 20 epochs: a set that never repeats takes longer to learn.

![Test errors on MNIST, the lecture's and ours](lecture_mnist.png)
"""

_PHOTOS: Final = """\
Not CIFAR-10 as a whole: the 4,000 images at hand. 2,880 of them train, 320 are held out, 800 test; the whole set has 50,000 and
10,000, so errors are larger than published ones, and intervals are wide. Both networks see the same crops (padded by 4 pixels)
and mirror images.
"""

_SIGMOID: Final = """\
A network of four layers with weights (`lenet300-conv-pool2`: two convolutions, two fully connected layers) on the same CIFAR-10
images: epochs of 23 steps until a training error of 25 %. SGD with momentum 0.9, a constant learning rate, no regularisation. The
lecture's statement is from Krizhevsky and others 2012, figure 1, where each network has the learning rate that is best for it: so
the fastest row of each activation counts here, of few rates that were tried. That figure compares ReLU with tanh; the lecture says
it of the sigmoid.

![Training error over the epochs](lecture_sigmoid.png)
"""

_REGULARISATION: Final = """\
LeNet300 on 1,000 training images, drawn by the seed; SGD with momentum and a constant learning rate for 100 epochs. The network has
266,610 parameters and fits the images without an error. The last epoch counts, so that nothing is chosen; for early stopping the
epoch with the lowest error on 1,000 other images does. The difference is to the first row, seed by seed, in percentage points:
both sides of it saw the same training images.

![Test error and loss over the epochs](lecture_overfitting.png)
"""

_CHOICES: Final = """\
LeNet5 on 1,000 training images, drawn by the seed; SGD with momentum, one-cycle, 25 epochs, of which the one with the lowest error
on 1,000 other images counts. One learning rate for all rows, except where it does not converge: no row is tuned. The difference is
to the first row, seed by seed, in percentage points.
"""

_SHORT: Final = """\
`tests/benchmarks/test_lecture.py` trains these again and compares.
"""

_TEXTS: Final = {
    "digits": _DIGITS,
    "photos": _PHOTOS,
    "sigmoid": _SIGMOID,
    "regularisation": _REGULARISATION,
    "choices": _CHOICES,
    "short": _SHORT,
}


def page(rows: Sequence[Row], runs: Mapping[tuple[str, int], Run]) -> str:
    """The page as a Markdown document.

    Args:
        rows: In the page's order.
        runs: By row and seed; a row that has none stands there as not measured.
    """
    found = outcomes(rows, runs)
    places = sorted({_place(run) for run in runs.values()})
    letters = dict(zip(places, string.ascii_uppercase, strict=False))
    n_missing = sum(row.name not in found for row in rows)
    missing = f"\n{n_missing} of {len(rows)} rows are not measured yet; the same command measures them.\n" if n_missing else ""
    lines = [_HEAD.format(machines="\n".join(f"- {letters[place]}: {place}" for place in places), missing=missing)]
    for section, title in SECTIONS.items():
        mine = [row for row in rows if row.section == section]
        if not mine:
            continue
        lines += [f"## {title}", "", _TEXTS[section], *_table(mine, found, letters), ""]
        whys = [f"- {row.title}: {row.why}" for row in mine if row.why]
        if whys:
            lines += [*whys, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _table(rows: Sequence[Row], found: Mapping[str, Outcome], letters: Mapping[str, str]) -> list[str]:
    compares = rows[0].section in ("regularisation", "choices")
    in_epochs = rows[0].figure != "test error"
    third = "difference" if compares else "lecture"
    ours = ["epochs", "range", "times ReLU's"] if in_epochs else ["error, %", "range", "95 % interval"]
    head = ["", "parameters", third, *ours, *(["loss, nats"] if compares else []), "seeds", "machine"]
    lines = [f"| {' | '.join(head)} |", "|---|---:|---|---:|---|---|" + ("---:|" if compares else "") + "---:|---|"]
    first = found.get(rows[0].name)
    if in_epochs and (relu := [outcome for row in rows if row.name.startswith("relu-") and (outcome := found.get(row.name))]):
        first = min(relu, key=lambda outcome: outcome.mean)
    for row in rows:
        outcome = found.get(row.name)
        lecture = row.lecture_says if row.lecture is None else f"{row.lecture:g}"
        if outcome is None:
            lines.append(f"| {row.title} | | {'' if compares else lecture} | not measured | | | | |{' |' if compares else ''}")
            continue
        cells = [
            row.title,
            f"{outcome.runs[0].n_parameters:,}",
            _difference(outcome, first) if compares else lecture,
            _number(outcome.mean, row),
            f"{_number(min(outcome.values), row)} to {_number(max(outcome.values), row)}" if len(outcome.runs) > 1 else "",
            _times(outcome, first) if in_epochs else f"{outcome.interval[0]:.2f} to {outcome.interval[1]:.2f}",
            *([f"{statistics.fmean(run.test_loss for run in outcome.runs):.3f}"] if compares else []),
            str(len(outcome.runs)),
            ", ".join(sorted({letters[_place(run)] for run in outcome.runs})),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value: float, row: Row) -> str:
    if math.isinf(value):
        return "never"
    return f"{value:.2f}" if row.figure == "test error" else f"{value:.0f}"


def _difference(outcome: Outcome, first: Outcome | None) -> str:
    if first is None or outcome is first:
        return ""
    before = {run.seed: run.test_top1_error for run in first.runs}
    differences = [100 * (run.test_top1_error - before[run.seed]) for run in outcome.runs if run.seed in before]
    if not differences:
        return ""
    spread = f" ({min(differences):+.2f} to {max(differences):+.2f})" if len(differences) > 1 else ""
    return f"{statistics.fmean(differences):+.2f}{spread}"


def _times(outcome: Outcome, first: Outcome | None) -> str:
    return "" if first is None or math.isinf(outcome.mean) else f"{outcome.mean / first.mean:.1f}"


def _place(run: Run) -> str:
    commit = (run.commit or "of an unknown commit")[:12] + ("-dirty" if (run.commit or "").endswith("-dirty") else "")
    return f"{run.device} in {run.machine}; {run.versions}; commit {commit}"
