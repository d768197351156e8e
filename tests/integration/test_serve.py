"""``convoy serve`` as a process: how it starts, explains, stops, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import numpy as np
import psutil
import pytest

from convoy.contract.errors import ConvoyError, UnavailableError
from convoy.serving.client import Client

SHM = Path("/dev/shm")

pytestmark = pytest.mark.integration

Serve = Callable[..., subprocess.Popen[str]]
WriteModel = Callable[..., Path]


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0, what: str = "it") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.02)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The temporary folder of the servers that a test starts."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture
def serve(tmp_path: Path, temporary: Path) -> Iterator[Serve]:
    """Starts ``convoy serve`` on free ports, its stderr in ``tmp_path / "stderr"``."""
    started: list[subprocess.Popen[str]] = []

    def start(repository: Path, *words: str, ports: tuple[int, int, int] = (0, 0, 0)) -> subprocess.Popen[str]:
        options = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
        program = [
            sys.executable,
            "-c",
            "from convoy.cli import main; main()",
            "serve",
            "--repository",
            str(repository),
            *options,
            *words,
        ]
        with (tmp_path / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                program,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "TMPDIR": str(temporary)},
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()
    if started:
        print((tmp_path / "stderr").read_text())  # noqa: T201  # shown where the test has failed


def introduction(process: subprocess.Popen[str]) -> str:
    """What it says when everything answers."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            break
    return "".join(lines)


def pending(metrics_url: str) -> int:
    """How many requests wait in the server."""
    with urlopen(metrics_url) as answer:
        text = answer.read().decode()
    return sum(int(float(count)) for count in re.findall(r"^nv_inference_pending_request_count\{.*\} (\S+)$", text, re.MULTILINE))


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def segments(temporary: Path) -> list[str]:
    """The shared memory of servers that run from ``temporary``, found by their tokens: a lock file, a segment a backend process."""
    tokens = [folder.name.removeprefix("convoy-triton-") for folder in temporary.iterdir()]
    return [path.name for path in SHM.iterdir() if any(token in path.name for token in tokens)]


def assert_nothing_is_left(processes: list[psutil.Process], names: list[str], temporary: Path) -> None:
    wait_for(lambda: not any(process.is_running() for process in processes), what="the end of every process")
    wait_for(lambda: not any((SHM / name).exists() for name in names), what="the removal of the segments")
    wait_for(lambda: not list(temporary.iterdir()), what="the removal of the runtime folder")


def test_it_says_what_it_serves_and_stops_cleanly_on_sigterm(
    serve: Serve, write_tiny_model: WriteModel, tmp_path: Path, temporary: Path
) -> None:
    write_tiny_model(tmp_path / "repository")
    process = serve(tmp_path / "repository", "--log", str(tmp_path / "triton.log"))

    said = introduction(process)
    url = re.search(r"grpc://\S+", said)
    assert url is not None
    with Client(url.group()) as client:
        assert client.ready("tiny")
    processes, names = descendants(process.pid), segments(temporary)
    process.terminate()

    assert re.search(r"tiny +version 1", said)
    assert re.search(r"REST +http://127.0.0.1:\d+", said)
    assert f"convoy predict tiny IMAGE.png --url {url.group()}" in said
    assert process.wait(20) == 0
    assert len(processes) == 3, "the guard, the server, the backend's process"
    assert len(names) == 2, "a segment and the lock file of the shared memory"
    assert_nothing_is_left(processes, names, temporary)
    assert "Started GRPCInferenceService" in (tmp_path / "triton.log").read_text()


def test_a_request_under_way_is_answered_before_the_stop(serve: Serve, write_tiny_model: WriteModel, tmp_path: Path) -> None:
    config = write_tiny_model(tmp_path / "repository") / "config.pbtxt"
    waits = "dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 3000000 }"
    config.write_text(config.read_text().replace("dynamic_batching { }", waits))
    process = serve(tmp_path / "repository")
    said = introduction(process)
    grpc, metrics = (re.search(rf"{name} +(\S+)", said) for name in ("gRPC", "metrics"))
    assert grpc is not None
    assert metrics is not None
    with Client(grpc.group(1)) as client, ThreadPoolExecutor() as pool:
        answers = [pool.submit(client.infer, "tiny", {"image": np.zeros((1, 4, 4, 1), np.uint8)}) for _ in range(2)]
        wait_for(lambda: pending(metrics.group(1)) >= 2, what="the arrival of the requests")

        process.send_signal(signal.SIGINT)

        assert [answer.result().model_version for answer in answers] == ["1", "1"]
    assert process.wait(20) == 0


