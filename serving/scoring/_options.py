"""What a run is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, get_args

from convoy.contract.errors import UsageError
from convoy.serving.client import Client, Tls
from convoy.serving.client._deadline import check_timeout
from convoy.serving.scoring._progress import Progress
from convoy.serving.scoring._table import FORMATS, Format

Engine: TypeAlias = Literal["local", "ray"]


@dataclass(frozen=True)
class Options:
    """What a run is asked for; see ``score``."""

    model_name: str
    source: str
    out: str
    urls: str | Sequence[str]
    tls: Tls | None
    client: Client | None
    in_process: Path | None
    model_version: str
    top_k: int
    labels_from_folders: bool
    column: str | None
    label_column: str | None
    box: tuple[int, int, int, int] | None
    chunk_rows: int
    rows_per_file: int
    format: Format
    in_flight: int
    timeout_s: float
    patience_s: float
    headers: Mapping[str, str] | None
    storage_options: Mapping[str, Any] | None
    engine: Engine
    workers: int
    stdin: IO[str] | None
    on_progress: Callable[[Progress], None] | None
    on_waiting: Callable[[str], None] | None
    report: Path | None
    reference: str | None

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("top_k", self.top_k, 1, 1 << 30),
            ("chunk_rows", self.chunk_rows, 1, 1 << 20),
            ("rows_per_file", self.rows_per_file, 1, 1 << 30),
            ("in_flight", self.in_flight, 1, 256),
            ("workers", self.workers, 1, 4096),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise UsageError(f"{name}: expected a whole number from {least} to {most:,}, found {value!r}.")
        if self.rows_per_file % self.chunk_rows:
            below = self.rows_per_file // self.chunk_rows * self.chunk_rows
            near = " or ".join(f"{rows:,}" for rows in (below, below + self.chunk_rows) if rows)
            raise UsageError(
                f"rows_per_file (--rows-per-file): expected a multiple of chunk_rows (--chunk-rows, {self.chunk_rows:,}), since "
                f"files are made of whole chunks; found {self.rows_per_file:,}. {near} would do."
            )
        check_timeout(self.timeout_s)
        if isinstance(self.patience_s, bool) or not isinstance(self.patience_s, (int, float)) or not 0 <= self.patience_s < 1e9:
            raise UsageError(f"patience_s: expected seconds from 0, found {self.patience_s!r}.")
        if self.storage_options is not None and not isinstance(self.storage_options, Mapping):
            raise UsageError(f"storage_options: expected a mapping of names to values, found {self.storage_options!r}.")
        if self.format not in FORMATS:
            raise UsageError(f"format: expected one of {', '.join(FORMATS)}, found {self.format!r}.")
        if self.engine not in get_args(Engine):
            raise UsageError(f"engine: expected one of {', '.join(get_args(Engine))}, found {self.engine!r}.")
        if self.in_process is not None and self.engine != "local":
            raise UsageError("in_process: one process scores with the engine 'local' only.")
        if self.engine == "ray":
            if self.client is not None:
                raise UsageError("client: it cannot be sent to Ray's workers: give url, tls and headers, and each makes its own.")
            if self.source == "-":
                raise UsageError("source: Ray's workers cannot read this standard input: write the list into a file they can read.")


def path_of(value: Any, name: str) -> str:
    """A path or URL as text.

    Raises:
        UsageError: It is none.
    """
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str):
        hint = " A list of paths is a source as a text file, one a line." if isinstance(value, (list, tuple)) else ""
        raise UsageError(f"{name}: expected a path or a URL, found {type(value).__name__}.{hint}")
    if not text:
        raise UsageError(f"{name}: expected a path or a URL, found an empty name.")
    return text
