from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from convoy.contract.errors import ImageError
from convoy.training.data.dataset import Split
from convoy.training.loop.feeding import Feeder
from convoy.training.loop.sampling import Share, draw_order, slices

CPU = torch.device("cpu")


class Lazy:
    """Images that are made when they are asked for; image i has the value i everywhere."""

    def __init__(self, n: int, *, damaged: int = -1) -> None:
        self.shape, self.dtype, self.damaged = (n, 2, 3, 1), np.dtype(np.uint8), damaged
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        indices = np.arange(len(self))[key]
        self.asked += indices.tolist()
        if self.damaged in indices:
            raise ImageError("photo.jpg: expected an image, found noise.")
        return np.broadcast_to(indices.astype(np.uint8)[:, None, None, None], (len(indices), *self.shape[1:]))


def labels(n: int) -> Any:
    return np.arange(n, dtype=np.int64) % 5


def read(feeder: Feeder, order: torch.Tensor, size: int) -> list[tuple[list[int], list[int]]]:
    with closing(feeder.batches(order, slices(len(order), size))) as batches:
        return [(images[:, 0, 0, 0].tolist(), targets.tolist()) for images, targets in batches]


def test_lazy_images_come_like_those_in_memory() -> None:
    lazy = Lazy(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    expected = read(Feeder(Split(lazy[:], labels(50)), CPU), order, 7)
    assert read(Feeder(Split(lazy, labels(50)), CPU), order, 7) == expected
    assert [value for images, _ in expected for value in images] == order.tolist()
    assert all([value % 5 for value in images] == targets for images, targets in expected)


def test_an_image_that_cannot_be_read_is_said_where_it_is_waited_for() -> None:
    feeder = Feeder(Split(Lazy(50, damaged=33), labels(50)), CPU)
    with pytest.raises(ImageError, match=r"photo\.jpg"):
        read(feeder, torch.arange(50), 10)
    assert not [thread for thread in threading.enumerate() if thread.name == "convoy-feeder"]


def test_who_stops_early_leaves_no_thread_and_reads_little_ahead() -> None:
    lazy = Lazy(1000)
    with closing(Feeder(Split(lazy, labels(1000)), CPU).batches(torch.arange(1000), slices(1000, 10))) as batches:
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name == "convoy-feeder"]
    assert len(lazy.asked) <= 60


def test_a_shuffled_order_has_each_image_once_and_a_balanced_one_each_class_as_often() -> None:
    targets = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    shuffled = draw_order(targets, "shuffled", torch.Generator().manual_seed(0))
    assert sorted(shuffled.tolist()) == list(range(1000))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([targets[draw_order(targets, "balanced", generator)] for _ in range(20)])
    assert torch.allclose(drawn.bincount() / len(drawn), torch.full((3,), 1 / 3), atol=0.02)
    again = draw_order(targets, "balanced", torch.Generator().manual_seed(7))
    assert torch.equal(again, draw_order(targets, "balanced", torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
def test_shares_are_the_whole_cut_into_even_parts(n_ranks: int) -> None:
    for n in range(20):
        parts = [Share(rank, n_ranks).of(slice(5, 5 + n)) for rank in range(n_ranks)]
        assert [place for part in parts for place in range(part.start, part.stop)] == list(range(5, 5 + n))
        lengths = [part.stop - part.start for part in parts]
        assert lengths == sorted(lengths, reverse=True)
        assert max(lengths) - min(lengths) <= 1