def test_ctrl_c_before_it_is_up_stops_it_too(serve: Serve, write_tiny_model: WriteModel, tmp_path: Path, temporary: Path) -> None:
    write_tiny_model(tmp_path / "repository")
    process = serve(tmp_path / "repository")
    wait_for(lambda: len(descendants(process.pid)) >= 2, what="the start of the server")

    process.send_signal(signal.SIGINT)

    assert process.wait(20) == 0
    assert "Stopped before the server was up" in (tmp_path / "stderr").read_text()
    assert_nothing_is_left([], [], temporary)


def test_killed_with_9_it_leaves_nothing(serve: Serve, write_tiny_model: WriteModel, tmp_path: Path, temporary: Path) -> None:
    write_tiny_model(tmp_path / "repository")
    process = serve(tmp_path / "repository")
    introduction(process)
    processes, names = descendants(process.pid), segments(temporary)
    assert names

    process.kill()

    assert_nothing_is_left(processes, names, temporary)


def server_of(process: subprocess.Popen[str]) -> psutil.Process | None:
    return next((child for child in descendants(process.pid) if child.name() == "tritonserver"), None)


def test_a_server_that_is_killed_again_and_again_ends_it_with_the_last_words(
    serve: Serve, write_tiny_model: WriteModel, tmp_path: Path, temporary: Path
) -> None:
    write_tiny_model(tmp_path / "repository")
    process = serve(tmp_path / "repository")
    introduction(process)
    processes, names = descendants(process.pid), segments(temporary)
    stderr = tmp_path / "stderr"

    for n_killed in range(1, 5):
        (server := server_of(process) or pytest.fail("no server")).kill()
        wait_for(lambda gone=server: not gone.is_running(), what="its end")
        if n_killed < 4:
            wait_for(lambda n=n_killed: stderr.read_text().count("The server answers again") == n, 60, "a start")
            processes += descendants(process.pid)
            names += segments(temporary)

    assert process.wait(20) == 1
    said = (tmp_path / "stderr").read_text()
    assert said.count("tritonserver was killed by signal 9") == 4
    assert said.count("Starting it again") == 3
    assert "Started Metrics Service" in said
    assert_nothing_is_left(processes, names, temporary)


def test_a_server_that_is_ended_in_order_is_not_started_again(serve: Serve, write_tiny_model: WriteModel, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "repository")
    process = serve(tmp_path / "repository")
    introduction(process)

    (server_of(process) or pytest.fail("no server")).terminate()

    assert process.wait(30) == 1
    assert "Starting it again" not in (tmp_path / "stderr").read_text()


def test_calls_of_a_killed_server_fail_as_unavailable_and_do_not_hang(
    serve: Serve, write_tiny_model: WriteModel, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "repository")
    process = serve(tmp_path / "repository")
    said = introduction(process)
    urls = [match.group(1) for match in re.finditer(r"(?:gRPC|REST) +(\S+)", said)]
    answered, failed = [0] * 4, list[tuple[BaseException, float]]()

    def call(i: int) -> None:
        with Client(urls[i % 2]) as client:
            while True:
                began = time.monotonic()
                try:
                    client.infer("tiny", {"image": np.zeros((1, 4, 4, 1), np.uint8)})
                    answered[i] += 1
                except ConvoyError as error:
                    failed.append((error, time.monotonic() - began))
                    return

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, i) for i in range(4)]
        wait_for(lambda: min(answered) > 10, what="answers")
        (server_of(process) or pytest.fail("no server")).kill()
        for each in calls:
            each.result(20)

    assert {type(error) for error, _ in failed} == {UnavailableError}
    assert max(took_s for _, took_s in failed) < 5
    with Client(urls[0], timeout_s=60) as client:
        wait_for(lambda: client.ready("tiny"), 60, "a new start")


def test_a_killed_guard_ends_it_and_leaves_nothing(
    serve: Serve, write_tiny_model: WriteModel, tmp_path: Path, temporary: Path
) -> None:
    write_tiny_model(tmp_path / "repository")
    process = serve(tmp_path / "repository")
    introduction(process)
    processes, names = descendants(process.pid), segments(temporary)

    psutil.Process(process.pid).children()[0].kill()

    assert process.wait(20) == 1
    assert "its guard process was killed by signal 9" in (tmp_path / "stderr").read_text()
    assert_nothing_is_left(processes, names, temporary)


