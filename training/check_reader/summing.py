"""Sums over all paths of a lattice, in logarithms, and their gradient: the forward algorithm, and the backward one beside it.

Fields come last in every tensor: cells are gathered in rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convoy.training.check_reader.machine import BLANK, START, Machine

_NEVER = float("-inf")


def frames_of(scores: Tensor, lengths: Tensor) -> Tensor:
    """Frames first and fields last, with sure blanks behind each field's end.

    A path goes on with those blanks at no cost and in no other way, so that passes need not ask where a field ends.

    Args:
        scores: float (B, T, C), log-scores.
        lengths: int64 (B,), frames of each field.

    Returns:
        float (T, C, B).
    """
    n_frames, n_classes = scores.shape[1:]
    inside = torch.arange(n_frames, device=scores.device)[:, None, None] < lengths
    blank = (torch.arange(n_classes, device=scores.device) == BLANK)[:, None]
    padding = torch.where(blank, 0.0, torch.full_like(blank, _NEVER, dtype=scores.dtype))
    return torch.where(inside, scores.permute(1, 2, 0), padding)


def log_add(first: Tensor, second: Tensor, *more: Tensor) -> Tensor:
    """log(exp(a) + exp(b) + ...), element by element; minus infinity where all are."""
    best = torch.maximum(first, second)
    for values in more:
        best = torch.maximum(best, values)
    best = best.clamp_min(torch.finfo(best.dtype).min)  # keeps -inf minus -inf out
    total = (first - best).exp() + (second - best).exp()
    for values in more:
        total = total + (values - best).exp()
    return best + total.log()


def sums_without(values: Tensor) -> Tensor:
    """For each of D log-values the log of the sum of the others, and of the sum of all.

    The sum of all less one loses nothing where a largest is still in it; without the only largest it is summed anew.

    Args:
        values: float (Q, D, B).

    Returns:
        float (Q * (D + 1), B).
    """
    lowest = torch.finfo(values.dtype).min
    best = values.amax(1, keepdim=True).clamp_min(lowest)
    shares = (values - best).exp()
    total = shares.sum(1, keepdim=True)
    largest = shares == 1
    alone = largest & (largest.to(values.dtype).sum(1, keepdim=True) == 1)
    others = torch.where(largest, _NEVER, values)
    second = others.amax(1, keepdim=True).clamp_min(lowest)
    rest = second + (others - second).exp().sum(1, keepdim=True).log()
    without = best + (total - shares).clamp_min(0.0).log()
    return torch.cat([torch.where(alone, rest, without), best + total.log()], 1).flatten(0, 1)


def step_back(machine: Machine, ahead: Tensor, frame: Tensor) -> Tensor:
    """One step of the backward algorithm.

    Args:
        machine: The tables.
        ahead: float (N, B), log-sums over what follows a cell once this frame is read.
        frame: float (C, B), the frame's log-scores.

    Returns:
        float (N, B), log-sums over what follows a cell before this frame is read.
    """
    reads = machine.take(frame, machine.classes) + ahead  # (N, B): by the cell that the frame leads into
    leaving = sums_without(machine.take(reads, machine.outs) + machine.weigh(machine.out_weights))
    return log_add(machine.take(leaving, machine.leaves), machine.take(reads, machine.blanks), machine.take(reads, machine.selves))


def step_on(machine: Machine, behind: Tensor, frame: Tensor) -> Tensor:
    """One step of the forward algorithm: as ``step_back``, with the log-sums over what leads to a cell."""
    standing = sums_without(machine.take(behind, machine.groups))
    entering = machine.take(standing, machine.enters) + machine.weigh(machine.enter_weights)  # (A, B)
    repeating = machine.take(behind, machine.selves)  # (N, B)
    cells = machine.enter_cells if machine.batched else machine.enter_cells.unsqueeze(-1).expand(entering.shape)
    best = repeating.scatter_reduce(0, cells, entering, "amax").clamp_min(torch.finfo(behind.dtype).min)
    shares = (entering - machine.take(best, machine.enter_cells)).exp()
    return best + (repeating - best).exp().scatter_add(0, cells, shares).log() + machine.take(frame, machine.classes)


class _PathSum(torch.autograd.Function):
    """The log-sum over all paths; its gradient is each class's share of them, frame by frame."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, machine: Machine) -> Tensor:
        ahead = machine.weigh(machine.finals).expand(-1, frames.shape[2])
        kept = [ahead]
        for frame in reversed(frames.unbind(0)):
            kept.append(step_back(machine, kept[-1], frame))
        ctx.machine, ctx.kept = machine, kept[::-1]
        ctx.save_for_backward(frames)
        return kept[-1][START].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (frames,) = ctx.saved_tensors
        machine: Machine = ctx.machine
        behind = torch.full_like(ctx.kept[0], _NEVER)
        behind[START] = 0
        shares = torch.zeros_like(frames)
        classes = (machine.classes if machine.batched else machine.classes.unsqueeze(-1)).expand(behind.shape)
        for place, frame in enumerate(frames.unbind(0)):
            behind = step_on(machine, behind, frame)
            whole = behind + ctx.kept[place + 1]  # (N, B); its log-sum is the same in each frame, but for rounding
            share = (whole - whole.amax(0).clamp_min(torch.finfo(whole.dtype).min)).exp()
            shares[place].scatter_add_(0, classes, share / share.sum(0).clamp_min(1.0))  # all are 0 where there is no path
        return shares * gradients[0], None


def path_sum(scores: Tensor, lengths: Tensor, machine: Machine) -> Tensor:
    """The log-sum of the scores of all paths.

    Takes O(T (Q (D + G) + N + A)) steps for each field, and O(T N) memory for the gradient.

    Args:
        scores: float (B, T, C), log-scores; -inf is allowed, +inf and NaN are not.
        lengths: int64 (B,), frames of each field; those behind are not read.
        machine: The tables, for all fields or one for each.

    Returns:
        float (B,); -inf where there is no path, with a gradient of 0.
    """
    machine = machine.to(scores)
    total: Tensor = _PathSum.apply(frames_of(scores, lengths), machine)
    return total + machine.log_weight
