"""What was found about this machine, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at ("Python", "libpython").
        level: ``ok``; ``warning`` where something works less well than it could; ``problem`` where serving cannot work.
        found: What was found.
        advice: What to do about it; empty where nothing is to be done.
    """

    subject: str
    level: Level
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.found}" + (f" {self.advice}" if self.advice else "")


def ok(subject: str, found: str, advice: str = "") -> Finding:
    """A finding that is in order."""
    return Finding(subject, "ok", found, advice)


def warning(subject: str, found: str, advice: str) -> Finding:
    """A finding that serving can live with."""
    return Finding(subject, "warning", found, advice)


def problem(subject: str, found: str, advice: str) -> Finding:
    """A finding that serving cannot live with."""
    return Finding(subject, "problem", found, advice)
