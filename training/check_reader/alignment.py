"""Where in the frames the characters of a known string are: its best path, and the log-sum over all its paths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convoy.training.check_reader.machine import DEAD, START, Machine
from convoy.training.check_reader.scanning import Carry, scan
from convoy.training.check_reader.summing import log_sum

_NEVER = float("-inf")


class Strings(NamedTuple):
    """Strings of the grammar as cells of the machine: k for each of B fields, of at most L characters.

    What is told of a prefix, of 0 to L characters, has an axis of L + 1.

    Attributes:
        cells: int64 (B, k, L), each character's cell, ``DEAD`` behind the last.
        ends: int64 (B, k, L + 1), the last cell of each prefix, ``START`` where there is no character, ``DEAD`` where no prefix.
        classes: int64 (B, k, L + 1), the class of a prefix's last character.
        weights: float (B, k, L + 1), the log-weight of the next character's arc; -inf behind the last.
        twins: bool (B, k, L + 1), the next character equals the last one: a blank must stand between.
    """

    cells: Tensor
    ends: Tensor
    classes: Tensor
    weights: Tensor
    twins: Tensor


class Alignment(NamedTuple):
    """The scores of best paths over each prefix of strings, before each frame and after the last.

    Attributes:
        blanks: float (T, B, k, L + 1), of the paths whose last frame is a blank.
        letters: float (T, B, k, L + 1), of those whose last frame shows the prefix's last character.
        last_blanks: float (B, k, L + 1), after the field's last frame.
        last_letters: float (B, k, L + 1), the same.
    """

    blanks: Tensor
    letters: Tensor
    last_blanks: Tensor
    last_letters: Tensor


def strings_of(machine: Machine, cells: Tensor) -> Strings:
    """What the passes need to know of strings, from their cells, int64 (B, k, L)."""
    start = torch.full_like(cells[..., :1], START)
    ends = torch.cat([start, cells], -1)
    classes = machine.classes[ends]
    following = torch.cat([cells, torch.full_like(start, DEAD)], -1)
    rows = machine.states[ends]
    weights = torch.where(machine.outs[rows] == following.unsqueeze(-1), machine.out_weights[rows], _NEVER).amax(-1)
    twins = (machine.classes[following] == classes) & (ends != START)
    return Strings(cells, ends, classes, weights, twins)


def align(strings: Strings, frames: Tensor, inside: Tensor) -> Alignment:
    """The best paths over every prefix.

    Args:
        strings: The strings.
        frames: float (T, B, C), log-scores.
        inside: bool (T, B), which frames belong to the field.
    """
    shown = _shown(strings, frames)  # (T, B, k, L + 1)
    never = torch.full_like(strings.weights, _NEVER)
    first = torch.where(strings.ends == START, 0.0, never)

    def step(carry: Carry, frame: Carry) -> tuple[Carry, Carry]:
        blanks, letters = carry
        shows, blank, here = frame
        both = torch.maximum(blanks, letters)
        entering = torch.where(strings.twins, blanks, both) + strings.weights
        entered = torch.cat([never[..., :1], entering[..., :-1]], -1)
        following = (
            torch.where(here[:, None, None], both + blank[:, None, None], blanks),
            torch.where(here[:, None, None], torch.maximum(letters, entered) + shows, letters),
        )
        return following, (blanks, letters)

    (last_blanks, last_letters), (blanks, letters) = scan(step, (first, never), (shown, frames[..., 0], inside))
    return Alignment(blanks, letters, last_blanks, last_letters)


def trace(machine: Machine, strings: Strings, alignment: Alignment, frames: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Follow each string's best path back, and sum over all of its paths.

    Args:
        machine: The tables.
        strings: The strings.
        alignment: Theirs.
        frames: float (T, B, C), log-scores.
        inside: bool (T, B), which frames belong to the field.

    Returns:
        For each frame which character it shows, int64 (T, B, k), counted from 1, 0 where it shows none; and the log-sum over the
        paths of each string, float (B, k).
    """
    shown = _shown(strings, frames)
    never = torch.full_like(strings.weights, _NEVER)
    n_characters = (strings.cells != DEAD).sum(-1, keepdim=True)  # (B, k, 1)
    whole = torch.arange(strings.ends.shape[-1], device=frames.device) == n_characters
    ahead = torch.where(whole, machine.finals[strings.ends], never)
    shows_last = alignment.last_letters.gather(-1, n_characters) > alignment.last_blanks.gather(-1, n_characters)

    def step(carry: Carry, frame: Carry) -> tuple[Carry, Carry]:
        ahead_blanks, ahead_letters, prefix, lettered = carry
        shows, blank, here, blanks, letters = frame
        stays = ahead_blanks + blank[:, None, None]
        repeats = shows + ahead_letters
        enters = torch.cat([repeats[..., 1:], never[..., :1]], -1) + strings.weights
        from_blank = log_sum(torch.stack([stays, enters], -1))
        from_letter = log_sum(torch.stack([stays, repeats, torch.where(strings.twins, never, enters)], -1))
        former = (prefix - 1).clamp_min(0)
        came_blank = blanks.gather(-1, former) + strings.weights.gather(-1, former)
        came_letter = letters.gather(-1, former) + strings.weights.gather(-1, former)
        came_letter = torch.where(strings.twins.gather(-1, former), _NEVER, came_letter)
        repeated = letters.gather(-1, prefix)
        entered = lettered & (torch.maximum(came_blank, came_letter) > repeated)
        came = entered & (came_letter > came_blank)
        rested = ~entered & (lettered | (repeated > blanks.gather(-1, prefix)))
        inner = here[:, None, None]
        following = (
            torch.where(inner, from_blank, ahead_blanks),
            torch.where(inner, from_letter, ahead_letters),
            torch.where(inner & entered, former, prefix),
            (inner & (came | rested)) | (~inner & lettered),
        )
        return following, (torch.where(inner & lettered, prefix, 0).squeeze(-1),)

    (ahead_blanks, *_), (characters,) = scan(
        step,
        (ahead, ahead, n_characters, shows_last),
        (shown, frames[..., 0], inside, alignment.blanks, alignment.letters),
        reverse=True,
    )
    return characters, ahead_blanks[..., 0]


def spans(characters: Tensor, n_characters: Tensor, limit: int) -> Tensor:
    """The frames that show each character: int64 (B, k, L, 2), the first and the one behind the last; -1 where there is none.

    Args:
        characters: int64 (T, B, k), which character each frame shows, counted from 1.
        n_characters: int64 (B, k).
        limit: L.
    """
    n_frames = characters.shape[0]
    number = torch.arange(1, limit + 1, device=characters.device)
    shows = characters.permute(1, 2, 0).unsqueeze(2) == number.unsqueeze(-1)  # (B, k, L, T)
    places = torch.arange(n_frames, device=characters.device)
    first = torch.where(shows, places, n_frames).amin(-1)
    behind = torch.where(shows, places + 1, 0).amax(-1)
    real = number <= n_characters.unsqueeze(-1)
    return torch.where(real.unsqueeze(-1), torch.stack([first, behind], -1), -1)


def _shown(strings: Strings, frames: Tensor) -> Tensor:
    """What each frame gives the last character of each prefix, float (T, B, k, L + 1); of no use where there is none."""
    flat = strings.classes.flatten(1)  # (B, k * (L + 1))
    shown = frames.gather(2, flat.unsqueeze(0).expand(frames.shape[0], -1, -1))
    return shown.unflatten(2, strings.classes.shape[1:])
