"""Load from tools written in C, which leave the cores to the server: wrk for REST, h2load for gRPC.

Both are Debian packages (``wrk``, ``nghttp2-client``). gRPC calls are HTTP/2 posts, so h2load can send them; its answers are
counted by their bytes, since gRPC puts its errors into trailers that h2load does not read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from convoy.contract.errors import ConvoyError, MissingDependencyError

_LUA: Final = Path(__file__).with_name("post.lua")
_PROBE_CALLS: Final = 20
"""Calls for each in flight before the ones that count, which say how many those are to be."""
_PACKAGES: Final = {"wrk": "wrk", "h2load": "nghttp2-client"}


@dataclass(frozen=True)
class Sample:
    """What a load tool saw.

    Attributes:
        rate_per_s: Answered requests a second.
        p50_ms: Half of them came within this time.
        p99_ms: All but a hundredth came within this time.
    """

    rate_per_s: float
    p50_ms: float
    p99_ms: float


def require(tool: str) -> str:
    """The path of a load tool.

    Raises:
        MissingDependencyError: It is not installed.
    """
    path = shutil.which(tool)
    if path is None:
        raise MissingDependencyError(f"expected the load tool {tool} on PATH, found none: apt-get install {_PACKAGES[tool]}.")
    return path


def post(url: str, body: bytes, headers: dict[str, str], *, in_flight: int, seconds: float) -> Sample:
    """Load a REST endpoint: each connection sends its next request when it has its answer.

    Raises:
        ConvoyError: A request failed.
        MissingDependencyError: wrk is not installed.
    """
    seconds = max(1, round(seconds))
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        lines = "\n".join(f"{name}: {value}" for name, value in headers.items())
        command = [
            require("wrk"),
            "-t1",
            f"-c{in_flight}",
            f"-d{seconds}s",
            "--timeout",
            "30s",
            "-s",
            str(_LUA),
            url,
        ]
        variables = {**os.environ, "BENCH_BODY": file.name, "BENCH_HEADERS": lines}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if "RESULT " not in done.stdout:
        raise ConvoyError(f"wrk on {url}: {(done.stderr or done.stdout).strip()[-500:]}")
    found = json.loads(done.stdout.split("RESULT ", 1)[1])
    if found["n_failed"] or not found["n"]:
        raise ConvoyError(f"wrk on {url}: {found['n_failed']} of {found['n']} requests failed.")
    return Sample(_rate(found["n"], found["seconds"], in_flight, found["mean_ms"]), found["p50_ms"], found["p99_ms"])


def call(url: str, message: bytes, *, n_answer_bytes: int, in_flight: int, seconds: float) -> Sample:
    """Load a gRPC method: up to four connections, what is more in flight as streams of these.

    Args:
        url: ``http://HOST:PORT/SERVICE/METHOD``.
        message: The serialised request.
        n_answer_bytes: How many bytes of data an answer has at least; less says that calls failed.
        in_flight: How many calls are under way at once.
        seconds: For how long.

    Raises:
        ConvoyError: Calls failed.
        MissingDependencyError: h2load is not installed.
    """
    # A number of calls, not a time, at whose end h2load cancels those under way: a cancelled call may end Triton 2.51.
    found = _counted_calls(url, message, n_answer_bytes, in_flight, _PROBE_CALLS * in_flight)
    return _counted_calls(url, message, n_answer_bytes, in_flight, max(_PROBE_CALLS * in_flight, round(found.rate_per_s * seconds)))


def _counted_calls(url: str, message: bytes, n_answer_bytes: int, in_flight: int, n: int) -> Sample:
    connections = min(in_flight, 4)
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "message"), Path(folder, "log")
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        command = [
            require("h2load"), f"-c{connections}", f"-m{in_flight // connections}", "-t1", f"-n{n}", f"--log-file={log}",
            "-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers", url,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not log.exists() or not log.stat().st_size:
            raise ConvoyError(f"h2load on {url}: {(done.stderr or done.stdout).strip()[-500:]}")
        rows = np.loadtxt(log, dtype=np.int64, ndmin=2)
    n_data = int(re.findall(r"\((\d+)\) data", done.stdout)[0])
    n_bad = int((rows[:, 1] != 200).sum())
    if n_bad or len(rows) != n or n_data < 0.95 * n * n_answer_bytes:
        raise ConvoyError(f"h2load on {url}: {n_bad} of {len(rows)} calls failed ({n} were to be made), {n_data} bytes of answers.")
    p50, p99 = np.percentile(rows[:, 2], [50, 99]) / 1e3
    seconds = (int((rows[:, 0] + rows[:, 2]).max()) - int(rows[:, 0].min())) / 1e6
    return Sample(_rate(n, seconds, in_flight, float(rows[:, 2].mean()) / 1e3), float(p50), float(p99))


def _rate(n: int, seconds: float, in_flight: int, mean_ms: float) -> float:
    """Requests a second.

    Where answers are slow, those that were under way at the end are a good part of all, and were not counted: 16 in flight that
    take 0.15 s each, over 4 s, are 4 % too few. There Little's law says the rate: as many as are in flight come in the time of one.
    """
    return in_flight / mean_ms * 1e3 if mean_ms / 1e3 > seconds / 200 else n / seconds
