"""What the checks look at: the files, the programs and the packages of one machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class World:
    """One machine, as the checks see it.

    Attributes:
        environment: The environment variables; ``PATH`` says where programs are.
        folder: The current folder: ``docker-compose.yml`` and what shadows a package may lie here.
        repository: The model repository.
        module_path: Where Python looks for packages, as ``sys.path``.
        root: The file system's root: ``proc``, ``sys``, ``dev`` and ``etc`` are beneath it.
        python: The interpreter that serves.
    """

    environment: Mapping[str, str]
    folder: Path
    repository: Path
    module_path: tuple[str, ...]
    root: Path = field(default_factory=lambda: Path("/"))
    python: str = sys.executable

    @classmethod
    def here(cls, repository: Path) -> World:
        """This machine and this process's environment."""
        return cls(dict(os.environ), Path.cwd(), repository, tuple(sys.path))


@dataclass(frozen=True)
class Answer:
    """What a program said.

    Attributes:
        status: Its exit status (negative: the signal that ended it); None where it was stopped because its time was over.
        output: Its standard output.
        error: Its standard error.
    """

    status: int | None
    output: str
    error: str

    @property
    def reason(self) -> str:
        """Why it failed, in one line: its own last words."""
        if self.status is None:
            return "no answer in time"
        lines = [line.strip() for line in (self.error.strip() or self.output.strip()).splitlines() if line.strip()]
        ending = f"signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
        return lines[-1] if lines else ending


class Programs:
    """Runs programs, all of them together within one time limit.

    Args:
        environment: What they run in.
        limit_s: How many seconds all that this object runs may take; counted from the first one's start.
    """

    def __init__(self, environment: Mapping[str, str], limit_s: float = 3.5) -> None:
        self.environment = dict(environment)
        self.limit_s = limit_s
        self._end: float | None = None

    def find(self, name: str) -> str | None:
        """Where the program ``name`` is; None where it is not."""
        return shutil.which(name, path=self.environment.get("PATH", ""))

    def run(self, words: Sequence[str], *, limit_s: float | None = None, stdin: str = "") -> Answer:
        """Run a program to its end, or until its time is over; then it and all that it started are killed.

        Args:
            words: The program, as a path, and its arguments.
            limit_s: At most so many seconds; never more than what is left of the whole limit.
            stdin: What it reads.
        """
        if self._end is None:
            self._end = time.monotonic() + self.limit_s
        left = max(0.0, self._end - time.monotonic())
        try:
            # A session of its own: a script's children would else hold the pipes open after the script has been killed.
            process = subprocess.Popen(
                list(words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.environment,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            return Answer(127, "", f"{words[0]}: {error.strerror}")
        try:
            output, error_text = process.communicate(stdin, timeout=min(left, limit_s if limit_s is not None else left))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, error_text = process.communicate()
            return Answer(None, output, error_text)
        return Answer(process.returncode, output, error_text)
