"""A supervised server: what dies is noticed and mended, what changes is loaded, and callers notice as little as can be."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

from convoy.contract.errors import ConvoyError, UnavailableError
from convoy.serving.client import Client
from convoy.serving.triton import Supervisor, TritonServer
from convoy.serving.triton.stub import find_stubs

pytestmark = pytest.mark.integration

WriteModel = Callable[..., Path]
WriteConfig = Callable[..., None]
IMAGE = np.zeros((1, 4, 4, 1), np.uint8)


@dataclass
class Supervised:
    """A server under supervision, and what the supervisor has said."""

    server: TritonServer
    repository: Path
    said: list[str] = field(default_factory=list)

    def wait_for(self, words: str, since: int = 0, timeout_s: float = 20.0) -> str:
        deadline = time.monotonic() + timeout_s
        while True:
            for message in self.said[since:]:
                if words in message:
                    return message
            assert time.monotonic() < deadline, f"nobody said {words!r}; said: {self.said[since:]}"
            time.sleep(0.02)

    def version(self) -> str:
        with Client(self.server.grpc_url) as client:
            return client.infer("tiny", {"image": IMAGE}).model_version


def backend_of(supervised: Supervised, model_name: str) -> int:
    """The process of a model's only backend."""
    pid = supervised.server.pid()
    assert pid is not None
    (stub,) = [stub for stub in find_stubs(pid) if stub.model_name == model_name]
    return stub.pid


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory, write_tiny_model: WriteModel) -> Iterator[Supervised]:
    repository = tmp_path_factory.mktemp("repository")
    write_tiny_model(repository, versions=(2, 1))
    broken = write_tiny_model(repository, "broken") / "1" / "model.onnx"
    broken.write_bytes(b"nonsense")
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0, keep_going=True, stop_timeout_s=3) as server:
        result = Supervised(server, repository)
        stop = threading.Event()
        thread = threading.Thread(target=Supervisor(server, result.said.append).run, args=(stop,))
        thread.start()
        try:
            yield result
        finally:
            stop.set()
            thread.join()


def test_a_bad_model_does_not_hide_the_others_where_going_on_was_asked_for(supervised: Supervised) -> None:
    assert [proof.model_name for proof in supervised.server.served.proofs] == ["tiny"]
    assert "cannot be loaded" in supervised.server.served.failures["broken"]


def test_a_mended_model_is_served(supervised: Supervised, write_tiny_model: WriteModel) -> None:
    shutil.rmtree(supervised.repository / "broken")
    write_tiny_model(supervised.repository, "broken")

    supervised.wait_for("now serving version 1")


def test_a_killed_backend_process_is_noticed_and_replaced(supervised: Supervised) -> None:
    pid = backend_of(supervised, "tiny")
    since = len(supervised.said)
    killed = time.monotonic()

    os.kill(pid, signal.SIGKILL)
    supervised.wait_for("tiny: its backend process died; loading it again", since)
    noticed = time.monotonic() - killed
    supervised.wait_for("tiny: answers again", since)

    assert noticed < 2
    assert supervised.version() == "1"


@dataclass
class Called:
    """How calls ended: their errors, their latencies, and when good answers came."""

    errors: list[ConvoyError] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    good: list[float] = field(default_factory=list)


@pytest.fixture
def called(supervised: Supervised) -> Iterator[Called]:
    """Eight callers, four a wire, who call as long as the test runs."""
    result = Called()
    stop = threading.Event()

    def call(url: str) -> None:
        with Client(url, retry=None) as client:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    client.infer("tiny", {"image": IMAGE})
                except ConvoyError as error:
                    result.errors.append(error)
                else:
                    result.good.append(time.monotonic())
                result.latencies_s.append(time.monotonic() - began)
                stop.wait(0.005)

    urls = [supervised.server.grpc_url, supervised.server.http_url] * 4
    callers = [threading.Thread(target=call, args=(url,)) for url in urls]
    for caller in callers:
        caller.start()
    try:
        until(lambda: len(result.good) > 50, "answers")
        yield result
    finally:
        stop.set()
        for caller in callers:
            caller.join()


def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.01)


