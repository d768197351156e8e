"""What was found about this machine, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "info", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What was looked at ("Python", "libpython").
        level: ``ok``; ``info`` where there is nothing to do but something to know; ``warning`` where something works less well or
            less safely than it could; ``problem`` where it cannot work, or stands open to others.
        found: What was found.
        expected: What should have been found; empty where that is clear.
        advice: What to do about it; empty where nothing is to be done.
        group: What it belongs to ("GPU", "Docker").
        sources: Where to read more: "CVE-2025-23319 https://...".
    """

    name: str
    level: Level
    found: str
    expected: str = ""
    advice: str = ""
    group: str = ""
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = f"expected {self.expected}, found {self.found}" if self.expected else self.found
        return " ".join(filter(None, [f"{self.name}: {_sentence(found)}", _sentence(self.advice)]))


def ok(name: str, found: str, advice: str = "") -> Finding:
    """A finding that is in order."""
    return Finding(name, "ok", found, advice=advice)


def info(name: str, found: str, advice: str = "", *, sources: tuple[str, ...] = ()) -> Finding:
    """A finding that needs nothing done."""
    return Finding(name, "info", found, advice=advice, sources=sources)


def warning(name: str, found: str, advice: str, *, expected: str = "", sources: tuple[str, ...] = ()) -> Finding:
    """A finding that serving can live with."""
    return Finding(name, "warning", found, expected, advice, sources=sources)


def problem(name: str, found: str, advice: str, *, expected: str = "", sources: tuple[str, ...] = ()) -> Finding:
    """A finding that serving cannot live with."""
    return Finding(name, "problem", found, expected, advice, sources=sources)


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
