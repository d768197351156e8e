"""``Problem``: one line of what the lint has to say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convoy.serving.repository.configuration.part import Severity


@dataclass(frozen=True)
class Problem:
    """Something about a model that a server would refuse, or serve otherwise than it reads.

    Attributes:
        model: The model's name.
        path: The file, or the folder, that it is about.
        line: The line in the file, from 1; None where it is about the whole of it.
        column: The column, from 1; None with the line.
        severity: ``error`` where the server that ``convoy serve`` starts refuses the model; ``warning`` where it serves it.
        message: What was expected, what was found, what to do.
    """

    model: str
    path: Path
    line: int | None
    column: int | None
    severity: Severity
    message: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line is not None else str(self.path)
        return f"{place}: {self.severity}: {self.message}"
