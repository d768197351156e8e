from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ScoringError, UsageError
from convoy.serving.client import Client
from convoy.serving.scoring import Statistics, score
from convoy.serving.scoring import _drift as drift
from convoy.serving.scoring._drift import Basis, Reference, measure_drift, read_reference

pytest.importorskip("pyarrow")

LABELS = ("zero", "one", "two")
MODEL = ("digits", "3", None)


def statistics_of(counts: list[int], labels: tuple[str, ...] = LABELS) -> Statistics:
    statistics = Statistics(labels)
    statistics.counts = np.array(counts, np.int64)
    statistics.n = statistics.n_scored = sum(counts)
    return statistics


def reference_of(counts: list[int]) -> Reference:
    return Reference("ref", (Basis("answers", np.array(counts, np.int64)),), None, 0, "")


def test_the_psi_is_that_of_its_definition_with_half_a_count_more() -> None:
    before, now = np.array([50, 30, 20, 0, 0]), np.array([10, 30, 0, 5, 0])
    p, q = (before[:4] + 0.5) / 102, (now[:4] + 0.5) / 47
    by_hand = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert drift.psi_parts(before, now).sum() == pytest.approx(by_hand)
    assert drift.psi_parts(before, before).sum() == 0
    assert drift.psi_parts(before, now)[4] == 0


def test_the_distance_is_scipys() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    for before, now in (([5, 3, 0], [1, 0, 9]), ([1, 0, 0], [0, 1, 1]), ([4, 4, 4], [4, 4, 4])):
        expected = distance.jensenshannon(before, now, base=2)
        assert drift.jensen_shannon_distance(np.array(before), np.array(now)) == pytest.approx(expected, abs=1e-8)


def test_the_g_test_is_scipys_where_no_class_is_rare() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for k in (2, 3, 10, 300):
        before, now = rng.integers(20, 90, k), rng.integers(20, 90, k)
        expected = stats.chi2_contingency(np.stack([before, now]), correction=False, lambda_="log-likelihood")
        found, why = drift.g_test(before, now)
        assert why == ""
        assert found is not None
        assert found[0] == pytest.approx(expected.statistic)
        assert found[1] == expected.dof == k - 1
        assert found[2] == pytest.approx(expected.pvalue, rel=1e-8)


def test_rare_classes_are_put_together_for_the_g_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    before, now = np.array([100, 100, 3, 2, 4, 1, 0]), np.array([80, 120, 1, 4, 2, 3, 0])
    found, _ = drift.g_test(before, now)
    table = [[100, 100, 10], [80, 120, 10]]
    expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
    assert found == pytest.approx((expected.statistic, 2, expected.pvalue))
    # what is left over is itself too rare: it joins the rarest of the others
    found, _ = drift.g_test(np.array([100, 100, 1]), np.array([80, 120, 1]))
    expected = stats.chi2_contingency([[101, 100], [81, 120]], correction=False, lambda_="log-likelihood")
    assert found == pytest.approx((expected.statistic, 1, expected.pvalue))


@pytest.mark.parametrize(("before", "now"), [([1000, 0], [3, 0]), ([2, 2], [1, 1]), ([1] * 1000, [1] * 1000)])
def test_where_counts_do_not_allow_it_there_is_no_p_value_and_the_reason_is_said(before: list[int], now: list[int]) -> None:
    found, why = drift.g_test(np.array(before), np.array(now))
    assert found is None
    assert why


def test_the_upper_gamma_function_is_scipys() -> None:
    special = pytest.importorskip("scipy.special")
    for a in (0.5, 1, 2.5, 50, 499.5, 5000):
        for x in (0, 1e-3, 0.5 * a, a, a + 1, 1.1 * a, 2 * a, 10 * a):
            assert drift.upper_gamma(a, x) == pytest.approx(special.gammaincc(a, x), rel=1e-8, abs=1e-13)


