"""Values of ``config.pbtxt`` as they should be: whole numbers, flags, names. All of them are strings there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from convoy.contract.errors import UsageError

Reader: TypeAlias = "Callable[[str, str], str]"
"""Reads a value: what it is called in errors, its text -> the text that ONNX Runtime takes."""


def whole_number(what: str, text: str, *, least: int = 0, most: int = 2**64 - 1) -> int:
    """A whole number.

    Args:
        what: What it is called in the error.
        text: What the configuration says.
        least: The smallest that it may be.
        most: The largest.

    Raises:
        UsageError: It is none, or lies outside.
    """
    digits = text.strip()
    if not digits.removeprefix("-").isdecimal() or not digits.isascii() or not least <= int(digits) <= most:
        raise UsageError(f"{what}: expected a whole number from {least} to {most}, found '{text}'.")
    return int(digits)


def flag(what: str, text: str) -> bool:
    """``1`` or ``true``, ``0`` or ``false``, in any case.

    Raises:
        UsageError: It is something else.
    """
    value = text.strip().lower()
    if value not in ("0", "1", "false", "true"):
        raise UsageError(f"{what}: expected 0 or 1, found '{text}'.")
    return value in ("1", "true")


def read_flag(what: str, text: str) -> str:
    """A flag as ONNX Runtime's providers take it: ``1`` or ``0``."""
    return "1" if flag(what, text) else "0"


def read_number(least: int = 0, most: int = 2**64 - 1) -> Reader:
    """A reader of whole numbers."""

    def read(what: str, text: str) -> str:
        return str(whole_number(what, text, least=least, most=most))

    return read


def read_name(*names: str, of: Mapping[str, str] | None = None) -> Reader:
    """A reader of one of several names.

    Args:
        names: What may be said, and means itself.
        of: What may be said -> what it means.
    """
    meanings = {**{name: name for name in names}, **(of or {})}

    def read(what: str, text: str) -> str:
        if text.strip() not in meanings:
            raise UsageError(f"{what}: expected {' or '.join(meanings)}, found '{text}'.")
        return meanings[text.strip()]

    return read


def read_text(what: str, text: str) -> str:
    """Any text but an empty one.

    Raises:
        UsageError: It is empty.
    """
    if not text.strip():
        raise UsageError(f"{what}: expected a value, found nothing.")
    return text
