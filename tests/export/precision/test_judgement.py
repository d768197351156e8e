from __future__ import annotations

import re

import numpy as np
import pytest

from convoy.contract.errors import UsageError
from convoy.export.precision import Decisions, drop_upper_bound, images_needed, judge

NAMES = ("cat", "dog", "owl")


def decisions(n: int, lost: int = 0, gained: int = 0, wrong_otherwise: int = 0) -> Decisions:
    labels = np.zeros(n, dtype=np.int64)
    before, after = labels.copy(), labels.copy()
    after[:lost] = 1
    before[lost : lost + gained] = 2
    start = lost + gained
    before[start : start + wrong_otherwise], after[start : start + wrong_otherwise] = 1, 2
    return Decisions(labels, before, after)


def test_lost_gained_and_flipped_are_counted_and_listed():
    found = decisions(10, lost=1, gained=2, wrong_otherwise=1)
    assert (found.lost, found.gained, list(found.flipped)) == (1, 2, [0, 1, 2, 3])
    assert found.drop == pytest.approx(-0.1)
    assert (found.float32_accuracy, found.accuracy) == (0.7, 0.8)
    flips = [(flip.index, flip.true_label, flip.before, flip.after) for flip in found.flips(NAMES)]
    assert flips == [(0, "cat", "cat", "dog"), (1, "cat", "owl", "cat"), (2, "cat", "owl", "cat"), (3, "cat", "dog", "owl")]


def verdict(found: Decisions, budget: float) -> str:
    return judge(found, budget, precision="int8", split="pets test").verdict


def test_enough_equal_decisions_pass_and_few_do_not_decide():
    assert verdict(decisions(400), 0.01) == "passed"
    assert verdict(decisions(200), 0.01) == "undecided"


def test_a_drop_above_the_budget_fails_however_few_images_there_are():
    assert verdict(decisions(50, lost=1), 0.01) == "failed"
    assert verdict(decisions(10_000, lost=101), 0.01) == "failed"


def test_gained_images_make_up_for_lost_ones():
    assert verdict(decisions(2000, lost=18, gained=10), 0.01) == "passed"
    assert verdict(decisions(2000, lost=18), 0.01) == "undecided"


def test_no_budget_is_never_met_for_lack_of_evidence():
    check = judge(decisions(100_000), 0.0, precision="int8", split="pets test")
    assert check.verdict == "undecided"
    assert "for any number of images" in check.detail
    assert verdict(decisions(100_000, lost=1), 0.0) == "failed"
    assert verdict(decisions(100_000, lost=2, gained=5), 0.0) == "undecided"


@pytest.mark.parametrize(("lost", "gained", "n"), [(0, 0, 200), (1, 0, 300), (4, 2, 600), (38, 5, 4000)])
def test_the_images_that_are_said_to_be_needed_would_do(lost, gained, n):
    check = judge(decisions(n, lost, gained), 0.01, precision="fp16", split="pets test")
    assert check.verdict == "undecided"
    needed = int(re.search(r"needs (\d+) images", check.detail)[1])
    assert needed == images_needed(lost, gained, n, 0.01) > n
    assert drop_upper_bound(-(-lost * needed // n), gained * needed // n, needed) <= 0.0101
    fewer = int(needed * 0.9)
    assert drop_upper_bound(-(-lost * fewer // n), gained * fewer // n, fewer) > 0.0099


def test_images_without_a_label_cannot_be_judged():
    labels = np.array([0, -1, -1])
    with pytest.raises(UsageError, match=r"2 of 3 without a label.*labelled split"):
        Decisions(labels, labels, labels)
    with pytest.raises(UsageError, match="found none"):
        Decisions(labels[:0], labels[:0], labels[:0])


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(UsageError, match="found shapes"):
        Decisions(np.zeros(3, dtype=int), np.zeros(3, dtype=int), np.zeros(2, dtype=int))


@pytest.mark.parametrize("budget", [-0.1, 1.0, 5.0, float("nan")])
def test_a_budget_that_is_no_fraction_is_refused(budget):
    with pytest.raises(UsageError, match=r"0\.01 is one percent"):
        verdict(decisions(10), budget)
