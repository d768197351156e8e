from __future__ import annotations

import numpy as np
import pytest

from convoy.cli import subject
from convoy.training.data.dataset import Split, Subset


def test_a_split_within_the_bound_is_given_whole() -> None:
    images = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2, 1)
    split = Split(Subset(images, np.arange(10)[::-1]), np.arange(10))
    found, labels = subject._bounded(split)
    assert np.array_equal(found, images[::-1])
    assert labels.tolist() == list(range(10))


def test_of_a_larger_split_some_from_all_over_it_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_MAX_BYTES", 4 * 4 + 3)
    images = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2, 1)
    for source in (images, Subset(images, np.arange(10))):
        found, labels = subject._bounded(Split(source, np.arange(10)))
        assert labels.tolist() == [0, 3, 6, 9]
        assert np.array_equal(found, images[[0, 3, 6, 9]])
