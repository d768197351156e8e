"""Triton's log: its last lines, and the lines in which it says what went wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO

_STAMP = re.compile(r"^[EWIF]\d{4} [\d:.]+ \d+ [\w./-]+:\d+\]\s*")
_ERROR = re.compile(r"^[EF]\d{4} ")
_NOISE = ("NVML", "CudaDriverHelper", "DCGM", "pinned system memory", "pinned_memory_manager", "cuda_memory_manager")
_MAX_READ_BYTES = 256 * 1024


class TritonLog:
    """The log file of one server, read by handle: it can be read after it was removed.

    Args:
        path: Where it is; made where it is not, appended to where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] = path.open("a+b", buffering=0)
        self._start = self.file.seek(0, os.SEEK_END)

    def position(self) -> int:
        """Where the log ends now, for ``errors(since=...)``."""
        return os.fstat(self.file.fileno()).st_size

    def read(self, since: int | None = None) -> str:
        """What was logged since a position (the server's start, if None), the last 256 KiB of it."""
        end = self.position()
        start = max(self._start if since is None else since, end - _MAX_READ_BYTES)
        return os.pread(self.file.fileno(), end - start, start).decode("utf-8", "replace")

    def tail(self, n_lines: int = 12) -> list[str]:
        """The last lines that say something."""
        return [line for line in self.read().splitlines() if _says_something(line)][-n_lines:]

    def errors(self, since: int | None = None) -> list[str]:
        """What went wrong, in Triton's words, without stamps."""
        lines = filter(_says_something, self.read(since).splitlines())
        return list(dict.fromkeys(strip(line) for line in lines if line.startswith("error:") or _ERROR.match(line)))

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def strip(line: str) -> str:
    """A log line without its stamp, quotes and escapes."""
    text = _STAMP.sub("", line).strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('\\"', '"').replace("\\n", "\n").replace("\\'", "'")
    return text.strip()


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(("|", "+")) and not any(noise in line for noise in _NOISE)