def test_callers_of_a_killed_backend_are_told_that_it_is_unavailable_and_none_hangs(supervised: Supervised, called: Called) -> None:
    for _ in range(3):
        since = len(supervised.said)
        killed = time.monotonic()
        os.kill(backend_of(supervised, "tiny"), signal.SIGKILL)
        supervised.wait_for("tiny: answers again", since)
        until(lambda: called.good[-1] > killed + 2.5, "answer after those that were under way have failed")  # noqa: B023

    assert called.errors, "what was under way cannot be answered"
    assert {type(error) for error in called.errors} == {UnavailableError}
    assert max(called.latencies_s) < 10


def test_a_process_that_dies_while_it_replaces_another_is_replaced_too(supervised: Supervised, called: Called) -> None:
    since = len(supervised.said)
    first = backend_of(supervised, "tiny")
    pid = supervised.server.pid()
    assert pid is not None

    os.kill(first, signal.SIGKILL)
    until(lambda: {stub.pid for stub in find_stubs(pid) if stub.model_name == "tiny"} - {first} != set(), "second process")
    os.kill(backend_of(supervised, "tiny"), signal.SIGKILL)
    supervised.wait_for("answers again", since, timeout_s=60)  # the server does, where Triton waited for the dead one

    assert supervised.version() == "1"
    assert {type(error) for error in called.errors} <= {UnavailableError}
    assert max(called.latencies_s) < 10


def test_one_that_dies_before_its_first_word_on_which_triton_waits_for_ever_is_mended_by_a_restart(
    supervised: Supervised, tmp_path: Path
) -> None:
    pid = supervised.server.pid()
    assert pid is not None
    stub = Path(os.readlink(f"/proc/{backend_of(supervised, 'tiny')}/exe"))  # noqa: PTH115
    aside, ended = stub.with_suffix(".aside"), tmp_path / "ended"
    since = len(supervised.said)

    stub.rename(aside)
    try:
        stub.write_text(f"#!/bin/sh\n[ $# = 0 ] || touch {ended}\nexit 1\n")  # as one that is killed in its first instants
        stub.chmod(0o700)
        os.kill(backend_of(supervised, "tiny"), signal.SIGKILL)
        until(ended.exists, "start of its replacement")
    finally:
        aside.replace(stub)
    supervised.wait_for("Triton waits for it; starting the server again", since, timeout_s=40)
    supervised.wait_for("The server answers again", since, timeout_s=40)

    assert supervised.version() == "1"
    assert supervised.server.pid() != pid


def test_a_server_that_crashes_is_started_again_on_its_ports(supervised: Supervised, called: Called) -> None:
    since = len(supervised.said)
    pid = supervised.server.pid()
    assert pid is not None

    os.kill(pid, signal.SIGSEGV)
    assert "killed by signal 11" in supervised.wait_for("Starting it again", since)
    supervised.wait_for("The server answers again", since, timeout_s=40)
    back = time.monotonic()
    until(lambda: called.good[-1] > back, "answer on the old ports")

    assert supervised.server.pid() != pid
    assert {type(error) for error in called.errors} <= {UnavailableError}
    assert max(called.latencies_s) < 10


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:  # gone by now
        return ""


