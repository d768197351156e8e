"""How many requests of one big input are under way at once: as many as the server has use for."""

from __future__ import annotations

import math
from typing import Final

_FEW_WAIT: Final = 2.0
_MANY_WAIT: Final = 4.0
_LOOK_AGAIN: Final = 500


class Window:
    """Grows while answers take no longer for it, shrinks while they do, halves where the server sheds load.

    After TCP Vegas (Brakmo and Peterson 1995): of ``limit`` requests under way ``limit * (1 - shortest / latest)`` wait, by the
    time that answers take and the shortest time that one took. Between 2 and 4 waiting requests keep a server busy and cost its
    other callers little. Every 500 answers half as many are under way for a moment, to see anew how short the shortest is: the
    server may have become slower, or faster. One thread at a time may use it.

    Args:
        most: The most requests under way.
    """

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._limit = min(2.0, self._most)
        self._shortest_s = math.inf
        self._rows = 0
        self._starting = True
        self._until_look = _LOOK_AGAIN
        self._looking: tuple[int, float] | None = None  # for how many answers still, and the limit before

    @property
    def limit(self) -> int:
        """How many requests may be under way now, at least one."""
        return int(self._limit)

    def answered(self, seconds: float, rows: int) -> None:
        """A request was answered.

        Args:
            seconds: How long it took.
            rows: How many rows it carried; those that carry fewer than others tell nothing.
        """
        if rows < self._rows or seconds <= 0:
            return
        if rows > self._rows:
            self._rows, self._shortest_s = rows, math.inf
        self._shortest_s = min(self._shortest_s, seconds)
        if self._looking is not None:
            left, before = self._looking
            self._looking = (left - 1, before) if left > 1 else None
            self._limit = self._limit if left > 1 else before
            return
        self._until_look -= 1
        if self._until_look == 0:
            self._until_look = _LOOK_AGAIN
            self._looking = (2 * self.limit, self._limit)
            self._limit, self._shortest_s = max(1.0, self._limit / 2), math.inf
            return
        waiting = self._limit * (1 - self._shortest_s / seconds)
        if waiting < _FEW_WAIT:
            self._limit += 1 if self._starting else 1 / self._limit
        else:
            self._starting = False
            if waiting > _MANY_WAIT:  # in one round of answers as many fewer as wait for nothing
                self._limit -= (waiting - _MANY_WAIT) / self._limit
        self._limit = min(self._most, max(1.0, self._limit))

    def refused(self) -> None:
        """The server had no room."""
        self._starting = False
        self._looking = None
        self._limit = max(1.0, self._limit / 2)
