"""Sums over all paths of a lattice, in logarithms, and their gradient: the forward algorithm, and the backward one beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convoy.training.check_reader.machine import START, Machine, take

_NEVER = float("-inf")


def log_sum(values: Tensor) -> Tensor:
    """log(sum(exp(x))) over the last axis, which has one element at least; minus infinity where all are."""
    best = values.amax(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).min)  # keeps -inf minus -inf out
    return (best + (values - best).exp().sum(-1, keepdim=True).log()).squeeze(-1)


def sums_without(values: Tensor) -> Tensor:
    """For each of D log-values the log of the sum of the others, and of the sum of all.

    The sum of all less one loses nothing where the one is not the largest, as the largest is still in it; without the largest it is
    summed anew.

    Args:
        values: float (..., D).

    Returns:
        float (..., D + 1).
    """
    best, place = values.max(-1, keepdim=True)
    largest = torch.arange(values.shape[-1], device=values.device) == place
    finite = best.clamp_min(torch.finfo(best.dtype).min)
    shares = (values - finite).exp()
    total = shares.sum(-1, keepdim=True)
    others = values.masked_fill(largest, _NEVER)
    second = others.amax(-1, keepdim=True).clamp_min(torch.finfo(best.dtype).min)
    rest = second + (others - second).exp().sum(-1, keepdim=True).log()
    return torch.cat([torch.where(largest, rest, finite + (total - shares).clamp_min(0).log()), finite + total.log()], -1)


def step_back(machine: Machine, ahead: Tensor, frame: Tensor) -> Tensor:
    """One step of the backward algorithm.

    Args:
        machine: The tables.
        ahead: float (B, N), log-sums over what follows a cell once this frame is read.
        frame: float (B, C), the frame's log-scores.

    Returns:
        float (B, N), log-sums over what follows a cell before this frame is read.
    """
    batched = machine.batched
    read = take(frame, machine.classes, batched=batched) + ahead  # (B, N): by the cell that the frame leads into
    leaving = sums_without(take(read, machine.outs, batched=batched) + machine.out_weights).flatten(1)  # (B, Q * (D + 1))
    ways = (take(leaving, machine.leaves, batched=batched), take(read, machine.blanks, batched=batched))
    return log_sum(torch.stack([*ways, take(read, machine.selves, batched=batched)], -1))


def step_on(machine: Machine, behind: Tensor, frame: Tensor) -> Tensor:
    """One step of the forward algorithm: as ``step_back``, with the log-sums over what leads to a cell."""
    batched = machine.batched
    standing = sums_without(take(behind, machine.groups, batched=batched)).flatten(1)  # (B, Q * (G + 1))
    entering = take(standing, machine.enters, batched=batched) + machine.enter_weights  # (B, N, P)
    repeating = take(behind, machine.selves, batched=batched).unsqueeze(-1)
    return log_sum(torch.cat([entering, repeating], -1)) + take(frame, machine.classes, batched=batched)


class _PathSum(torch.autograd.Function):
    """The log-sum over all paths; its gradient is each class's share of them, frame by frame."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, lengths: Tensor, machine: Machine) -> Tensor:
        ahead = machine.finals.expand(scores.shape[0], -1)
        kept = [ahead]
        for place in reversed(range(scores.shape[1])):
            inside = (place < lengths).unsqueeze(1)
            ahead = torch.where(inside, step_back(machine, ahead, scores[:, place]), ahead)
            kept.append(ahead)
        ctx.machine, ctx.kept = machine, kept[::-1]
        total = ahead[:, START].clone()
        ctx.save_for_backward(scores, lengths, total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        scores, lengths, total = ctx.saved_tensors
        machine: Machine = ctx.machine
        behind = torch.full_like(ctx.kept[0], _NEVER)
        behind[:, START] = 0
        known = torch.where(total > _NEVER, total, 0).unsqueeze(1)  # where no path is, all shares are exp(-inf)
        shares = []
        for place in range(scores.shape[1]):
            behind = step_on(machine, behind, scores[:, place])
            share = (behind + ctx.kept[place + 1] - known).exp()  # (B, N)
            shares.append(torch.where((place < lengths).unsqueeze(1), share, 0))
        gradient = torch.zeros_like(scores)
        if shares:
            each = torch.stack(shares, 1)  # (B, T, N)
            classes = (machine.classes if machine.batched else machine.classes.unsqueeze(0)).unsqueeze(1).expand(each.shape)
            gradient.scatter_add_(2, classes, each)
        return gradient * gradients[0][:, None, None], None, None


def path_sum(scores: Tensor, lengths: Tensor, machine: Machine) -> Tensor:
    """The log-sum of the scores of all paths.

    Takes O(T (Q D + N P)) steps, in memory O(T N) for the gradient.

    Args:
        scores: float (B, T, C), log-scores; -inf is allowed, +inf and NaN are not.
        lengths: int64 (B,), frames of each field; those behind are not read.
        machine: The tables, for all fields or one for each.

    Returns:
        float (B,); -inf where there is no path, with a gradient of 0.
    """
    machine = machine.to(scores)
    total: Tensor = _PathSum.apply(scores, lengths, machine)  # type: ignore[no-untyped-call]
    return total + machine.log_weight
