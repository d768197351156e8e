"""A real MLServer on a few models: its environment, its start, its end. Read with ``runpy`` by the tests."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Self

from convoy.serving.client import Client
from convoy.serving.triton.port import HOST, free_port

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[2] / ".venv-mlserver"
"""Where the environment is kept from one run of the tests to the next; git ignores it."""

PYTHONS = ((3, 10), (3, 13))
"""What the lock file is resolved for, and MLServer is made for: from the first, below the second."""

START_S = 60.0

_PROGRAM = """
import os, signal, sys, threading

def end_with_parent():
    os.read(0, 1)  # ends when the tests' process does, in whatever way
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=end_with_parent, daemon=True).start()
from mlserver.cli import main
sys.argv = ["mlserver", "start", sys.argv[1]]
main()
"""


def unsupported() -> str:
    """Why MLServer cannot run under this Python; empty where it can."""
    first, beyond = PYTHONS
    if first <= sys.version_info[:2] < beyond:
        return ""
    found = ".".join(map(str, sys.version_info[:2]))
    return f"MLServer 1.7 needs Python {first[0]}.{first[1]} or newer, below {beyond[0]}.{beyond[1]}; this is {found}"


def environment() -> Path:
    """The ``python`` of MLServer's environment, made from the lock file where there is none for it yet.

    Raises:
        RuntimeError: pip failed; the message has its words.
    """
    lock = HERE / "requirements.lock"
    key = hashlib.sha256(b"\0".join([lock.read_bytes(), sys.version.encode(), sys.base_prefix.encode()])).hexdigest()[:12]
    folder = ENVIRONMENTS / key
    python, done = folder / "bin" / "python", folder / "done"
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # other runs of the tests wait for this one's environment
        if not done.exists():
            for old in ENVIRONMENTS.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            _run(sys.executable, "-m", "venv", str(folder))
            # As `make setup` does: pip takes the packages from wherever it is configured to. Modules are compiled as they are used.
            pip = (str(python), "-m", "pip", "--disable-pip-version-check", "-qq")
            _run(*pip, "install", "--no-compile", "--require-hashes", "--no-deps", "-r", str(lock))
            done.touch()
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


class MlServer:
    """MLServer on 127.0.0.1, on free ports; a context manager.

    Args:
        folder: An empty folder for settings, models and log.
        models: ``model-settings.json`` by model name, ``name`` and ``parameters`` left out.
    """

    def __init__(self, folder: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
        self._log = folder / "log"
        self._repository = folder / "repository"
        self._ports = {name: free_port() for name in ("http", "grpc", "metrics")}
        for name, settings in models.items():
            (self._repository / name).mkdir(parents=True)
            shutil.copy(HERE / "models.py", self._repository / name)
            document = {"name": name, **settings, "parameters": {"version": "1"}}
            (self._repository / name / "model-settings.json").write_text(json.dumps(document))
        settings = {"host": HOST, "parallel_workers": 0, "debug": False, **{f"{k}_port": v for k, v in self._ports.items()}}
        (self._repository / "settings.json").write_text(json.dumps(settings))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http_url(self) -> str:
        """Its REST."""
        return f"http://{HOST}:{self._ports['http']}"

    @property
    def grpc_url(self) -> str:
        """Its gRPC."""
        return f"grpc://{HOST}:{self._ports['grpc']}"

    @property
    def pid(self) -> int:
        """Its process, which is the leader of its group."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        python = environment()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLSERVER_"))}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), "-c", _PROGRAM, str(self._repository)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._log.parent,
                env=clean,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # itself, where it does not end, and whatever it started
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_S
        with Client(self.http_url, timeout_s=2) as rest, Client(self.grpc_url, timeout_s=2) as grpc:
            while not (rest.ready() and grpc.ready()):
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"MLServer is not ready ({self._process.poll()}):\n{self._log.read_text()[-3000:]}")
                time.sleep(0.05)
