"""``convoy serve`` as a process of its own, private to one benchmark: started, watched from outside, and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from convoy.contract.errors import ServerError
from convoy.serving.triton.guard import SHM
from convoy.serving.triton.stub import Stub, find_stubs

_STOP_WITHIN_S = 40.0


@dataclass(frozen=True)
class ServeProcess:
    """A running ``convoy serve``.

    Attributes:
        process: The process of the command.
        urls: "grpc", "http" and "metrics".
        folder: Its temporary folder, which nobody else uses.
        started_s: How long it took to answer.
    """

    process: subprocess.Popen[str]
    urls: dict[str, str]
    folder: Path
    started_s: float

    @property
    def guard_pid(self) -> int:
        """Its guard: another after the server was started again.

        Raises:
            ServerError: There is none.
        """
        return _only_child(self.process.pid)

    @property
    def server_pid(self) -> int:
        """The process of tritonserver: another after it was started again.

        Raises:
            ServerError: There is none.
        """
        return _only_child(self.guard_pid)

    def stubs(self) -> list[Stub]:
        """The backend processes that are alive."""
        return find_stubs(self.server_pid)

    def segments(self) -> list[Path]:
        """The shared-memory segments of this server."""
        tokens = [folder.name.rpartition("-")[2] for folder in self.folder.glob("convoy-triton-*")]
        return [path for path in SHM.iterdir() if any(token in path.name for token in tokens)]

    def said(self) -> str:
        """What it said on stderr."""
        return (self.folder / "stderr").read_text()


@contextmanager
def serving(repository: Path, environment: dict[str, str] | None = None, python: str = sys.executable) -> Iterator[ServeProcess]:
    """Run ``convoy serve`` on free ports until the block ends.

    Args:
        repository: The model repository.
        environment: Variables beside this process's own.
        python: The interpreter, whose Convoy is served with.

    Raises:
        ServerError: It did not start; the message is its own.
    """
    with tempfile.TemporaryDirectory(prefix="convoy-benchmark-") as name:
        folder = Path(name)
        began = time.perf_counter()
        with (folder / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                [python, "-c", "from convoy.cli import main; main()", "serve", "--repository", str(repository), "--json",
                 "--http-port=0", "--grpc-port=0", "--metrics-port=0", "--log", str(folder / "triton.log")],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **(environment or {}), "TMPDIR": name},
            )  # fmt: skip
        try:
            document = _introduction(process)
            started_s = time.perf_counter() - began
            if document is None:
                process.wait()
                raise ServerError(f"convoy serve did not start: {(folder / 'stderr').read_text()}")
            yield ServeProcess(process, document["urls"], folder, started_s)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _only_child(pid: int) -> int:
    try:
        children = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        children = []
    if not children:
        raise ServerError(f"process {pid} of `convoy serve` has no child: the server does not run.")
    return children[0].pid


def _introduction(process: subprocess.Popen[str]) -> dict[str, dict[str, str]] | None:
    """The document that it prints when every model answers; None where it ended instead."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            document: dict[str, dict[str, str]] = json.loads("".join(lines))
            return document
    return None
