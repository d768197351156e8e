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
from torch.nn import functional

from convoy.training.check_reader.alignment import Alignment, Strings, align, spans, strings_of, trace
from convoy.training.check_reader.machine import DEAD, START, Machine
from convoy.training.check_reader.scanning import Carry, scan
from convoy.training.check_reader.summing import frames_of, step_back

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
    """What follows each cell.

    An event is a new character's frame and cell, as frame * N + cell; there is none where the cell is ``DEAD``.

    Attributes:
        reads: float (T, N, B), the best score from a frame on that leads into the cell, that frame's own among it.
        events: int64 (T * N, B), on the best way on from a cell that a frame has led into, the next new character.
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
        scores: float (1, L + 1, D + 1, B), of the best path of any such string.
        cells: int64 (1, L + 1, D + 1, B), what the string goes on with; ``DEAD`` where it ends.
        events: int64 (1, L + 1, D + 1, B), the same with its frame.
    """

    scores: Tensor
    cells: Tensor
    events: Tensor


def search(machine: Machine, scores: Tensor, lengths: Tensor, *, n_best: int, limit: int) -> Reading:
    """Find the n best strings.

    Takes O(T Q D) steps for each field's backward pass and O(T L D) for each of its strings.

    Args:
        machine: The tables, the same for all fields.
        scores: float (B, T, C), log-scores; T is at least 1.
        lengths: int64 (B,), frames of each field; those behind are not read.
        n_best: How many strings, at least 1.
        limit: L; no string of the grammar has more characters, or there are no more frames.
    """
    level = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    frames = frames_of(scores - level, lengths)  # posteriors stay, and sums of small numbers are more exact
    ahead = _look_ahead(machine, frames)
    found = [_follow(ahead, machine, ahead.event, limit)]
    path_scores = [ahead.score]
    alignments: list[Alignment] = []
    branches: list[_Branches] = []
    for number in range(n_best):
        strings = strings_of(machine, found[number].unsqueeze(1))
        alignments.append(align(strings, frames))
        if number < n_best - 1:
            branches.append(_branch(machine, strings, alignments[number], ahead))
            cells, score = _next(machine, ahead, found, branches, limit)
            found.append(cells)
            path_scores.append(score)
    strings = strings_of(machine, torch.stack(found, 1))
    showing, sums = trace(machine, strings, Alignment(*(torch.cat(parts, -2) for parts in zip(*alignments, strict=True))), frames)
    best = torch.stack(path_scores)  # (n, B)
    real = best > _NEVER
    n_characters = torch.where(real, (strings.cells != DEAD).sum(0), 0)
    total = torch.where(real, ahead.total, 0.0)
    log_posteriors = torch.where(real, (sums - total).clamp_max(0.0), _NEVER)
    return Reading(
        (machine.classes[strings.cells] - 1).permute(2, 1, 0),  # the blank's 0 becomes -1
        n_characters.T,
        spans(showing, n_characters, limit).permute(2, 1, 0, 3),
        torch.where(real, (best - total).clamp_max(0.0), _NEVER).T,
        log_posteriors.T,
        log_posteriors[0].exp(),
    )


def _look_ahead(machine: Machine, frames: Tensor) -> _Ahead:
    """The backward pass: best scores, sums and the next new character, of every cell at every frame."""
    n_frames, _, n_fields = frames.shape
    n_cells = len(machine.classes)
    n_slots = machine.outs.shape[1]
    slots = torch.arange(n_slots, device=frames.device).unsqueeze(-1)
    rows = torch.arange(len(machine.outs), device=frames.device).unsqueeze(-1) * n_slots
    barred = _barred(machine)
    targets = machine.outs.flatten().unsqueeze(-1).clone()  # a closure of the exported loop may hold no view of another

    def step(carry: Carry, frame: Carry) -> tuple[Carry, Carry]:
        best, total, events = carry
        scores, place = frame
        reads = machine.take(scores, machine.classes) + best  # (N, B)
        arcs = machine.take(reads, machine.outs) + machine.weigh(machine.out_weights)  # (Q, D, B)
        slot = arcs.argmax(1)  # (Q, B)
        others = torch.where(slots == slot.unsqueeze(1), _NEVER, arcs)
        first = functional.embedding(rows + slot, targets).squeeze(-1)  # (Q, B), the best arc's cell
        second = functional.embedding(rows + others.argmax(1), targets).squeeze(-1)
        lead = machine.take(first, machine.states)  # (N, B)
        bars = lead == barred
        leaving = torch.where(bars, machine.take(others.amax(1), machine.states), machine.take(arcs.amax(1), machine.states))
        leads = torch.where(bars, machine.take(second, machine.states), lead) + place * n_cells
        rests, repeats = machine.take(reads, machine.blanks), machine.take(reads, machine.selves)
        resting, repeating = machine.take(events, machine.blanks), machine.take(events, machine.selves)
        staying = torch.maximum(rests, repeats)
        following = (
            torch.maximum(leaving, staying),
            step_back(machine, total, scores),
            torch.where(leaving >= staying, leads, torch.where(rests >= repeats, resting, repeating)),
        )
        return following, (reads, events)

    ends = machine.finals.unsqueeze(-1).expand(-1, n_fields)
    none = torch.zeros_like(ends, dtype=torch.int64)
    places = torch.arange(n_frames, device=frames.device)
    (best, total, first), (reads, events) = scan(step, (ends, ends, none), (frames, places), reverse=True)
    return _Ahead(reads, events.flatten(0, 1), best[START], total[START], first[START])


