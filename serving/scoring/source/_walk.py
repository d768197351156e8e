"""The files below a folder, one folder in memory at a time on each level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator

from convoy.contract.errors import DataError
from convoy.serving.scoring.source._filesystem import Child, Files, reason_of
from convoy.serving.scoring.source._glob import Pattern


def walk(files: Files, root: str, pattern: Pattern | None, skipped: Counter[str]) -> Iterator[tuple[str, Child]]:
    """Every file below ``root`` with its path relative to it, sorted by that path, bytewise.

    Links to folders are followed, unless they lead to a folder that they lie in. Hidden files and folders are skipped.

    Args:
        files: Where ``root`` is.
        root: A folder.
        pattern: What is taken; None for all.
        skipped: What is left out is counted here.

    Raises:
        DataError: A folder cannot be listed: images would be missing without a word.
    """
    stack: list[tuple[Iterator[Child], str, Hashable]] = [_enter(files, root, "")]  # no recursion: folders may lie deep
    while stack:
        children, below, _ = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            continue
        relative = f"{below}/{child.name}" if below else child.name
        folder = child.kind == "folder"
        if pattern is not None and not (pattern.enters(relative) if folder else pattern.matches(relative)):
            continue
        if child.name.startswith("."):
            skipped["hidden"] += 1
        elif not folder:
            yield relative, child
        else:
            entered = _enter(files, root, relative)
            if entered[2] is not None and any(entered[2] == above for _, _, above in stack):
                skipped["links in a circle"] += 1
            else:
                stack.append(entered)


def name_bytes(name: str) -> bytes:
    """The name as the file system has it, to sort by."""
    return name.encode("utf-8", "surrogateescape")


def _enter(files: Files, root: str, relative: str) -> tuple[Iterator[Child], str, Hashable]:
    path = files.join(root, relative) if relative else root
    try:
        children = sorted(files.children(path or "."), key=_order)
        return iter(children), relative, files.identity(path or ".")
    except OSError as error:
        raise DataError(f"{files.shown(path)}: cannot be listed: {reason_of(error)}. Make it readable, or move it away.") from error


def _order(child: Child) -> bytes:
    # The slash that follows a folder's name in every path below it takes part in the order of the paths.
    return name_bytes(f"{child.name}/" if child.kind == "folder" else child.name)
