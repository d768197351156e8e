"""How the space of settings is searched: along one axis after the other, uphill, until a whole round of axes changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from convoy.serving.tuning.objective import Comparison
from convoy.serving.tuning.setting import Setting
from convoy.serving.tuning.space import Axis

Compare: TypeAlias = "Callable[[Setting, Setting], Comparison | None]"
"""Candidate, incumbent -> how the candidate does; None where it cannot be served."""

MAX_SWEEPS: Final = 4
MIN_GAIN: Final = 1.01
"""What gains less than this is not worth a change of configuration."""


@dataclass(frozen=True)
class Step:
    """One comparison of the search.

    Attributes:
        axis: Along which axis.
        candidate: What was tried.
        incumbent: What it was compared with.
        comparison: How it did; None where it could not be served.
        taken: Whether the search went on from it.
    """

    axis: str
    candidate: Setting
    incumbent: Setting
    comparison: Comparison | None
    taken: bool


def search(
    start: Setting, axes: Sequence[Axis], compare: Compare, *, on_step: Callable[[Step], None] | None = None
) -> tuple[Setting, list[Step]]:
    """Search from a setting.

    Along an ordered axis the search goes to both sides and stops on each where it gets clearly worse (every round of the
    comparison below 1); along others it tries every choice. A choice is taken where it did better in every round. What was tried
    against the same incumbent is not tried again.

    Args:
        start: Where the search starts.
        axes: The axes, the most important first.
        compare: Measures.
        on_step: Is told each comparison.

    Returns:
        The setting that it ended at, and every comparison.
    """
    best, steps = start, []
    tried: set[tuple[Setting, Setting]] = set()

    def attempt(axis: Axis, candidate: Setting) -> Comparison | None:
        nonlocal best
        tried.add((candidate, best))
        comparison = compare(candidate, best)
        taken = comparison is not None and comparison.low > 1 and comparison.value >= MIN_GAIN
        steps.append(Step(axis.name, candidate, best, comparison, taken))
        if on_step is not None:
            on_step(steps[-1])
        if taken:
            best = candidate
        return comparison

    for _ in range(MAX_SWEEPS):
        before = best
        for axis in axes:
            for side in _sides(axis, best):
                for candidate in side:
                    if candidate == best or (candidate, best) in tried:
                        continue
                    comparison = attempt(axis, candidate)
                    if axis.ordered and (comparison is None or comparison.high < 1):
                        break
        if best == before:
            break
    return best, steps


def _sides(axis: Axis, setting: Setting) -> list[list[Setting]]:
    """The choices of an axis in the order in which they are tried."""
    choices = axis.of(setting)
    if not axis.ordered or setting not in choices:
        return [choices]
    at = choices.index(setting)
    return [choices[at + 1 :], choices[:at][::-1]]
