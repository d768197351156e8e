from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from convoy.serving.scoring import Statistics
from convoy.serving.scoring._statistics import N_BINS, N_EXAMPLES, Sample
from convoy.serving.scoring._table import make_schema

pa = pytest.importorskip("pyarrow")

LABELS = ("cat", "dog", "owl")


def table_of(
    answers: Sequence[int | None],
    probabilities: Sequence[float] | None = None,
    truths: Sequence[str | None] | None = None,
    *,
    labels: Sequence[str] = LABELS,
    start: int = 0,
    latencies: Sequence[float] | None = None,
    errors: Sequence[str] | None = None,
) -> Any:
    """Rows as a run writes them; an answer of None is a failure."""
    rows = []
    for i, answer in enumerate(answers):
        failed = answer is None
        probability = 0.5 if probabilities is None else probabilities[i]
        rows.append(
            {
                "row": start + i,
                "source": f"{start + i}.png",
                "label": None if failed else labels[answer or 0],
                "index": answer,
                "probability": None if failed else probability,
                "top_k": None if failed else [{"label": labels[answer or 0], "probability": probability}],
                "model_name": "m",
                "model_version": "1",
                "model_sha256": None,
                "latency_ms": None if failed else 1.0 if latencies is None else latencies[i],
                "error": (f"/x/{start + i}.png: no image." if errors is None else errors[i]) if failed else None,
                "true_label": None if truths is None else truths[i],
            }
        )
    return pa.Table.from_pylist(rows, make_schema({}))


def drawn(n: int, seed: int = 0, n_classes: int = 3) -> tuple[list[int], list[float], list[int]]:
    rng = np.random.default_rng(seed)
    truths = rng.integers(n_classes, size=n)
    answers = np.where(rng.random(n) < 0.7, truths, rng.integers(n_classes, size=n))
    return answers.tolist(), rng.uniform(0.3, 1, n).astype(np.float32).astype(float).tolist(), truths.tolist()


def test_numbers_are_those_of_scikit_learn_however_the_rows_are_cut() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    answers, probabilities, truths = drawn(1000)
    names = [LABELS[truth] for truth in truths]
    statistics = Statistics(LABELS)
    for i in range(0, 1000, 77):
        cut = slice(i, i + 77)
        statistics.add(table_of(answers[cut], probabilities[cut], names[cut], start=i))
    matrix = metrics.confusion_matrix(truths, answers)
    assert (statistics.confusion() == matrix).all()
    assert statistics.accuracy == metrics.accuracy_score(truths, answers)
    recall = metrics.recall_score(truths, answers, average=None)
    precision = metrics.precision_score(truths, answers, average=None)
    assert [c.recall for c in statistics.classes()] == pytest.approx(recall)
    assert [c.precision for c in statistics.classes()] == pytest.approx(precision)
    assert statistics.counts.tolist() == np.bincount(answers).tolist()
    worst = statistics.most_confused(1)[0]
    np.fill_diagonal(matrix, 0)
    assert worst.n == matrix.max()
    assert matrix[LABELS.index(worst.true_label), LABELS.index(worst.answer)] == worst.n


def test_the_calibration_error_is_that_of_its_definition() -> None:
    answers, probabilities, truths = drawn(500)
    statistics = Statistics(LABELS)
    statistics.add(table_of(answers, probabilities, [LABELS[truth] for truth in truths]))
    right, likely = np.array(answers) == np.array(truths), np.array(probabilities)
    bins = np.minimum((likely * N_BINS).astype(int), N_BINS - 1)
    ece = sum(abs(right[bins == b].mean() - likely[bins == b].mean()) * (bins == b).sum() for b in np.unique(bins)) / 500
    assert statistics.calibration_error == pytest.approx(ece)


def test_the_interval_is_wilsons() -> None:
    statistics = Statistics(LABELS)
    statistics.add(table_of([0] * 10, truths=["cat"] * 8 + ["dog"] * 2))
    assert statistics.accuracy_interval == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_labels_that_are_none_of_the_models_count_as_wrong_and_are_told() -> None:
    statistics = Statistics(LABELS)
    statistics.add(table_of([0, 1, 2, 0], truths=["cat", "cow", None, "cow"]))
    assert (statistics.n_labelled, statistics.n_foreign, statistics.accuracy) == (1, 2, pytest.approx(1 / 3))
    assert [example.true_label for example in statistics.surest_wrong] == ["cow", "cow"]
    assert statistics.to_dict()["n_foreign_labels"] == 2


