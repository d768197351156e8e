"""A folder of images, or those of its images that a pattern takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from convoy.serving.scoring.source._entry import Entry, Loaded
from convoy.serving.scoring.source._filesystem import Child, Files, Location
from convoy.serving.scoring.source._glob import Pattern
from convoy.serving.scoring.source._image_file import IMAGE_SUFFIXES, load_each, read_image_file, suffix_of
from convoy.serving.scoring.source._name import escape, printable, unescape
from convoy.serving.scoring.source._walk import walk


class FolderSource:
    """Images below a folder. The key and the locator are the path relative to it.

    Args:
        spec: As given.
        root: The folder.
        pattern: What is taken below it; None for everything.
        labels_from_folders: Take the first folder below ``root`` as the true label.
    """

    kind = "folder"

    def __init__(self, spec: str, root: Location, pattern: Pattern | None, *, labels_from_folders: bool) -> None:
        self.spec = spec
        self._root = root
        self._pattern = pattern
        self._labels_from_folders = labels_from_folders
        self._skipped: Mapping[str, int] = {}

    @property
    def skipped(self) -> Mapping[str, int]:
        """Counted by reason, after ``entries``."""
        return self._skipped

    def entries(self) -> Iterator[Entry]:
        """Every image, sorted by its path, bytewise."""
        files, root = self._root.files, self._root.path
        skipped: Counter[str] = Counter()
        for relative, child in walk(files, root, self._pattern, skipped):
            if reason := no_image(child):
                skipped[reason] += 1
            else:
                yield self._entry(files, root, relative, child)
        self._skipped = dict(skipped)

    def load(self, entries: Sequence[Entry]) -> Iterator[Loaded]:
        """Each image's file."""
        return load_each(entries, partial(_read, self._root), remote=self._root.files.remote)

    def block(self, start: int, stop: int) -> None:  # noqa: ARG002  # the protocol's
        """There is no array."""
        return

    def _entry(self, files: Files, root: str, relative: str, child: Child) -> Entry:
        try:
            info = child.info or files.info(files.join(root, relative))
            size, stamp = info.size, info.stamp
        except OSError:  # an input that cannot be read: reading it says why
            size, stamp = -1, ""
        folder, slash, _ = relative.partition("/")
        label = printable(folder) if slash and self._labels_from_folders else None
        return Entry(printable(relative), escape(relative), size, stamp, label)


def no_image(child: Child) -> str:
    """Why a file is no input; empty where it is one."""
    suffix = suffix_of(child.name)
    if suffix not in IMAGE_SUFFIXES:
        return f"{printable(suffix)} files" if suffix else "files without suffix"
    return "" if child.kind == "file" else "pipes, sockets or devices"


def _read(root: Location, entry: Entry) -> Loaded:
    return read_image_file(Location(root.files, root.files.join(root.path, unescape(entry.locator))), entry)
