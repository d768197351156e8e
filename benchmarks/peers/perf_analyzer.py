"""NVIDIA's ``perf_analyzer``: the load generator that Triton's own figures come from, made ready to run.

The program is in PyPI's ``tritonclient`` wheel. It needs Debian's ``libb64-0d``, and CUDA's runtime library though it asks for no
GPU: the server's wheel carries one under another name.
"""

from __future__ import annotations

import csv
import ctypes.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Final

from convoy.contract.errors import ConvoyError, MissingDependencyError

REQUIREMENT: Final = "tritonclient==2.51.0"

_ANY_PERCENT: Final = 999
"""How far its windows may differ: it says nothing at all of a point that it calls unstable."""


@dataclass(frozen=True)
class PerfSample:
    """What perf_analyzer saw.

    Attributes:
        rate_per_s: Requests a second.
        p50_ms: Half of them came within this time.
        p99_ms: All but a hundredth came within this time.
        cores: The processor time that it took itself, as a share of one core.
    """

    rate_per_s: float
    p50_ms: float
    p99_ms: float
    cores: float


@dataclass(frozen=True)
class PerfAnalyzer:
    """The program, ready to run.

    Attributes:
        path: The program.
        libraries: The folder of the libraries that it needs besides the system's.
    """

    WINDOWS: ClassVar = 3
    """How many windows a measurement has."""

    path: Path
    libraries: Path

    @classmethod
    def ready(cls, cache: Path) -> PerfAnalyzer:
        """Find it, or install it into a folder of its own.

        Args:
            cache: Where to keep it.

        Raises:
            MissingDependencyError: A library is missing; the message says how to get it.
            ConvoyError: pip cannot install it.
        """
        if ctypes.util.find_library("b64") is None and not _loads("libb64.so.0d"):
            raise MissingDependencyError("perf_analyzer needs the library libb64.so.0d: apt-get install libb64-0d.")
        folder = cache / REQUIREMENT.replace("==", "-")
        path = folder / "bin" / "perf_analyzer"
        if not path.exists():
            command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
            installed = subprocess.run(
                [*command, "--target", str(folder), REQUIREMENT], capture_output=True, text=True, check=False
            )
            if installed.returncode or not path.exists():
                raise ConvoyError(f"{REQUIREMENT} cannot be installed into {folder}: {installed.stderr.strip()[-500:]}")
        path.chmod(0o755)
        libraries = folder / "libraries"
        libraries.mkdir(exist_ok=True)
        link = libraries / "libcudart.so.12"
        link.unlink(missing_ok=True)
        link.symlink_to(_cuda_runtime())
        return cls(path, libraries)

    def measure(self, url: str, model_name: str, *, in_flight: int, window_s: float, mode: str = "async") -> PerfSample:
        """Put a closed loop on a model, for three windows.

        Args:
            url: ``grpc://HOST:PORT`` or ``http://HOST:PORT``.
            model_name: The model.
            in_flight: How many requests are under way at once.
            window_s: How long a window is.
            mode: "async" (one thread sends, others take the answers) or "sync" (a thread a request in flight).

        Raises:
            ConvoyError: It failed, or its requests did.
        """
        protocol, _, address = url.partition("://")
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder, "table.csv")
            command = [
                str(self.path), "-m", model_name, "-i", protocol, "-u", address, f"--{mode}", "-b", "1",
                "--concurrency-range", f"{in_flight}:{in_flight}", "-p", str(round(window_s * 1000)),
                "-r", str(self.WINDOWS), "-s", str(_ANY_PERCENT), "-f", str(table),
            ]  # fmt: skip
            environment = {**os.environ, "LD_LIBRARY_PATH": str(self.libraries)}
            before = _children_s()
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            cores = (_children_s() - before) / (time.perf_counter() - start)
            rows = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
        if len(rows) != 1:
            raise ConvoyError(f"perf_analyzer on {url}: {(done.stderr or done.stdout).strip()[-500:]}")
        row = rows[0]
        return PerfSample(
            rate_per_s=float(row["Inferences/Second"]),
            p50_ms=float(row["p50 latency"]) / 1e3,
            p99_ms=float(row["p99 latency"]) / 1e3,
            cores=cores,
        )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _cuda_runtime() -> Path:
    """CUDA 12's runtime library as the server's wheel carries it."""
    try:
        files = metadata.files("nvidia-pytriton") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.startswith("libcudart-") and ".so.12" in file.name:
            return Path(str(file.locate()))
    raise MissingDependencyError(
        "perf_analyzer needs libcudart.so.12, which the server's wheel carries: pip install 'convoy[serve]'."
    )


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