def test_the_ks_test_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    for n, m, shift in ((500, 700, 0), (500, 700, 0.05), (2000, 300, 0.1), (40, 60, 0.3), (50, 50, 0)):
        one, other = rng.random(n).astype(np.float32), (rng.random(m) + shift).astype(np.float32)
        expected = stats.ks_2samp(one, other, method="asymp")
        found = drift.ks_test(one, other)
        assert found[0] == pytest.approx(expected.statistic)
        assert found[1] == pytest.approx(expected.pvalue, abs=0.02)
    tied = np.array([0.5] * 10 + [1.0] * 10, np.float32)
    assert drift.ks_test(tied, tied) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        ([300, 300, 300], [301, 299, 300], "little"),
        ([300, 300, 300], [400, 300, 200], "little"),
        ([300, 300, 300], [450, 300, 150], "some"),
        ([300, 300, 300], [700, 100, 100], "much"),
        ([3, 3, 3], [3, 0, 0], "undecided"),
        ([300, 300, 300], [0, 0, 0], "undecided"),
    ],
)
def test_the_verdict_follows_the_rules_of_thumb_and_few_inputs_prove_nothing(
    before: list[int], now: list[int], verdict: str
) -> None:
    found = measure_drift(reference_of(before), statistics_of(now))
    assert found.verdict == verdict == found.labels[0].verdict
    assert found.sentence
    json.dumps(found.to_dict(), allow_nan=False)


def test_samples_of_one_distribution_seldom_drift_even_with_a_thousand_classes() -> None:
    rng = np.random.default_rng(3)
    labels = tuple(f"c{i}" for i in range(1000))
    shares = rng.dirichlet(np.ones(1000))
    verdicts = []
    for n in (50, 500, 5000, 50_000) * 5:
        now = statistics_of(rng.multinomial(n, shares).tolist(), labels)
        verdicts.append(measure_drift(reference_of(rng.multinomial(100_000, shares).tolist()), now).verdict)
    assert sum(verdict in ("little", "undecided") for verdict in verdicts) >= 18
    moved = statistics_of(rng.multinomial(50_000, rng.dirichlet(np.ones(1000))).tolist(), labels)
    assert measure_drift(reference_of(rng.multinomial(100_000, shares).tolist()), moved).verdict == "much"


def test_the_class_that_moved_most_is_named() -> None:
    found = measure_drift(reference_of([300, 300, 300]), statistics_of([0, 10, 500]))
    assert found.labels[0].shifts[0].label == "zero"
    assert "'zero': 0.0 % instead of 33.3 %" in found.sentence


@pytest.fixture
def scored(tmp_path: Path, client: Client) -> Callable[..., Path]:
    """Score an array whose images have these classes."""

    def run(name: str, classes: list[int], **options: Any) -> Path:
        images = np.zeros((len(classes), 4, 4), np.uint8) + np.array(classes, np.uint8)[:, None, None]
        np.save(tmp_path / f"{name}.npy", images)
        score("digits", tmp_path / f"{name}.npy", tmp_path / name, client=client, **options).finish()
        return tmp_path / name

    return run


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_another_data_set_is_a_reference_in_every_form(form: Any, scored: Callable[..., Path], client: Client) -> None:
    first = scored("first", [0, 1, 2] * 30, format=form)
    np.save(first.parent / "second.npy", np.zeros((50, 4, 4), np.uint8))
    run = score("digits", first.parent / "second.npy", first.parent / "second", client=client, reference=first)
    found = run.finish().drift
    assert found is not None
    assert found["verdict"] == "much"
    labels = found["labels"][0]
    assert (labels["n_reference"], labels["n"]) == (90, 50)
    assert labels["basis"].startswith("answers of digits version 3 to 90 inputs of ")
    assert labels["population_stability_index"] > 1
    assert labels["g_test"]["p_value"] < 1e-6
    assert found["confidence"]["kolmogorov_smirnov"] == {"statistic": 0.0, "p_value": 1.0}
    assert found["confidence"]["n_reference"] == 90
    assert found["remark"] == ""


def test_another_model_behind_the_reference_is_remarked(scored: Callable[..., Path]) -> None:
    reference = read_reference(scored("first", [0, 1, 2]), LABELS, model=("digits", "4", None))
    assert "Another model answered there (digits version 3)" in reference.remark


