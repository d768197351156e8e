"""A model repository as Triton will see it: which models, and whether one has changed. What is valid is for Triton to say."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from convoy.contract.errors import RepositoryError, UsageError

Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, inode, time of change and size of what decides how a model is served."""

CONFIG_FILE = "config.pbtxt"


def find_models(repository: Path) -> dict[str, Signature]:
    """The models of a repository by name, with the signature of each.

    A model is a folder with a ``config.pbtxt`` or a numbered version folder; what begins with a dot is none.

    Raises:
        RepositoryError: The repository is no folder, or cannot be read.
    """
    try:
        folders = sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise RepositoryError(f"{repository}: expected a model repository (a folder), but: {error.strerror}.") from error
    return {path.name: _signature(path) for path in folders if _is_model(path)}


def check_repository(repository: Path) -> dict[str, Signature]:
    """The models of a repository that is to be served.

    Raises:
        UsageError: There is no such folder.
        RepositoryError: It is no repository, or has no model; the message says what to do.
    """
    if not repository.exists():
        raise UsageError(f"{repository}: no such folder. `convoy deploy EXPORT_DIR --repository {repository}` makes it.")
    if repository.is_dir() and ((repository / CONFIG_FILE).exists() or _versions(repository)):
        raise RepositoryError(f"{repository} is a model, not a repository of models. Give the folder above it: {repository.parent}")
    models = find_models(repository)
    if not models:
        names = sorted(path.name for path in repository.iterdir())
        found = f"only {', '.join(names[:5])}" if names else "nothing"
        raise RepositoryError(
            f"{repository}: expected at least one model (a folder with a {CONFIG_FILE}), found {found}. "
            f"`convoy deploy EXPORT_DIR --repository {repository}` puts one in."
        )
    return models


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG_FILE).exists() or bool(_versions(folder))


def _versions(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def _signature(folder: Path) -> Signature:
    """Of ``config.pbtxt`` and of every other file beside it; where there is no configuration, of the version folders."""
    paths = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    if not (folder / CONFIG_FILE).exists():
        paths += [folder / version for version in _versions(folder)]
    entries = []
    for path in sorted(paths):
        try:
            status = path.stat()
        except OSError:
            continue  # replaced while we looked: the next look sees it
        entries.append((path.name, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(entries)
