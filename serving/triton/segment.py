"""The shared-memory segments of a server's backend processes. Triton forgets the segment of one that was killed."""

from __future__ import annotations

from collections.abc import Iterable

from convoy.serving.triton import guard

ORPHANED_S = 30.0
"""A segment that belongs to no living process this long is nobody's: a new one gets its process within moments."""


class OrphanedSegments:
    """Removes segments that no living backend process uses.

    Args:
        prefix: How the names of the server's segments begin; no other segment is looked at.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._since: dict[str, float] = {}

    def clear(self, used: Iterable[str], now: float) -> list[str]:
        """Remove what has been nobody's for ``ORPHANED_S``.

        Args:
            used: Names of the segments of living processes.
            now: Seconds of a monotonic clock.

        Returns:
            The names of what was removed.
        """
        unused = self.names() - set(used)
        self._since = {name: self._since.get(name, now) for name in unused}
        old = [name for name, since in self._since.items() if now - since >= ORPHANED_S]
        for name in old:
            (guard.SHM / name).unlink(missing_ok=True)
        return old

    def names(self) -> frozenset[str]:
        """The names of all segments of the server."""
        return frozenset(path.name for path in guard.SHM.glob(f"{self._prefix}*"))
