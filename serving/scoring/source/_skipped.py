"""Words for what is in a source and is no input."""

from __future__ import annotations

from collections.abc import Mapping


def describe_skipped(skipped: Mapping[str, int], *, before: str = "") -> str:
    """Words for what was skipped: "2 hidden, 1 .txt files"; empty where nothing was."""
    return before + ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) if skipped else ""
