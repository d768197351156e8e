"""Patterns of paths: ``scans/**/*.png``, and the ranges of shards: ``train-{000..009}.tar``."""

from __future__ import annotations

import fnmatch
import itertools
import re
from typing import Final

from convoy.contract.errors import UsageError

_MAGIC: Final = re.compile(r"[*?\[]")
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS: Final = 1_000_000


def is_pattern(path: str) -> bool:
    """Whether it has a wildcard. The ``?`` of a web address begins its query."""
    return "*" in path if path.startswith(("http://", "https://")) else bool(_MAGIC.search(path))


def has_braces(path: str) -> bool:
    """Whether it names several paths by a range or by alternatives in braces."""
    return any(_RANGE.fullmatch(inside) or "," in inside for inside in _BRACES.findall(path))


def expand_braces(path: str) -> list[str]:
    """Every path that the braces name, in order; a range keeps its leading zeros.

    Raises:
        UsageError: A range runs backwards, or they are too many.
    """
    parts = _BRACES.split(path)  # text, inside, text, inside, ..., text
    choices: list[list[str]] = []
    total = 1
    for place, part in enumerate(parts):
        choices.append(_choices(part) if place % 2 else [part])
        total *= len(choices[-1])
        if total > _MOST_SHARDS:
            raise UsageError(f"{path}: the braces name more than {_MOST_SHARDS:,} paths.")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


class Pattern:
    """What a path with wildcards takes: ``*`` and ``?`` within a name, ``**`` for any folders, none included.

    Attributes:
        base: The folder below which everything lies, without wildcards; empty for the present one.
    """

    def __init__(self, path: str) -> None:
        parts = path.split("/")
        fixed = next(place for place, part in enumerate(parts) if is_pattern(part))
        self.base = "/".join(parts[:fixed]) or ("/" if path.startswith("/") else "")
        self._parts = parts[fixed:]
        self._names = [re.compile(fnmatch.translate(part)) for part in self._parts]

    def matches(self, relative: str) -> bool:
        """Whether a file's path below ``base`` is meant."""
        return len(self._parts) in self._after(relative)

    def enters(self, relative: str) -> bool:
        """Whether a folder below ``base`` can hold such files."""
        return any(place < len(self._parts) for place in self._after(relative))

    def _after(self, relative: str) -> set[int]:
        """Every place in the pattern where one can stand after reading the names of a path; past the end, all of it is read."""
        places = self._skipping({0})
        for name in relative.split("/"):
            places = self._skipping({there for place in places if (there := self._step(place, name)) is not None})
        return places

    def _step(self, place: int, name: str) -> int | None:
        if place == len(self._parts):
            return None
        if self._parts[place] == "**":
            return place
        return place + 1 if self._names[place].match(name) else None

    def _skipping(self, places: set[int]) -> set[int]:
        """``**`` may stand for no folder at all."""
        for place in sorted(places):
            while place < len(self._parts) and self._parts[place] == "**":
                place += 1
                places.add(place)
        return places


def _choices(inside: str) -> list[str]:
    if span := _RANGE.fullmatch(inside):
        first, last = int(span[1]), int(span[2])
        if last < first or last - first >= _MOST_SHARDS:
            raise UsageError(f"{{{inside}}}: expected a range that runs upwards and names at most {_MOST_SHARDS:,} paths.")
        return [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]
