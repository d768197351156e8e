"""What installed packages add to Convoy by entry points: networks, recipes and data sets."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from convoy.contract.errors import MissingDependencyError


def names(group: str) -> tuple[str, ...]:
    """The names that installed packages add to ``group``, in alphabetical order; nothing is imported."""
    return tuple(sorted({entry.name for entry in metadata.entry_points(group=group)}))


def find(group: str, name: str, *, what: str, fits: Callable[[Any], bool]) -> Any | None:
    """Load what a package adds to ``group`` under ``name``; None where none does.

    Args:
        group: Such as ``convoy.networks``.
        name: The entry point's name.
        what: What it must be, in words for the message.
        fits: Whether it is that.

    Raises:
        MissingDependencyError: Loading it fails, it is something else, or two packages add something of this name.
    """
    entries = list(metadata.entry_points(group=group, name=name))
    if not entries:
        return None
    packages = [_package(entry) for entry in entries]
    if len({entry.value for entry in entries}) > 1:
        raise MissingDependencyError(
            f"{name!r} ({group}): expected one package to add it, found {' and '.join(packages)}: uninstall one of them."
        )
    try:
        loaded = entries[0].load()
    except Exception as error:  # a stranger's module may raise anything when it is imported
        raise MissingDependencyError(
            f"{name!r} ({group}) of {packages[0]} cannot be loaded from {entries[0].value}: {type(error).__name__}: {error}. "
            "Repair or uninstall that package."
        ) from error
    if not fits(loaded):
        raise MissingDependencyError(
            f"{name!r} ({group}) of {packages[0]}: expected {what}, found {type(loaded).__name__} at {entries[0].value}."
        )
    return loaded


def _package(entry: metadata.EntryPoint) -> str:
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist is not None else "a package without a name"
