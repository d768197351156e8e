"""The score of the best path of a lattice, with a gradient: what the paper's Viterbi training compares (section VI.D)."""

from __future__ import annotations

import torch
from torch import Tensor

from convoy.training.check_reader.machine import START, Machine
from convoy.training.check_reader.summing import frames_of

_NEVER = float("-inf")


def best_path(scores: Tensor, lengths: Tensor, machine: Machine) -> Tensor:
    """The score of the best path; its gradient is 1 on the classes of that path, and shared where several are equally good.

    Args:
        scores: float (B, T, C), log-scores.
        lengths: int64 (B,), frames of each field; those behind are not read.
        machine: The tables, for all fields or one for each.

    Returns:
        float (B,); -inf where there is no path.
    """
    machine = machine.to(scores)
    frames = frames_of(scores, lengths)
    ahead = machine.weigh(machine.finals).expand(-1, frames.shape[2])
    for frame in reversed(frames.unbind(0)):
        reads = machine.take(frame, machine.classes) + ahead  # (N, B): by the cell that the frame leads into
        leaving = _best_without(machine.take(reads, machine.outs) + machine.weigh(machine.out_weights))
        stays = torch.maximum(machine.take(reads, machine.blanks), machine.take(reads, machine.selves))
        ahead = torch.maximum(machine.take(leaving, machine.leaves), stays)
    return ahead[START] + machine.log_weight


def _best_without(values: Tensor) -> Tensor:
    """For each of D values the best of the others, and the best of all: float (Q * (D + 1), B), from float (Q, D, B)."""
    best, place = values.max(1, keepdim=True)
    is_best = torch.zeros_like(values, dtype=torch.bool).scatter(1, place, torch.ones_like(place, dtype=torch.bool))
    second = torch.where(is_best, _NEVER, values).amax(1, keepdim=True)
    return torch.cat([torch.where(is_best, second, best), best], 1).flatten(0, 1)
