"""Where in the frames the characters of a known string are: its best path, and the log-sum over all its paths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convoy.training.check_reader.machine import BLANK, DEAD, START, Machine
from convoy.training.check_reader.scanning import Carry, scan
from convoy.training.check_reader.summing import log_add

_NEVER = float("-inf")


class Strings(NamedTuple):
    """Strings of the grammar as cells of the machine: of at most L characters, k for each of B fields.

    What is told of a prefix, of 0 to L characters, has an axis of L + 1.

    Attributes:
        cells: int64 (L, k, B), each character's cell, ``DEAD`` behind the last.
        ends: int64 (L + 1, k, B), the last cell of each prefix, ``START`` where there is no character, ``DEAD`` where no prefix.
        classes: int64 (L + 1, k, B), the class of a prefix's last character.
        weights: float (L + 1, k, B), the log-weight of the next character's arc; -inf behind the last.
        twins: bool (L + 1, k, B), the next character equals the last one: a blank must stand between.
    """

    cells: Tensor
    ends: Tensor
    classes: Tensor
    weights: Tensor
    twins: Tensor


class Alignment(NamedTuple):
    """The scores of best paths over each prefix of strings, before each frame and after the last.

    Attributes:
        blanks: float (T, L + 1, k, B), of the paths whose last frame is a blank.
        letters: float (T, L + 1, k, B), of those whose last frame shows the prefix's last character.
        last_blanks: float (L + 1, k, B), after the last frame.
        last_letters: float (L + 1, k, B), the same.
    """

    blanks: Tensor
    letters: Tensor
    last_blanks: Tensor
    last_letters: Tensor


def strings_of(machine: Machine, cells: Tensor) -> Strings:
    """What the passes need to know of strings, from their cells, int64 (L, k, B)."""
    edge = torch.zeros_like(cells[:1])
    ends = torch.cat([edge + START, cells])
    classes = machine.classes[ends]
    following = torch.cat([cells, edge + DEAD])
    rows = machine.states[ends]
    weights = torch.where(machine.outs[rows] == following.unsqueeze(-1), machine.out_weights[rows], _NEVER).amax(-1)
    twins = (machine.classes[following] == classes) & (ends != START)
    return Strings(cells, ends, classes, weights, twins)


def align(strings: Strings, frames: Tensor) -> Alignment:
    """The best paths over every prefix.

    Args:
        strings: The strings.
        frames: float (T, C, B), log-scores.
    """
    never = torch.full_like(strings.weights, _NEVER)

    def step(carry: Carry, frame: Carry) -> tuple[Carry, Carry]:
        blanks, letters = carry
        shows, blank = frame
        either = torch.maximum(blanks, letters)
        entering = torch.where(strings.twins, blanks, either) + strings.weights
        entered = torch.cat([never[:1], entering[:-1]])
        return (either + blank, torch.maximum(letters, entered) + shows), (blanks, letters)

    first = torch.where(strings.ends == START, 0.0, never)
    (last_blanks, last_letters), (blanks, letters) = scan(step, (first, never), (_shown(strings, frames), frames[:, BLANK]))
    return Alignment(blanks, letters, last_blanks, last_letters)


def trace(machine: Machine, strings: Strings, alignment: Alignment, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Follow each string's best path back, and sum over all of its paths.

    Args:
        machine: The tables.
        strings: The strings.
        alignment: Theirs.
        frames: float (T, C, B), log-scores.

    Returns:
        For each frame which character it shows, int64 (T, k, B), counted from 1, 0 where it shows none; and the log-sum over the
        paths of each string, float (k, B).
    """
    n_prefixes = strings.ends.shape[0]
    never = torch.full_like(strings.weights, _NEVER)
    length = (strings.cells != DEAD).sum(0, keepdim=True)  # (1, k, B)
    whole = torch.arange(n_prefixes, device=frames.device)[:, None, None] == length
    ends = torch.where(whole, machine.finals[strings.ends], never)
    lettered = alignment.last_letters.gather(0, length) > alignment.last_blanks.gather(0, length)

    def step(carry: Carry, frame: Carry) -> tuple[Carry, Carry]:
        ahead_blanks, ahead_letters, node = carry
        shows, blank, nodes = frame
        stays, repeats = ahead_blanks + blank, ahead_letters + shows
        enters = torch.cat([repeats[1:], never[:1]]) + strings.weights
        from_blank = log_add(stays, enters)
        from_letter = log_add(stays, repeats, torch.where(strings.twins, never, enters))
        return (from_blank, from_letter, nodes.gather(0, node)), (node.squeeze(0),)

    (total, _, _), (nodes,) = scan(
        step,
        (ends, ends, torch.where(lettered, length + n_prefixes, length)),
        (_shown(strings, frames), frames[:, BLANK], _former_nodes(strings, alignment)),
        reverse=True,
    )
    return (nodes - n_prefixes).clamp_min(0), total[0]


def _former_nodes(strings: Strings, alignment: Alignment) -> Tensor:
    """From each node of a string's trellis the one before it on the best path: int64 (T, 2 * (L + 1), k, B).

    The nodes are each prefix after a blank, then each prefix after its last character.
    """
    blanks, letters = alignment.blanks, alignment.letters
    n_prefixes = strings.ends.shape[0]
    prefix = torch.arange(n_prefixes, device=blanks.device)[:, None, None]
    before_blank = torch.where(letters > blanks, prefix + n_prefixes, prefix)
    by_blank = blanks[:, :-1] + strings.weights[:-1]
    by_letter = torch.where(strings.twins[:-1], _NEVER, letters[:, :-1] + strings.weights[:-1])
    entered = torch.maximum(by_blank, by_letter) > letters[:, 1:]
    entry = torch.where(by_letter > by_blank, prefix[:-1] + n_prefixes, prefix[:-1])
    before_letter = torch.where(entered, entry, prefix[1:] + n_prefixes)
    return torch.cat([before_blank, before_blank[:, :1], before_letter], 1)  # no path ends in the letter of the empty prefix


def spans(characters: Tensor, n_characters: Tensor, limit: int) -> Tensor:
    """The frames that show each character: int64 (L, k, B, 2), the first and the one behind the last; -1 where there is none.

    Args:
        characters: int64 (T, k, B), which character each frame shows, counted from 1.
        n_characters: int64 (k, B).
        limit: L.
    """
    n_frames = characters.shape[0]
    number = torch.arange(1, limit + 1, device=characters.device)[:, None, None]
    shows = characters.unsqueeze(1) == number  # (T, L, k, B)
    places = torch.arange(n_frames, device=characters.device)[:, None, None, None]
    first = torch.where(shows, places, n_frames).amin(0)
    behind = torch.where(shows, places + 1, 0).amax(0)
    return torch.where((number <= n_characters).unsqueeze(-1), torch.stack([first, behind], -1), -1)


def _shown(strings: Strings, frames: Tensor) -> Tensor:
    """What each frame gives the last character of each prefix, float (T, L + 1, k, B); of no use where there is none."""
    flat = strings.classes.flatten(0, 1).unsqueeze(0).expand(frames.shape[0], -1, -1)
    return frames.gather(1, flat).reshape(-1, *strings.classes.shape)
