"""The ids of requests: how a call is found again in the log of the server that answered it."""

from __future__ import annotations

import os
from itertools import count
from typing import Final

from convoy.contract.errors import UsageError

LONGEST: Final = 128
"""Characters of an id that a caller brings along: every request carries it, and every line of a log that names it."""


class RequestIds:
    """Makes ids that no other client in the world makes: 64 random bits, drawn once, and a number.

    Drawn anew in a forked process, which would otherwise count on from the same number as its parent. Safe under threads.
    """

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._next = count(1).__next__

    def new(self) -> str:
        """An id that was not given before."""
        return f"{self._prefix}-{self._next()}"


def check_request_id(request_id: str) -> str:
    """Return ``request_id``, which a caller has brought along, where it can be one.

    Raises:
        UsageError: It is no text, too long, or holds what would break a line of a log.
    """
    if not isinstance(request_id, str) or len(request_id) > LONGEST or not (request_id.isascii() and request_id.isprintable()):
        raise UsageError(
            f"request_id: expected up to {LONGEST} printable ASCII characters, or '' for one that is made up, found {request_id!r}."
        )
    return request_id


def part_id(request_id: str, start: int) -> str:
    """The id of the part of a call's input that begins at row ``start``: the call's own for the first, else with the row."""
    return f"{request_id}.{start}" if start else request_id
