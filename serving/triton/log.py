"""Triton's log: its last lines, and the lines in which it says what went wrong."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

_STAMP = re.compile(r"^([EWIF]\d{4} [\d:.]+ \d+ [\w./-]+:\d+|\[libprotobuf ERROR [^\]]*)\]\s*")
_ERROR = re.compile(r"^[EF]\d{4} |^\[libprotobuf ERROR|error:")
_LAYER = re.compile(
    r"^(ERROR: Failed to create instance: |failed to load '[^']*' version \d+: |load failed for model '[^']*': |"
    r"version \d+ is at UNAVAILABLE state: |Poll failed for model directory '[^']*': |error: creating server: |"
    r"(Internal|Invalid argument|Not found|Unavailable|Unsupported|Unknown|Already exists)( - |: )|TritonModelException: |"
    r"Error parsing text-format inference.ModelConfig: )"
)
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
        """What went wrong, in Triton's words, each reason once."""
        lines = filter(_says_something, self.read(since).splitlines())
        return list(dict.fromkeys(reason_in(strip(line)) for line in lines if _ERROR.match(line)))

    def follow(self, write: Callable[[str], None], stop: threading.Event) -> None:
        """Pass on what is logged, line by line, from the server's start until ``stop`` is set."""
        at, rest = self._start, b""
        while True:
            last_round = stop.is_set()
            while block := os.pread(self.file.fileno(), 1 << 16, at):
                at += len(block)
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    write(line.decode("utf-8", "replace"))
            if last_round:
                return
            stop.wait(0.2)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def strip(line: str) -> str:
    """A log line without its stamp, quotes and escapes."""
    text = _STAMP.sub("", line).strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('\\"', '"').replace("\\n", "\n").replace("\\'", "'")
    return text.strip()


def reason_in(text: str) -> str:
    """The reason in something that Triton said, without its layers of "failed to load", its codes and its Python traces."""
    reason = text.split("\n\nAt:\n")[0].split("\nAt:\n")[0].strip().rstrip(";").strip()
    while (stripped := _LAYER.sub("", reason)) != reason:
        reason = stripped
    return "; ".join(dict.fromkeys(reason.split("; ")))  # a warm-up says the same of every image of its batch


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(("|", "+")) and not any(noise in line for noise in _NOISE)