def _barred(machine: Machine) -> Tensor:
    """For each cell the one that cannot come next, as a blank must stand between: int64 (N, 1), -1 where there is none."""
    n_slots = machine.outs.shape[1]
    slots = machine.leaves % (n_slots + 1)
    cells = machine.outs[machine.states, slots.clamp_max(n_slots - 1)]
    return torch.where(slots < n_slots, cells, -1).unsqueeze(-1)


def _follow(ahead: _Ahead, machine: Machine, event: Tensor, limit: int) -> Tensor:
    """The cells of the best continuation from an event on, int64 (limit, B), ``DEAD`` behind the last."""
    events = [event.unsqueeze(0)]
    for _ in range(limit - 1):
        events.append(ahead.events.gather(0, events[-1]))
    return torch.cat(events) % len(machine.classes)


def _branch(machine: Machine, strings: Strings, alignment: Alignment, ahead: _Ahead) -> _Branches:
    """The best way to leave one string (k is 1) after each prefix by each arc."""
    rows = machine.states[strings.ends.squeeze(1)]  # (L + 1, B)
    cells = machine.outs[rows].transpose(1, 2)  # (L + 1, D, B)
    twins = (machine.classes[cells] == strings.classes) & (strings.ends != START)
    flat = cells.flatten(0, 1).unsqueeze(0).expand(ahead.reads.shape[0], -1, -1)
    reads = ahead.reads.gather(1, flat).reshape(-1, *cells.shape)  # (T, L + 1, D, B)
    ways = torch.where(twins, alignment.blanks, torch.maximum(alignment.blanks, alignment.letters)) + reads
    frame = ways.argmax(0)
    scores = ways.amax(0) + machine.out_weights[rows].transpose(1, 2)
    ending = torch.maximum(alignment.last_blanks, alignment.last_letters) + machine.finals[strings.ends]  # (L + 1, 1, B)
    nothing = torch.zeros_like(strings.ends)
    parts = ((scores, ending), (cells, nothing), (frame * len(machine.classes) + cells, nothing))
    return _Branches(*(torch.cat(pair, 1).unsqueeze(0) for pair in parts))


def _next(machine: Machine, ahead: _Ahead, found: list[Tensor], branches: list[_Branches], limit: int) -> tuple[Tensor, Tensor]:
    """The best string that is not yet found: its cells, int64 (L, B), and its score, float (B,)."""
    known = torch.stack(found)  # (k, L, B)
    scores, cells, events = (torch.cat(parts) for parts in zip(*branches, strict=True))  # (k, L + 1, D + 1, B) each
    differs = (known.unsqueeze(1) != known.unsqueeze(0)).to(torch.int64).cumsum(2)  # (k, k, L, B)
    parted = torch.cat([torch.zeros_like(differs[:, :, :1]), differs], 2)  # (k, k, L + 1, B): over the characters of each prefix
    goes_on = torch.cat([known, torch.zeros_like(known[:, :1])], 1).unsqueeze(0)  # (1, k, L + 1, B): what each goes on with
    taken = (cells.unsqueeze(1) == goes_on.unsqueeze(3)) & (parted == 0).unsqueeze(3)  # (k, k, L + 1, D + 1, B)
    free = torch.where(taken.to(torch.int64).amax(1) > 0, _NEVER, scores).flatten(0, 2)
    choice = free.argmax(0, keepdim=True)  # (1, B)
    score = free.gather(0, choice).squeeze(0)
    n_slots = scores.shape[2]
    source, prefix = choice // (n_slots * (limit + 1)), choice // n_slots % (limit + 1)
    event = events.flatten(0, 2).gather(0, choice).squeeze(0)
    old = known.gather(0, source.unsqueeze(0).expand(-1, limit, -1)).squeeze(0)
    places = torch.arange(limit, device=known.device).unsqueeze(-1)
    new = _follow(ahead, machine, event, limit).gather(0, (places - prefix).clamp_min(0))
    return torch.where(score > _NEVER, torch.where(places < prefix, old, new), DEAD), score
