"""Scoring on Ray's workers over two Tritons: the rows of one process, whoever of them is killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from convoy.serving.scoring import score
from convoy.serving.triton import TritonServer
from convoy.serving.triton.port import HOST, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

N = 12_000
CHUNK_ROWS = 100
AUTHORISED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
OPTIONS: dict[str, Any] = {"chunk_rows": CHUNK_ROWS, "rows_per_file": 50 * CHUNK_ROWS, "top_k": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, int]]:
    """A Ray cluster of this machine: its address, and the process that all of its own come from."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets' names must be short
    address = f"{HOST}:{free_port()}"
    words = ["start", "--head", "--block", f"--port={address.rsplit(':')[-1]}", f"--temp-dir={folder}", "--num-cpus=3"]
    words += [f"--node-ip-address={HOST}"]
    words += [
        f"--node-ip-address={HOST}",
        "--include-dashboard=false",
        f"--object-store-memory={128 << 20}",
        "--disable-usage-stats",
    ]
    program = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(program, env={**os.environ, **AUTHORISED}, **pipes) as head:
        try:
            until(lambda: bool(list(Path(folder).glob("session_latest/sockets/raylet*"))), head, "Ray's sockets")
            yield address, head.pid
        finally:
            for process in [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def servers(tmp_path: Path, write_tiny_model: Callable[..., Path]) -> Iterator[list[TritonServer]]:
    """Two Tritons with the same model."""
    write_tiny_model(tmp_path / "repository")
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with TritonServer(tmp_path / "repository", **ports) as first, TritonServer(tmp_path / "repository", **ports) as second:
        yield [first, second]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (N, 4, 4), dtype=np.uint8))
    return path


def until(condition: Callable[[], bool], process: subprocess.Popen[Any], what: str, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"it ended before: {what}: {process.stdout and process.stdout.read()}"
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def begin(engine: str, source: Path, out: Path, servers: list[TritonServer], address: str) -> subprocess.Popen[str]:
    words = ["score", "tiny", str(source), str(out), "--engine", engine, "--workers", "2", "--top-k", "2", "--in-flight", "2"]
    words += ["--chunk-rows", str(CHUNK_ROWS), "--rows-per-file", str(50 * CHUNK_ROWS)]
    words += [word for server in servers for word in ("--url", server.grpc_url)]
    program = [sys.executable, "-c", "from convoy.cli import main; main()", *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(program, env={**os.environ, **AUTHORISED, "RAY_ADDRESS": address}, **pipes)


def n_rows(out: Path) -> int:
    """Rows on disk."""
    return CHUNK_ROWS * (len(list(out.glob("_convoy/chunk-*.arrow"))) + 50 * len(list(out.glob("part-*.parquet"))))


def rows_of(out: Path) -> Any:
    """All rows, but for how long they took."""
    return pa.concat_tables([parquet.read_table(path) for path in sorted(out.glob("part-*.parquet"))]).drop(["latency_ms"])


def workers(head: int) -> list[psutil.Process]:
    """The actors that score."""
    found = []
    for process in psutil.Process(head).children(recursive=True):
        try:
            if "MapWorker" in process.name() or any("MapWorker" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found


def test_a_worker_and_a_server_are_killed_and_every_row_is_there_once(
    cluster: tuple[str, int], servers: list[TritonServer], source: Path, tmp_path: Path
) -> None:
    score("tiny", source, tmp_path / "local", url=servers[0].grpc_url, **OPTIONS).finish()
    address, head = cluster
    with begin("ray", source, tmp_path / "out", servers, address) as process:
        until(lambda: n_rows(tmp_path / "out") >= N // 20, process, "a twentieth is scored")
        victim = workers(head)[0]
        victim.kill()
        pid = servers[0].pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert n_rows(tmp_path / "out") < N
        until(lambda: len(workers(head)) >= 2 and victim.pid not in [each.pid for each in workers(head)], process, "it is replaced")
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert "Traceback" not in printed
    assert f"{N:,} of {N:,} inputs scored with tiny version 1" in printed
    assert rows_of(tmp_path / "out").equals(rows_of(tmp_path / "local"))


def test_one_engine_goes_on_where_the_other_was_killed(
    cluster: tuple[str, int], servers: list[TritonServer], source: Path, tmp_path: Path
) -> None:
    score("tiny", source, tmp_path / "local", url=servers[0].grpc_url, **OPTIONS).finish()
    out = tmp_path / "out"
    there = 0
    for engine in ("local", "ray"):
        with begin(engine, source, out, servers, cluster[0]) as process:
            until(lambda there=there: n_rows(out) > there + N // 20, process, f"{engine}: a twentieth more is scored")  # type: ignore[misc]
            process.kill()
        assert there < n_rows(out) < N
        there = n_rows(out)
    with begin("local", source, out, servers, cluster[0]) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert "by earlier runs" in printed
    assert rows_of(out).equals(rows_of(tmp_path / "local"))
