"""Versions of packages, of Triton and of its containers, compared."""

from __future__ import annotations

import re
from typing import TypeAlias

Key: TypeAlias = tuple[tuple[int, ...], int]

_VERSION = re.compile(r"\s*[vr]?(\d+(?:\.\d+)*)(.*)", re.DOTALL)


def key(version: str) -> Key:
    """What versions are ordered by: "1.9" before "1.10rc1" before "1.10.0", which equals "1.10" and "1.10+cu13".

    Raises:
        ValueError: It begins with no number.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError(f"expected a version such as 1.10.2, found {version!r}")
    numbers = [int(part) for part in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    early = re.match(r"[._-]?(a|b|c|rc|dev|alpha|beta|pre)", match[2])
    return tuple(numbers), -1 if early else 0
