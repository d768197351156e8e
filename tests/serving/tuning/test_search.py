"""The search against the full grid, on machines that can be computed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from convoy.contract.errors import UsageError
from convoy.serving.tuning.objective import Comparison, Objective, Point
from convoy.serving.tuning.search import Step, search
from convoy.serving.tuning.setting import Setting
from convoy.serving.tuning.space import grid, space

START = Setting(64, (), 0, 1, None)
AXES = space(START, cores=8, largest_batch=64)


def model(setup_ms: float, image_ms: float, threads_help: float) -> Callable[[Setting], float]:
    """Images a second of a made-up model at 1 and 64 callers: the geometric mean, as the objective has it."""

    def score(setting: Setting) -> float:
        threads = setting.intra_op_thread_count or 4
        speed = 1 / (1 - threads_help + threads_help / threads)
        at_once = min(setting.max_batch_size, 64 / setting.instance_count)
        delay_ms = setting.max_queue_delay_microseconds / 1000
        batch_ms = setup_ms + at_once * image_ms / speed
        many = setting.instance_count * at_once / batch_ms
        few = 1 / (setup_ms + image_ms / speed + delay_ms + (2 if setting.preferred_batch_size else 0))
        return 1000 * math.sqrt(many * few)

    return score


def comparing(score: Callable[[Setting], float], noise: float = 0.0, rounds: int = 3) -> Callable[[Setting, Setting], Comparison]:
    chance = random.Random(0)

    def compare(candidate: Setting, incumbent: Setting) -> Comparison:
        return Comparison(tuple(score(candidate) / score(incumbent) * chance.gauss(1, noise) for _ in range(rounds)))

    return compare


@pytest.mark.parametrize(
    "score", [model(0.2, 0.02, 0.0), model(1.0, 9.0, 0.95), model(0.05, 0.5, 0.5)], ids=["tiny", "large", "middling"]
)
def test_the_search_ends_as_good_as_the_full_grid_with_a_fraction_of_its_measurements(score: Callable[[Setting], float]) -> None:
    every = grid(START, AXES)

    found, steps = search(START, AXES, comparing(score))

    best = max(map(score, every))
    assert score(found) >= 0.97 * best
    assert score(found) >= score(START)
    assert len(steps) < len(every) / 10


def test_noise_alone_changes_nothing() -> None:
    """Three rounds in a row above 1 by chance: one candidate in eight; the proof at the end is for these."""
    found, steps = search(START, AXES, comparing(lambda setting: 1.0, noise=0.05, rounds=8))

    assert found == START
    assert not any(step.taken for step in steps)


def test_what_cannot_be_served_is_left_out_and_ends_its_side_of_an_axis() -> None:
    refused: list[Setting] = []

    def compare(candidate: Setting, incumbent: Setting) -> Comparison | None:
        if candidate.max_queue_delay_microseconds:
            refused.append(candidate)
            return None
        return Comparison((0.9, 0.9))

    found, steps = search(START, AXES, compare)

    assert found == START
    assert len(refused) == 1
    assert [step.comparison for step in steps if step.candidate in refused] == [None]


def test_each_comparison_is_told_and_none_is_repeated() -> None:
    told: list[Step] = []

    _, steps = search(START, AXES, comparing(model(1.0, 9.0, 0.95)), on_step=told.append)

    assert told == steps
    pairs = [(step.candidate, step.incumbent) for step in steps]
    assert len(pairs) == len(set(pairs))


def point(rate: float, p99: float) -> Point:
    return Point(images_per_s=rate, p50_ms=p99 / 2, p99_ms=p99, mean_batch_size=1, stable=True)


def test_without_a_budget_few_callers_weigh_as_much_as_many() -> None:
    objective = Objective((1, 64))

    assert objective.score({1: point(100, 1), 64: point(400, 9)}) == pytest.approx(200)
    assert objective.score({1: point(50, 1), 64: point(800, 9)}) == pytest.approx(200)


def test_with_a_budget_the_most_within_it_counts() -> None:
    points = {1: point(100, 1), 16: point(300, 4), 64: point(400, 9)}

    assert [Objective((1, 16, 64), budget).score(points) for budget in (0.5, 4, 20)] == [0, 300, 400]


def test_a_candidate_that_alone_keeps_the_budget_is_better_without_end() -> None:
    comparison = Comparison.of([10, 0, 10], [0, 0, 5])

    assert comparison.ratios == (math.inf, 1.0, 2.0)
    assert comparison.value == 2.0


@pytest.mark.parametrize("arguments", [((), None), ((0,), None), ((1,), 0.0), ((1,), math.nan)])
def test_nonsense_is_refused(arguments: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        Objective(*arguments)
