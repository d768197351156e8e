from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from convoy.training.report.per_class import count_confusions, flag_classes, most_confused, score_classes

NAMES = ("ant", "bee", "cat")


def scores_of(confusion: list[list[int]], n_train: tuple[int, ...] = (100, 100, 100), names: tuple[str, ...] = NAMES):
    return score_classes(np.array(confusion), names, np.array(n_train))


@pytest.mark.parametrize(("n_classes", "n"), [(2, 50), (7, 400), (100, 900)])
def test_counts_precision_recall_and_f1_are_scikit_learns(n_classes: int, n: int) -> None:
    rng = np.random.default_rng(n)
    labels = rng.integers(0, n_classes, n)
    predicted = np.where(rng.random(n) < 0.7, labels, rng.integers(0, n_classes, n))
    confusion = count_confusions(predicted, labels, n_classes)
    assert np.array_equal(confusion, confusion_matrix(labels, predicted, labels=range(n_classes)))
    scores = score_classes(confusion, [str(i) for i in range(n_classes)], np.ones(n_classes, np.int64))
    expected = precision_recall_fscore_support(labels, predicted, labels=range(n_classes), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "n"), expected, strict=True):
        np.testing.assert_allclose([getattr(score, name) for score in scores], values, err_msg=name)


def test_a_class_without_test_images_or_never_predicted_has_zeros() -> None:
    never, absent, _ = scores_of([[0, 0, 4], [0, 0, 0], [0, 1, 9]])
    assert (never.n, never.n_predicted, never.precision, never.recall, never.f1) == (4, 0, 0, 0, 0)
    assert (absent.n, absent.n_predicted, absent.precision, absent.recall, absent.f1) == (0, 1, 0, 0, 0)
    assert absent.recall_interval == (0, 1)


def test_rows_are_what_images_show_and_columns_what_they_were_taken_for() -> None:
    confusion = count_confusions(predicted=np.array([2, 2, 1]), labels=np.array([0, 0, 1]), n_classes=3)
    assert confusion.tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_few_images_and_low_recall_are_flagged_each_and_together() -> None:
    even = [[90, 5, 5], [0, 100, 0], [40, 0, 60]]
    assert flag_classes(scores_of(even)) == {"cat": "low recall"}
    assert flag_classes(scores_of(even, (100, 10, 100))) == {"bee": "few images", "cat": "low recall"}
    assert flag_classes(scores_of(even, (100, 100, 10))) == {"cat": "few images and low recall"}


def test_one_mistake_in_few_images_is_no_low_recall() -> None:
    assert flag_classes(scores_of([[3000, 0, 0], [0, 3000, 0], [0, 1, 11]])) == {}
    assert flag_classes(scores_of([[3000, 0, 0], [0, 3000, 0], [0, 2, 10]])) == {"cat": "low recall"}


def test_the_most_frequent_mistakes_come_first_and_right_answers_not_at_all() -> None:
    confusion = np.array([[50, 3, 0], [7, 90, 1], [0, 0, 10]])
    assert most_confused(confusion, NAMES, 2) == (("bee", "ant", 7), ("ant", "bee", 3))
    assert most_confused(confusion, NAMES, 10)[2:] == (("bee", "cat", 1),)