def test_a_start_clears_away_what_a_dead_server_left_and_nothing_of_others(
    serve: Serve, write_tiny_model: WriteModel, tmp_path: Path, temporary: Path, foreign_segment: Path
) -> None:
    write_tiny_model(tmp_path / "repository")
    doomed = serve(tmp_path / "repository")
    introduction(doomed)
    left, dead_folder = segments(temporary), next(temporary.iterdir())
    living = serve(tmp_path / "repository")
    said = introduction(living)
    theirs = [name for name in segments(temporary) if name not in left]

    # The guard first, and the server before it can end in order: nobody is left who could clear up.
    guard, server, stub = descendants(doomed.pid)
    doomed.send_signal(signal.SIGSTOP)  # it would notice at once
    for killed in (guard, server, stub, psutil.Process(doomed.pid)):
        killed.kill()
    doomed.wait(20)
    wait_for(lambda: not server.is_running(), what="the end of the server")
    assert all((SHM / name).exists() for name in left), "a segment and a lock that no process speaks for"
    shutil.rmtree(dead_folder)  # as where the temporary folder was private and is gone
    third = serve(tmp_path / "repository")
    introduction(third)

    assert not any((SHM / name).exists() for name in left)
    assert len(theirs) == 2
    assert all((SHM / name).exists() for name in theirs)
    assert foreign_segment.exists()
    url = re.search(r"grpc://\S+", said)
    assert url is not None
    with Client(url.group()) as client:
        assert client.infer("tiny", {"image": np.zeros((1, 4, 4, 1), np.uint8)}).model_version == "1"


@pytest.fixture
def foreign_segment() -> Iterator[Path]:
    """A segment such as a tritonserver makes that somebody else started, under the backend's own prefix."""
    path = SHM / f"triton_python_backend_shm_region_{uuid4()}"
    path.write_bytes(bytes(64))
    yield path
    path.unlink()


def test_a_busy_port_is_explained_before_anything_starts(serve: Serve, write_tiny_model: WriteModel, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "repository")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        process = serve(tmp_path / "repository", ports=(0, port, 0))

        assert process.wait(20) == 1

    said = (tmp_path / "stderr").read_text()
    assert f"port {port} is busy: process {os.getpid()}" in said
    assert "--grpc-port" in said
    assert "Starting" not in said


def test_a_bad_model_is_named_with_tritons_reason_and_the_good_ones_are_counted(
    serve: Serve, write_tiny_model: WriteModel, tmp_path: Path, temporary: Path
) -> None:
    repository = tmp_path / "repository"
    write_tiny_model(repository, "good")
    path = write_tiny_model(repository, "cut") / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:100])
    (write_tiny_model(repository, "garbled") / "config.pbtxt").write_text("name: 'garbled'\nfoo {")
    process = serve(repository)

    assert process.wait(30) == 1

    said = (tmp_path / "stderr").read_text()
    assert "2 of 3 models cannot be served" in said
    assert re.search(
        r"cut: model.onnx \(version 1\) cannot be loaded: .*100 bytes are no ONNX file, or one that was cut short", said
    )
    assert re.search(r'garbled: 2:5: .*no field named "foo"', said)
    assert "The other 1 answer: --keep-going serves them" in said
    assert "Traceback" not in said
    assert_nothing_is_left([], [], temporary)


def test_a_folder_that_is_no_repository_is_explained(serve: Serve, tmp_path: Path) -> None:
    process = serve(tmp_path / "nothing")

    assert process.wait(20) == 2
    said = (tmp_path / "stderr").read_text()
    assert "no such folder. `convoy deploy" in said
    assert "Starting" not in said


def test_json_names_urls_and_models_and_sigint_stops_it(serve: Serve, write_tiny_model: WriteModel, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "repository")
    process = serve(tmp_path / "repository", "--json")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            break

    process.send_signal(signal.SIGINT)

    document = json.loads("".join(lines))
    assert document["models"] == [{"name": "tiny", "version": "1", "test_accuracy": None, "n_goldens": 0}]
    assert set(document["urls"]) == {"grpc", "http", "metrics"}
    assert process.wait(20) == 0
