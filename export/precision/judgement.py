"""Whether the reduced precision still decides well enough: paired decisions on labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import UsageError
from convoy.contract.validation import Check, CheckVerdict, Flip
from convoy.export.precision.interval import MAX_EXACT, drop_upper_bound

_MOST_IMAGES = 10**9


@dataclass(frozen=True)
class Decisions:
    """What float32 and the reduced precision answer on the same images.

    Attributes:
        labels: The true classes, whole numbers of shape (n,).
        float32_answers: The classes that the float32 file answers, shape (n,).
        answers: The classes that the converted file answers, shape (n,).

    Raises:
        UsageError: There are no images, the shapes differ, or a label is not known.
    """

    labels: npt.NDArray[np.int64]
    float32_answers: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if not self.labels.shape == self.float32_answers.shape == self.answers.shape or self.labels.ndim != 1:
            raise UsageError(
                "decisions: expected a label and two answers for each image, found shapes "
                f"{self.labels.shape}, {self.float32_answers.shape} and {self.answers.shape}."
            )
        check_labels(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lost(self) -> int:
        """Images that float32 answers rightly and the reduced precision does not."""
        return int(((self.float32_answers == self.labels) & (self.answers != self.labels)).sum())

    @property
    def gained(self) -> int:
        """Images that the reduced precision answers rightly and float32 does not."""
        return int(((self.float32_answers != self.labels) & (self.answers == self.labels)).sum())

    @property
    def flipped(self) -> npt.NDArray[np.int64]:
        """Indices of the images whose answer changed, from right to wrong, from wrong to right, or from wrong to wrong."""
        return np.flatnonzero(self.float32_answers != self.answers).astype(np.int64)

    @property
    def float32_accuracy(self) -> float:
        """Of the float32 file, as a fraction."""
        return float((self.float32_answers == self.labels).mean())

    @property
    def accuracy(self) -> float:
        """Of the converted file, as a fraction."""
        return float((self.answers == self.labels).mean())

    @property
    def drop(self) -> float:
        """How much accuracy was lost, as a fraction; negative where some was gained."""
        return (self.lost - self.gained) / len(self)

    @property
    def drop_upper(self) -> float:
        """The one-sided 95 % upper confidence bound of the drop."""
        return drop_upper_bound(self.lost, self.gained, len(self))

    def flips(self, class_names: tuple[str, ...]) -> tuple[Flip, ...]:
        """The images whose answer changed.

        Args:
            class_names: In the order of the outputs.
        """
        return tuple(
            Flip(
                index=int(i),
                true_label=class_names[self.labels[i]],
                before=class_names[self.float32_answers[i]],
                after=class_names[self.answers[i]],
            )
            for i in self.flipped
        )


def check_labels(labels: npt.NDArray[np.int64]) -> None:
    """Check that accuracy can be measured.

    Raises:
        UsageError: There are no images, or the class of one is not known (-1).
    """
    unknown = int((labels < 0).sum())
    if len(labels) == 0 or unknown:
        raise UsageError(
            "a reduced precision is judged by the accuracy that it costs: expected images whose classes are known, "
            f"found {f'{unknown} of {len(labels)} without a label' if unknown else 'none'}. "
            "Give a labelled split (a folder with one sub-folder a class), or export in float32."
        )


def judge(decisions: Decisions, max_accuracy_drop: float, *, precision: str, split: str) -> Check:
    """Whether the accuracy drop is within the budget.

    The rule: passed where the 95 % upper confidence bound of the drop is at most the budget; failed where the measured drop is
    above it; undecided in between, with the number of images that would decide if these rates held.

    Args:
        decisions: On the evaluation images.
        max_accuracy_drop: The budget, as a fraction.
        precision: The reduced precision.
        split: Where the images come from, for people.

    Raises:
        UsageError: The budget is not in [0, 1).
    """
    check_budget(max_accuracy_drop)
    drop, upper = decisions.drop, decisions.drop_upper
    verdict: CheckVerdict = "failed" if drop > max_accuracy_drop else "passed" if upper <= max_accuracy_drop else "undecided"
    return Check(
        name=f"{precision} accuracy drop",
        verdict=verdict,
        expected=f"at most {max_accuracy_drop:.2%}, with 95 % confidence",
        found=(
            f"{drop:+.2%} on {len(decisions)} images of {split} ({decisions.lost} lost, {decisions.gained} gained, "
            f"{len(decisions.flipped)} flipped), at most {upper:.2%}"
        ),
        detail=_advice(verdict, decisions, max_accuracy_drop),
        limit=max_accuracy_drop,
        measured=upper,
    )


def check_budget(max_accuracy_drop: float) -> None:
    """Check that a budget is a fraction.

    Raises:
        UsageError: It is not in [0, 1).
    """
    if not 0 <= max_accuracy_drop < 1:
        raise UsageError(
            f"max_accuracy_drop: expected a fraction from 0 to below 1 (0.01 is one percent), found {max_accuracy_drop}."
        )


def images_needed(lost: int, gained: int, n: int, max_accuracy_drop: float) -> int | None:
    """How many images would let the drop pass if lost and gained images stayed as frequent as they are.

    Args:
        lost: Images that became wrong, of n.
        gained: Images that became right, of n.
        n: The images at hand.
        max_accuracy_drop: The budget, as a fraction.

    Returns:
        The number, to three digits, upwards; None where no number would do.
    """
    if (lost - gained) / n >= max_accuracy_drop:
        return None

    def passes(count: int) -> bool:
        scaled_lost, scaled_gained = -(-lost * count // n), gained * count // n
        return drop_upper_bound(scaled_lost, scaled_gained, count) <= max_accuracy_drop

    low, high = n, 2 * n
    while not passes(high):
        low, high = high, 2 * high
        if high > _MOST_IMAGES or (lost + gained) * high // n > 1000 * MAX_EXACT:
            return None
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    step = int(10 ** max(0, len(str(high)) - 3))
    return -(-high // step) * step


def _advice(verdict: CheckVerdict, decisions: Decisions, max_accuracy_drop: float) -> str:
    if verdict == "passed":
        return ""
    if verdict == "failed":
        return "allow more (--max-accuracy-drop), or export in another precision"
    needed = images_needed(decisions.lost, decisions.gained, len(decisions), max_accuracy_drop)
    if needed is None:
        return (
            "undecided: the drop is too close to what is allowed for any number of images to tell: allow more (--max-accuracy-drop)"
        )
    return f"undecided: needs {needed} images at these rates, or a larger --max-accuracy-drop"
