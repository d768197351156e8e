"""``ConfigText``: a ``config.pbtxt`` with the position of everything in it, and edits that leave the rest of it alone."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from google.protobuf import text_format

from convoy.contract.errors import RepositoryError
from convoy.serving.repository.configuration.edit import edit
from convoy.serving.repository.configuration.scanner import Field, ScanError, scan, walk
from convoy.serving.repository.configuration.schema import CONFIG, printed

CONFIG_FILE: Final = "config.pbtxt"


class Position(NamedTuple):
    """A place in a text.

    Attributes:
        line: From 1.
        column: From 1, in characters.
    """

    line: int
    column: int


class ConfigText:
    """The text of a ``config.pbtxt`` that protobuf's parser accepts.

    Args:
        text: The text.
        where: What errors call it: a path, usually.

    Attributes:
        text: The text, as it was given.
        message: The ``ModelConfig`` message that it says. Do not change it.

    Raises:
        RepositoryError: Triton's schema does not know what it says; the message begins with ``where:line:column``.
    """

    def __init__(self, text: str, where: str = CONFIG_FILE) -> None:
        self.text = text
        self.where = where
        try:
            self.message: Any = text_format.Parse(text, CONFIG())
        except text_format.ParseError as error:
            line, column = error.GetLine() or 1, error.GetColumn() or 1
            raise RepositoryError(f"{where}:{line}:{column}: {said(error)}") from error

    @classmethod
    def load(cls, path: Path) -> ConfigText:
        """Read a file.

        Raises:
            RepositoryError: It cannot be read, or Triton's schema does not know what it says.
        """
        return cls(read_text(path), str(path))

    @classmethod
    def of(cls, message: Any) -> ConfigText:
        """The text of a message, as protobuf prints it."""
        text = printed(message)
        return cls(text + "\n" if text else "")

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        return self.text.encode()

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The fields as they are written, with their spans."""
        try:
            return scan(self.text, CONFIG.DESCRIPTOR)
        except ScanError as error:  # protobuf's parser lets almost nothing through that the scanner does not
            line, column = position_in(self.text, error.offset)
            raise RepositoryError(f"{self.where}:{line}:{column}: {error}.") from error

    def position(self, path: str) -> Position:
        """Where a field stands, or else what encloses it; the first character where nothing does.

        Args:
            path: Such as ``instance_group[0].count`` or ``parameters["key"]``.
        """
        around = [one for one in self._starts if path == one or path.startswith((f"{one}.", f"{one}["))]
        return position_in(self.text, self._starts[max(around, key=len)]) if around else Position(1, 1)

    @cached_property
    def _starts(self) -> dict[str, int]:
        """Offsets by path: of a field's name, or of one value of a list."""
        starts: dict[str, int] = {}
        for path, field, element in walk(self.fields):
            start = element.start if element is not None and field.listed else field.start
            starts.setdefault(path, start)
        return starts

    def edit(self, target: Any) -> ConfigText:
        """The text that says ``target``: only what differs is written anew.

        Args:
            target: A ``ModelConfig`` message.

        Raises:
            RepositoryError: The text is written in a way that cannot be edited; nothing is lost.
        """
        edited = ConfigText(edit(self.text, self.fields, self.message, target), self.where)
        if edited.message != target:
            raise RepositoryError(
                f"{self.where}: cannot be edited in place. Write its fields in the usual form: one field a line, in braces."
            )
        return edited


def read_text(path: Path) -> str:
    """The text of a file, its line ends as they are.

    Raises:
        RepositoryError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RepositoryError(f"{path}: cannot be read: {reason or error}.") from error


def position_in(text: str, offset: int) -> Position:
    """The line and the column of an offset."""
    line = text.count("\n", 0, offset) + 1
    return Position(line, offset - text.rfind("\n", 0, offset))


def said(error: text_format.ParseError) -> str:
    """What protobuf's parser says of a text, without the position and the line that it quotes."""
    reason = re.sub(r"^\d+:\d+ : ", "", str(error))
    reason = re.sub(r"^'.*': (?=[A-Z])", "", reason, flags=re.DOTALL)
    return reason.rstrip(".") + "."