def test_the_inputs_that_stand_out_are_those_of_all_rows_sorted() -> None:
    rng = np.random.default_rng(1)
    likely, took = rng.random(400).astype(np.float32), rng.exponential(5, 400).astype(np.float32)
    truths = ["cat" if x else "dog" for x in rng.random(400) < 0.5]
    statistics = Statistics(LABELS)
    for i in range(0, 400, 50):
        cut = slice(i, i + 50)
        statistics.add(table_of([0] * 50, likely[cut].tolist(), truths[cut], start=i, latencies=took[cut].tolist()))
    assert [e.row for e in statistics.least_confident] == np.argsort(likely)[:N_EXAMPLES].tolist()
    assert [e.row for e in statistics.slowest] == np.argsort(-took)[:N_EXAMPLES].tolist()
    wrong = [row for row in np.argsort(-likely).tolist() if truths[row] == "dog"]
    assert [e.row for e in statistics.surest_wrong] == wrong[:N_EXAMPLES]
    for share in (0.5, 0.9, 0.99):
        assert statistics.latency_ms(share) == pytest.approx(np.sort(took)[int(np.ceil(share * 400)) - 1], rel=0.011)
    assert statistics.to_dict()["latency_ms"]["max"] == took.max()


def test_failures_are_counted_by_reason_whatever_numbers_and_names_are_in_them() -> None:
    statistics = Statistics(LABELS)
    errors = [
        "/x/0.png: cannot be read as an image: truncated (3 bytes)",
        "/x/1.png: cannot be read as an image: truncated (1,745 bytes)",
        "/x/2.png: expected an image, found an empty file (zero bytes).",
        "the server is 1 of 2 that say no",
    ]
    statistics.add(table_of([None] * 4, errors=errors))
    statistics.add(table_of([None], errors=["/x/9.png: expected an image, found an empty file (zero bytes)."], start=9))
    assert statistics.errors == {
        "cannot be read as an image: truncated (… bytes)": 2,
        "expected an image, found an empty file (zero bytes).": 2,
        "the server is 1 of 2 that say no": 1,
    }
    assert (statistics.n, statistics.n_scored, statistics.n_failed) == (5, 0, 5)


def test_reasons_without_number_do_not_fill_the_memory() -> None:
    statistics = Statistics(LABELS)
    words = ["".join(chr(97 + int(digit)) for digit in str(i)) for i in range(1000)]
    statistics.add(table_of([None] * 1000, errors=words))
    assert len(statistics.errors) <= 51
    assert sum(statistics.errors.values()) == 1000
    assert list(statistics.errors)[-1] == "others"


@pytest.mark.parametrize("answers", [[], [None, None], [0, 0, 0]])
def test_nothing_scored_and_one_class_are_no_fault(answers: list[int | None]) -> None:
    labels = ("only",)
    statistics = Statistics(labels)
    statistics.add(table_of(answers, labels=labels, truths=["only"] * len(answers)))
    document = json.loads(json.dumps(statistics.to_dict()))
    assert document["n_scored"] == sum(answer is not None for answer in answers)
    assert document["accuracy"] == (1.0 if 0 in answers else None)


def test_of_ten_thousand_classes_no_matrix_is_made() -> None:
    labels = tuple(f"c{i}" for i in range(10_000))
    statistics = Statistics(labels)
    answers = list(range(0, 10_000, 100))
    statistics.add(table_of(answers, labels=labels, truths=[labels[answer + 1] for answer in answers]))
    document = statistics.to_dict()
    assert "confusion" not in document
    assert len(document["most_confused"]) == 30
    assert sum(counts["n"] for counts in document["classes"]) == 100


def test_a_sample_holds_all_of_few_and_does_not_depend_on_the_order_of_many() -> None:
    rows = np.arange(20_000)
    values = np.random.default_rng(2).random(20_000).astype(np.float32)
    few = Sample(30_000)
    few.add(rows, values)
    assert sorted(few.values()) == sorted(values)
    one, other = Sample(1000), Sample(1000)
    for i in range(0, 20_000, 256):
        one.add(rows[i : i + 256], values[i : i + 256])
    for i in reversed(range(0, 20_000, 900)):
        other.add(rows[i : i + 900], values[i : i + 900])
    assert len(one.values()) == 1000
    assert sorted(one.values()) == sorted(other.values())
    assert abs(one.values().mean() - values.mean()) < 0.04
