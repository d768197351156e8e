"""The n best strings of a lattice, exactly: the best path, then again and again the best path to a string not yet found.

A backward pass gives the score of the best continuation of every cell at every frame. With it, and with the best paths over the
prefixes of the strings found so far, the best string that leaves one of them after a prefix is a maximum over frames and arcs;
what leaves none of them is one of them. So each string costs one short pass, and none is ever found twice.

Source: Lawler, "A procedure for computing the k best solutions to discrete optimization problems" (1972), on strings in place of
paths.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convoy.training.check_reader.alignment import Alignment, Strings, align, spans, strings_of, trace
from convoy.training.check_reader.machine import DEAD, START, Machine
from convoy.training.check_reader.scanning import Carry, scan
from convoy.training.check_reader.summing import step_back

_NEVER = float("-inf")


class Reading(NamedTuple):
    """The n best strings of each field, by the score of their best paths, the best first.

    Where the grammar has fewer in so many frames, the rest have no characters and log-scores of minus infinity.

    Attributes:
        characters: int64 (B, n, L), places in the alphabet, -1 behind the last.
        n_characters: int64 (B, n).
        positions: int64 (B, n, L, 2), on the best path the first frame of each character, and the one behind its last; -1 behind
            the last character.
        path_scores: float (B, n), the log-posterior of each string's best path.
        log_posteriors: float (B, n), the log-posterior of each string: all its paths against all that the grammar allows. A string
            may have a larger one than those before it.
        confidence: float (B,), the posterior of the first string, in [0, 1].
    """

    characters: Tensor
    n_characters: Tensor
    positions: Tensor
    path_scores: Tensor
    log_posteriors: Tensor
    confidence: Tensor


class _Ahead(NamedTuple):
    """What follows each cell. An event is a new character's frame and cell, as frame * N + cell; 0 is none.

    Attributes:
        reads: float (B, T, N), the best score from a frame on that leads into the cell, that frame's own among it.
        events: int64 (B, T * N), on the best way on from a cell that a frame has led into, the next new character.
        score: float (B,), of the best path.
        total: float (B,), the log-sum over all paths.
        event: int64 (B,), the first character on the best path.
    """

    reads: Tensor
    events: Tensor
    score: Tensor
    total: Tensor
    event: Tensor


class _Branches(NamedTuple):
    """Ways to leave a string after one of its prefixes: by another character, or, in the last slot, by ending there.

    Attributes:
        scores: float (B, 1, L + 1, D + 1), of the best path of any such string.
        cells: int64 (B, 1, L + 1, D + 1), what the string goes on with; ``DEAD`` where it ends.
        events: int64 (B, 1, L + 1, D + 1), the same with its frame; 0 where it ends.
    """

    scores: Tensor
    cells: Tensor
    events: Tensor


def search(machine: Machine, scores: Tensor, lengths: Tensor, *, n_best: int, limit: int) -> Reading:
    """Find the n best strings.

    Takes O(T Q D) steps for the backward pass and O(T L D) for each string.

    Args:
        machine: The tables, the same for all fields.
        scores: float (B, T, C), log-scores; T is at least 1.
        lengths: int64 (B,), frames of each field; those behind are not read.
        n_best: How many strings, at least 1.
        limit: L; no string of the grammar has more characters, or there are no more frames.
    """
    level = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    frames = (scores - level).transpose(0, 1)  # (T, B, C); posteriors stay, and sums of small numbers are more exact
    inside = torch.arange(scores.shape[1], device=scores.device).unsqueeze(1) < lengths
    frames = torch.where(inside.unsqueeze(-1), frames, 0.0)
    ahead = _look_ahead(machine, frames, inside)
    found = [_follow(ahead, machine, ahead.event, limit)]
    path_scores = [ahead.score]
    alignments: list[Alignment] = []
    branches: list[_Branches] = []
    for number in range(n_best):
        strings = strings_of(machine, found[number].unsqueeze(1))
        alignments.append(align(strings, frames, inside))
        if number < n_best - 1:
            branches.append(_branch(machine, strings, alignments[number], ahead))
            cells, score = _next(machine, ahead, found, branches, limit)
            found.append(cells)
            path_scores.append(score)
    strings = strings_of(machine, torch.stack(found, 1))
    whole = Alignment(*(torch.cat(parts, -2) for parts in zip(*alignments, strict=True)))
    showing, sums = trace(machine, strings, whole, frames, inside)
    best = torch.stack(path_scores, 1)
    real = best > _NEVER
    n_characters = torch.where(real, (strings.cells != DEAD).sum(-1), 0)
    total = torch.where(real, ahead.total.unsqueeze(1), 0.0)
    log_posteriors = torch.where(real, (sums - total).clamp_max(0.0), _NEVER)
    return Reading(
        machine.classes[strings.cells] - 1,  # the blank's 0 becomes -1
        n_characters,
        spans(showing, n_characters, limit),
        torch.where(real, (best - total).clamp_max(0.0), _NEVER),
        log_posteriors,
        log_posteriors[:, 0].exp(),
    )


def _look_ahead(machine: Machine, frames: Tensor, inside: Tensor) -> _Ahead:
    """The backward pass: best scores, sums and the next new character, of every cell at every frame."""
    n_frames, n_fields = frames.shape[:2]
    n_cells = len(machine.classes)
    ends = machine.finals.expand(n_fields, -1)
    slots = torch.arange(machine.outs.shape[1], device=frames.device)

    def step(carry: Carry, frame: Carry) -> tuple[Carry, Carry]:
        best, total, events = carry
        scores, place, here = frame
        reads = scores[:, machine.classes] + best  # (B, N)
        arcs = reads[:, machine.outs] + machine.out_weights  # (B, Q, D)
        first = arcs.argmax(-1, keepdim=True)
        is_first = slots == first
        others = torch.where(is_first, _NEVER, arcs)
        second = others.argmax(-1, keepdim=True)
        new = torch.where(machine.outs == DEAD, 0, machine.outs + place * n_cells).expand(arcs.shape)
        leaving = _without(is_first, arcs.amax(-1, keepdim=True), others.amax(-1, keepdim=True))[:, machine.leaves]
        leads = _without(is_first, new.gather(-1, first), new.gather(-1, second))[:, machine.leaves]
        rests, repeats = reads[:, machine.blanks], reads[:, machine.selves]
        waiting = torch.where(rests >= repeats, events[:, machine.blanks], events[:, machine.selves])
        staying = torch.maximum(rests, repeats)
        inner = here.unsqueeze(1)
        following = (
            torch.where(inner, torch.maximum(leaving, staying), best),
            torch.where(inner, step_back(machine, total, scores), total),
            torch.where(inner, torch.where(leaving >= staying, leads, waiting), events),
        )
        return following, (torch.where(inner, reads, _NEVER), events)

    none = torch.zeros_like(ends, dtype=torch.int64)
    places = torch.arange(n_frames, device=frames.device)
    (best, total, first), (reads, events) = scan(step, (ends, ends, none), (frames, places, inside), reverse=True)
    return _Ahead(reads.transpose(0, 1), events.transpose(0, 1).flatten(1), best[:, START], total[:, START], first[:, START])


def _without(is_first: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """What is best without each arc, and with all, flattened to (B, Q * (D + 1))."""
    return torch.cat([torch.where(is_first, second, first), first], -1).flatten(1)


def _follow(ahead: _Ahead, machine: Machine, event: Tensor, limit: int) -> Tensor:
    """The cells of the best continuation from an event on, int64 (B, limit), ``DEAD`` behind the last."""
    event = event.unsqueeze(1)
    events = [event]
    for _ in range(limit - 1):
        event = ahead.events.gather(1, event)
        events.append(event)
    return torch.cat(events, 1) % len(machine.classes)


def _branch(machine: Machine, strings: Strings, alignment: Alignment, ahead: _Ahead) -> _Branches:
    """The best way to leave one string (k is 1) after each prefix by each arc."""
    n_cells = len(machine.classes)
    rows = machine.states[strings.ends]  # (B, 1, L + 1)
    cells = machine.outs[rows]  # (B, 1, L + 1, D)
    twins = (machine.classes[cells] == strings.classes.unsqueeze(-1)) & (strings.ends != START).unsqueeze(-1)
    flat = cells.flatten(1).unsqueeze(1).expand(-1, ahead.reads.shape[1], -1)
    reads = ahead.reads.gather(2, flat).unflatten(2, cells.shape[2:])  # (B, T, L + 1, D)
    blanks = alignment.blanks.squeeze(2).transpose(0, 1).unsqueeze(-1)  # (B, T, L + 1, 1)
    either = torch.maximum(alignment.blanks, alignment.letters).squeeze(2).transpose(0, 1).unsqueeze(-1)
    ways = torch.where(twins, blanks, either) + reads
    frame = ways.argmax(1, keepdim=True)
    scores = ways.amax(1, keepdim=True) + machine.out_weights[rows]
    ending = torch.maximum(alignment.last_blanks, alignment.last_letters) + machine.finals[strings.ends]  # (B, 1, L + 1)
    nothing = torch.zeros_like(rows).unsqueeze(-1)
    return _Branches(
        torch.cat([scores, ending.unsqueeze(-1)], -1),
        torch.cat([cells, nothing], -1),
        torch.cat([frame * n_cells + cells, nothing], -1),
    )


def _next(
    machine: Machine, ahead: _Ahead, found: list[Tensor], branches: list[_Branches], limit: int
) -> tuple[Tensor, Tensor]:
    """The best string that is not yet found: its cells, int64 (B, L), and its score, float (B,)."""
    known = torch.stack(found, 1)  # (B, k, L)
    scores, cells, events = (torch.cat(parts, 1) for parts in zip(*branches, strict=True))  # (B, k, L + 1, D + 1) each
    differs = (known.unsqueeze(2) != known.unsqueeze(1)).to(torch.int64).cumsum(-1)  # (B, k, k, L)
    parted = torch.cat([torch.zeros_like(differs[..., :1]), differs], -1)  # (B, k, k, L + 1): over the characters of each prefix
    goes_on = torch.cat([known, torch.zeros_like(known[..., :1])], -1).unsqueeze(1)  # (B, 1, k, L + 1): what each goes on with
    taken = (cells.unsqueeze(2) == goes_on.unsqueeze(-1)) & (parted == 0).unsqueeze(-1)  # (B, k, k, L + 1, D + 1)
    free = torch.where(taken.to(torch.int64).amax(2) > 0, _NEVER, scores).flatten(1)
    choice = free.argmax(1, keepdim=True)  # (B, 1)
    score = free.gather(1, choice).squeeze(1)
    n_slots = scores.shape[-1]
    source, prefix = choice // (n_slots * (limit + 1)), choice // n_slots % (limit + 1)
    event = events.flatten(1).gather(1, choice).squeeze(1)
    old = known.gather(1, source.unsqueeze(-1).expand(-1, -1, limit)).squeeze(1)
    places = torch.arange(limit, device=known.device)
    new = _follow(ahead, machine, event, limit).gather(1, (places - prefix).clamp_min(0))
    joined = torch.where(places < prefix, old, new)
    return torch.where((score > _NEVER).unsqueeze(1), joined, DEAD), score
