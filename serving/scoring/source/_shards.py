"""Files that hold many inputs each: which they are, and whether they are still the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from convoy.contract.errors import DataError, SourceChangedError
from convoy.serving.scoring.source._entry import Entry
from convoy.serving.scoring.source._filesystem import Files, reason_of
from convoy.serving.scoring.source._name import escape, unescape


@dataclass(frozen=True)
class Shards:
    """Files of one kind.

    Attributes:
        files: Where they are.
        root: The folder that their names are relative to.
        names: In order.
        skipped: What lay among them and is none.
    """

    files: Files
    root: str
    names: Sequence[str]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def path(self, name: str) -> str:
        """Where a shard is."""
        return self.files.join(self.root, name)

    def shown(self, name: str) -> str:
        """A shard in a message."""
        return self.files.shown(self.path(name))

    def version(self, name: str) -> str:
        """The stamp of every entry of a shard.

        Raises:
            DataError: It is not there.
        """
        try:
            info = self.files.info(self.path(name))
        except OSError as error:
            raise DataError(f"{self.shown(name)}: cannot be read: {reason_of(error)}") from error
        if info.kind != "file":
            raise DataError(
                f"{self.shown(name)}: expected a file, found {'a folder' if info.kind == 'folder' else 'none to read'}."
            )
        return info.version

    def check(self, entries: Sequence[Entry]) -> None:
        """See that the shards of these entries are the ones that were listed.

        Raises:
            SourceChangedError: One is another by now, or is gone.
        """
        for name, version in {(split_locator(entry)[0], entry.stamp) for entry in entries}:
            check_version(self.files, self.path(name), version)


def check_version(files: Files, path: str, expected: str) -> None:
    """See that a file has the version that was listed.

    Raises:
        SourceChangedError: It has another, or is gone.
        DataError: It cannot be asked.
    """
    try:
        found = files.info(path).version
    except FileNotFoundError as error:
        raise SourceChangedError(
            f"{files.shown(path)}: it is gone since it was listed. Put it back, or start a new run."
        ) from error
    except OSError as error:
        raise DataError(f"{files.shown(path)}: cannot be read: {reason_of(error)}") from error
    if found != expected:
        raise SourceChangedError(
            f"{files.shown(path)}: it changed since it was listed: expected {expected} (stamp:bytes), found {found}. "
            "Put the old file back, or start a new run."
        )


def make_locator(name: str, place: str) -> str:
    """A shard's name, and where in it the input is: text without ``#``."""
    return f"{escape(name)}#{place}"


def split_locator(entry: Entry) -> tuple[str, str]:
    """What ``make_locator`` was given. The name may hold ``#`` itself."""
    name, _, place = entry.locator.rpartition("#")
    return unescape(name), place
