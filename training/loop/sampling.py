"""Which images each step of an epoch sees, and which of them each process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def draw_order(labels: Tensor, sampling: Literal["shuffled", "balanced"], generator: torch.Generator) -> Tensor:
    """The images of an epoch in the order in which it sees them.

    Args:
        labels: int64 (N,), on the CPU.
        sampling: ``shuffled``: each image once; ``balanced``: N drawn with replacement, each class as often on average.
        generator: Where the order comes from; on the CPU.

    Returns:
        Indices, int64 (N,), on the CPU.
    """
    if sampling == "shuffled":
        return torch.randperm(len(labels), generator=generator)
    chances = 1 / labels.bincount().double()[labels]  # (N,)
    # by the inverse of the distribution: torch.multinomial takes at most 2**24 images
    bounds = chances.cumsum(0)
    places = torch.rand(len(labels), dtype=torch.float64, generator=generator) * bounds[-1]
    return torch.searchsorted(bounds, places, right=True).clamp_(max=len(labels) - 1)


@dataclass(frozen=True)
class Share:
    """What one of several processes works on.

    Attributes:
        rank: Which process, from 0.
        n_ranks: How many there are.
    """

    rank: int = 0
    n_ranks: int = 1

    def of(self, whole: slice) -> slice:
        """The part of ``whole`` that is this process's: the parts are consecutive, and the first ones are the larger by one."""
        start, n = whole.start, whole.stop - whole.start
        each, more = divmod(n, self.n_ranks)
        first = start + self.rank * each + min(self.rank, more)
        return slice(first, first + each + (self.rank < more))


def slices(n: int, size: int) -> list[slice]:
    """The consecutive parts of n things, ``size`` each; the last may be smaller."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