def test_a_server_that_hangs_as_it_is_started_again_is_started_once_more(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convoy.serving.triton.server.RESTART_PATIENCE_S", 1.0)
    supervised.server._came_up_s = 0.5
    pid = supervised.server.pid()
    since = len(supervised.said)
    assert pid is not None
    before = {process.pid for process in psutil.Process().children(recursive=True)}

    os.kill(pid, signal.SIGKILL)
    seconds: list[psutil.Process] = []

    def is_there() -> bool:
        """Whether the second server is there, and not only processes that the first has left, or another test's server."""
        here = psutil.Process().children(recursive=True)
        seconds[:] = [process for process in here if process.pid not in before and name_of(process) == "tritonserver"]
        return bool(seconds)

    until(is_there, "second server")
    second = seconds[0].pid
    os.kill(second, signal.SIGSTOP)

    supervised.wait_for("tritonserver did not answer within 3 s", since)
    supervised.server._came_up_s = 10.0
    supervised.wait_for("Starting it once more", since)
    supervised.wait_for("The server answers again", since)
    assert supervised.server.pid() not in (pid, second, None)
    assert supervised.version() == "1"


def test_a_model_that_somebody_unloads_and_loads_again_is_watched_again(supervised: Supervised) -> None:
    since = len(supervised.said)

    supervised.server.client.unload("tiny")
    supervised.wait_for("tiny: somebody unloaded it", since)
    supervised.server.client.load("tiny")
    supervised.wait_for("tiny: somebody loaded it: version 1 is served", since)
    os.kill(backend_of(supervised, "tiny"), signal.SIGKILL)
    supervised.wait_for("tiny: answers again", since)

    assert supervised.version() == "1"
    assert sum("somebody unloaded it" in message for message in supervised.said[since:]) == 1


def test_a_death_beside_a_bad_configuration_is_mended_by_the_repair(supervised: Supervised) -> None:
    path = supervised.repository / "tiny" / "config.pbtxt"
    good = path.read_text()
    since = len(supervised.said)

    path.write_text(good + "garbage")
    assert "Version 1 stays served" in supervised.wait_for("tiny changed, but cannot be loaded", since)
    os.kill(backend_of(supervised, "tiny"), signal.SIGKILL)
    assert "It is not served" in supervised.wait_for("tiny: cannot be loaded again", since)
    path.write_text(good)
    supervised.wait_for("tiny changed: now serving version 1", since, timeout_s=5)

    assert supervised.version() == "1"
    assert len(supervised.said[since:]) == 4, "each state is said once"


def test_a_stopped_backend_process_is_noticed_by_inference(supervised: Supervised) -> None:
    pid = backend_of(supervised, "tiny")
    since = len(supervised.said)

    os.kill(pid, signal.SIGSTOP)
    try:
        supervised.wait_for("tiny: answers again", since, timeout_s=40)
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)

    assert supervised.version() == "1"


def test_a_new_version_is_swapped_in_under_load_without_a_failed_request(
    supervised: Supervised, write_tiny_config: WriteConfig
) -> None:
    versions: list[str] = []
    failures: list[ConvoyError] = []
    stop = threading.Event()

    def call(url: str) -> None:
        with Client(url) as client:
            while not stop.is_set():
                try:
                    versions.append(client.infer("tiny", {"image": IMAGE}).model_version)
                except ConvoyError as error:
                    failures.append(error)

    urls = [supervised.server.grpc_url] * 2 + [supervised.server.http_url]
    callers = [threading.Thread(target=call, args=(url,)) for url in urls]
    for caller in callers:
        caller.start()
    try:
        for version in (2, 1):
            since = len(supervised.said)
            write_tiny_config(supervised.repository / "tiny", version=version)
            supervised.wait_for(f"tiny changed: now serving version {version}", since)
    finally:
        stop.set()
        for caller in callers:
            caller.join()

    assert failures == []
    assert set(versions) == {"1", "2"}
    assert len(versions) > 100


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_served(supervised: Supervised, write_tiny_config: WriteConfig) -> None:
    folder = supervised.repository / "tiny"
    (folder / "3").mkdir()
    (folder / "3" / "model.onnx").write_bytes(b"cut")
    since = len(supervised.said)

    write_tiny_config(folder, version=3)
    message = supervised.wait_for("cannot be loaded", since)

    assert "no ONNX file, or one that was cut short" in message
    assert "Version 1 stays served" in message
    assert supervised.version() == "1"

    write_tiny_config(folder, version=1)
    supervised.wait_for("still serving version 1", since)
    assert sum("cannot be loaded" in message for message in supervised.said[since:]) == 1, "the same reason is not said twice"


def test_a_model_that_leaves_the_repository_is_unloaded(supervised: Supervised) -> None:
    since = len(supervised.said)

    shutil.rmtree(supervised.repository / "broken")
    supervised.wait_for("broken: gone from the repository; unloaded", since)

    assert not supervised.server.client.ready("broken")


def test_a_model_that_somebody_unloads_is_left_alone(supervised: Supervised, write_tiny_config: WriteConfig) -> None:
    since = len(supervised.said)

    supervised.server.client.unload("tiny")
    supervised.wait_for("tiny: somebody unloaded it", since)
    assert not supervised.server.client.ready("tiny")

    write_tiny_config(supervised.repository / "tiny", version=2)
    supervised.wait_for("now serving version 2", since)