def test_the_order_of_the_classes_does_not_matter(scored: Callable[..., Path]) -> None:
    reference = read_reference(scored("first", [0, 0, 0, 1, 1, 2]), ("two", "zero", "one"), model=MODEL)
    assert reference.bases[0].counts.tolist() == [1, 3, 2]


def test_other_classes_are_refused_before_anything_is_scored(scored: Callable[..., Path]) -> None:
    first = scored("first", [0, 1, 2])
    with pytest.raises(UsageError, match=r"only there 'one', 'two'; only here 'eins'. Only answers of the same classes"):
        read_reference(first, ("zero", "eins"), model=MODEL)


def test_a_run_is_not_its_own_reference_and_an_unfinished_one_is_none(scored: Callable[..., Path], client: Client) -> None:
    first = scored("first", [0, 1, 2])
    with pytest.raises(UsageError, match="not its own reference"):
        score("digits", first.parent / "first.npy", first, client=client, reference=first).finish()
    (first / "_convoy" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="has not ended"):
        score("digits", first.parent / "first.npy", first.parent / "new", client=client, reference=first).finish()
    assert not list((first.parent / "new").glob("part-*"))


def test_a_damaged_reference_is_said(scored: Callable[..., Path]) -> None:
    first = scored("first", [0, 1, 2])
    part = next(first.glob("part-*"))
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(ScoringError, match=r"part-000000.parquet: cannot be read"):
        read_reference(first, LABELS, model=MODEL)
    (first / "_convoy" / "manifest.json").write_text("{}")
    with pytest.raises(ScoringError, match=r"manifest.json: cannot be read"):
        read_reference(first, LABELS, model=MODEL)


@pytest.mark.parametrize("what", ["nothing", "file", "empty", "export"])
def test_what_is_no_reference_is_refused_with_what_would_be_one(what: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if what == "file":
        place.touch()
    elif what != "nothing":
        place.mkdir()
    if what == "export":
        (place / "manifest.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"expected a data set that `convoy score` wrote, or a run folder of `convoy train`"
    ) as caught:
        read_reference(place, LABELS, model=MODEL)
    assert ("goldens" in str(caught.value)) == (what == "export")


def training_run(folder: Path, confusion: list[list[int]] | None, counts: dict[str, list[int]] | None) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"labels": LABELS, "dataset": {"name": "digits", "counts": counts or {}}}))
    (folder / "metrics.json").write_text(json.dumps({"test_confusion": confusion or []}))
    return folder


def test_a_run_of_convoy_train_is_a_reference_by_its_test_answers_and_its_training_labels(tmp_path: Path) -> None:
    run = training_run(tmp_path / "run", [[5, 1, 0], [0, 7, 0], [2, 0, 3]], {"train": [10, 20, 30], "test": [6, 7, 5]})
    reference = read_reference(run, LABELS, model=MODEL)
    assert [basis.counts.tolist() for basis in reference.bases] == [[7, 8, 3], [10, 20, 30]]
    assert [basis.what for basis in reference.bases] == [
        "answers to the 18 test images of digits",
        "labels of the 60 training images of digits",
    ]
    assert reference.confidences is None
    found = measure_drift(reference, statistics_of([70, 80, 30]))
    assert (found.verdict, found.confidence) == ("little", None)
    assert "confidences" in found.remark


def test_an_old_run_without_counts_and_a_damaged_one_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="older Convoy"):
        read_reference(training_run(tmp_path / "old", None, None), LABELS, model=MODEL)
    damaged = training_run(tmp_path / "damaged", [[1, 2]], None)
    with pytest.raises(ScoringError, match="damaged"):
        read_reference(damaged, LABELS, model=MODEL)


def test_the_fields_that_are_read_of_a_training_run_are_those_that_training_writes() -> None:
    run = pytest.importorskip("convoy.training.run")
    assert {"labels", "dataset"} <= set(run.RunRecord.model_fields)
    assert {"name", "counts"} <= set(run.DatasetFacts.model_fields)
    assert "test_confusion" in run.Metrics.model_fields
