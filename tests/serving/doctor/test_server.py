"""A running server: open, restricted, bound to every address, hanging, none; and that looking changes nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from convoy.contract.errors import UsageError
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.doctor import server
from convoy.serving.doctor.listener import Process
from convoy.serving.doctor.probe import PROBES, accepts
from convoy.serving.doctor.vulnerabilities import VulnerabilityList
from convoy.serving.doctor.world import World
from convoy.serving.triton.finding import Finding
from convoy.serving.triton.installation import Installation
from convoy.serving.triton.port import free_port

KNOWN = VulnerabilityList.load()
LOCAL = ("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1")
CATEGORIES = ",".join(dict.fromkeys(probe.category for probe in PROBES))
CONTROLS = ("repository control", "log settings", "trace settings", "system shared memory", "CUDA shared memory")


@dataclass(frozen=True)
class Running:
    """A real server without models."""

    endpoints: tuple[Endpoint, Endpoint]
    metrics_port: int

    @property
    def http_url(self) -> str:
        return str(self.endpoints[0])

    def state(self) -> list[object]:
        """What it would tell of a change."""
        with httpx.Client(base_url=self.http_url, trust_env=False) as client:
            asked = [client.post("/v2/repository/index"), *[client.get(probe.path) for probe in PROBES if probe.method == "GET"]]
            return [response.json() for response in asked]


Launch = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    installation = Installation.find()
    repository = tmp_path / "models"
    repository.mkdir()

    @contextmanager
    def start(*options: str) -> Iterator[Running]:
        ports: list[int] = []
        while len(ports) < 3:
            if (port := free_port()) not in ports:  # a port is free again when it has been found
                ports.append(port)
        words = [str(installation.server), f"--model-repository={repository}"]
        words += [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(installation.libraries)}
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([*words, *options], env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 60
            while not all(accepts(Endpoint("http", "127.0.0.1", port)) for port in ports):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end, "the server did not open its ports"
            yield Running((Endpoint("http", "127.0.0.1", ports[0]), Endpoint("grpc", "127.0.0.1", ports[1])), ports[2])
        finally:
            process.terminate()
            process.wait(30)

    return start


@pytest.fixture
def world() -> World:
    return World.here(Path("model_repository"))


def examine(world: World, running: Running) -> dict[str, Finding]:
    found = server.examine(world, KNOWN, endpoints=running.endpoints, metrics_port=running.metrics_port)
    return {finding.name: finding for finding in found}


@pytest.mark.integration
def test_an_open_server_on_this_machine_alone_is_no_problem(launch: Launch, world: World) -> None:
    with launch("--model-control-mode=explicit", *LOCAL) as running:
        before = running.state()
        found = examine(world, running)
        after = running.state()

    assert after == before
    assert found["reach"].level == "ok"
    assert {found[name].level for name in CONTROLS} == {"info"}
    assert "--model-control-mode=explicit" in found["repository control"].found
    assert "POST /v2/repository/index: 200; RepositoryIndex: OK" in found["repository control"].found
    assert (found["version"].level, found["metrics"].level) == ("warning", "info")
    assert "Triton 2.51.0 (container 24.10)" in found["version"].found


@pytest.mark.integration
def test_an_open_server_that_others_reach_is_a_problem_in_each_control(launch: Launch, world: World) -> None:
    with launch("--model-control-mode", "explicit") as running:
        found = examine(world, running)

    assert found["reach"].level == "warning"
    assert "0.0.0.0" in found["reach"].found
    assert {found[name].level for name in (*CONTROLS, "version")} == {"problem"}
    assert "--http-restricted-api=logging:KEY=VALUE" in found["log settings"].advice
    assert (found["TLS"].level, found["metrics"].level, found["statistics"].level) == ("warning", "warning", "info")


@pytest.mark.integration
def test_restricted_calls_are_seen_to_be_and_the_advised_options_are_those_that_triton_takes(launch: Launch, world: World) -> None:
    options = (f"--http-restricted-api={CATEGORIES}:key=secret", f"--grpc-restricted-protocol={CATEGORIES}:key=secret")
    with launch(*options, "--http-address=0.0.0.0") as running:
        found = examine(world, running)

    assert {name: found[name].level for name in (*CONTROLS, "statistics")} == dict.fromkeys((*CONTROLS, "statistics"), "ok")
    assert "restricted" in found["log settings"].found


@pytest.mark.integration
def test_what_is_restricted_on_one_side_only_is_open(launch: Launch, world: World) -> None:
    with launch(f"--http-restricted-api={CATEGORIES}:key=secret", *LOCAL) as running:
        found = examine(world, running)

    assert found["log settings"].found.startswith("open (GET /v2/logging: 403; LogSettings: OK)")


@pytest.mark.integration
def test_a_server_that_polls_refuses_load_and_unload(launch: Launch, world: World) -> None:
    with launch("--model-control-mode=poll") as running:
        found = examine(world, running)

    assert found["repository control"].level == "info"
    assert "refused (--model-control-mode=poll)" in found["repository control"].found


@pytest.mark.integration
@pytest.mark.parametrize("side", [0, 1], ids=["http", "grpc"])
def test_a_url_is_looked_at_on_its_own(launch: Launch, world: World, side: int) -> None:
    with launch(*LOCAL) as running:
        found = {
            finding.name: finding
            for finding in server.examine(world, KNOWN, str(running.endpoints[side]), metrics_port=free_port())
        }

    assert "Triton 2.51.0" in found["version"].found
    assert "metrics" not in found
    assert ";" not in found["log settings"].found


def answering(status: int, body: bytes) -> AbstractContextManager[Endpoint]:
    """An HTTP server that says the same to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 http.server looks for this name

        def log_message(self, *_: object) -> None:
            pass

    @contextmanager
    def serve() -> Iterator[Endpoint]:
        with HTTPServer(("127.0.0.1", 0), Handler) as listener:
            thread = threading.Thread(target=listener.serve_forever)
            thread.start()
            yield Endpoint("http", "127.0.0.1", listener.server_port)
            listener.shutdown()
            thread.join()

    return serve()


def test_another_server_is_not_taken_for_triton(world: World) -> None:
    with answering(200, b"<html>hello</html>") as endpoint:
        unasked = server.examine(world, KNOWN, endpoints=[endpoint])
        asked = server.examine(world, KNOWN, str(endpoint))

    assert [finding.level for finding in unasked] == ["info"]
    assert [finding.level for finding in asked] == ["problem"]
    assert "not as Triton does" in asked[0].found


def test_a_newer_server_is_not_said_to_have_vulnerabilities(world: World) -> None:
    with answering(200, b'{"name": "triton", "version": "2.99.0", "extensions": []}') as endpoint:
        found = {finding.name: finding for finding in server.examine(world, KNOWN, str(endpoint), metrics_port=free_port())}

    assert found["version"].level == "ok"
    assert "newer than the list" in found["version"].found


def test_a_server_with_a_strange_version_is_a_warning(world: World) -> None:
    with answering(200, b'{"name": "triton", "version": "dev", "extensions": []}') as endpoint:
        found = {finding.name: finding for finding in server.examine(world, KNOWN, str(endpoint), metrics_port=free_port())}

    assert found["version"].level == "warning"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_accepts_and_says_nothing_holds_up_nothing(world: World, scheme: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        started = time.monotonic()
        (finding,) = server.examine(world, KNOWN, f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")

    assert time.monotonic() - started < 4
    assert finding.level == "problem"
    assert "no answer in time" in finding.found or "DEADLINE_EXCEEDED" in finding.found or "UNAVAILABLE" in finding.found


def test_no_server_is_a_problem_only_where_one_was_named(world: World) -> None:
    nothing = Endpoint("http", "127.0.0.1", free_port())

    (unasked,) = server.examine(world, KNOWN, endpoints=[nothing])
    (asked,) = server.examine(world, KNOWN, str(nothing))

    assert (unasked.level, asked.level) == ("info", "problem")


def test_a_url_that_is_none_is_wrong_use(world: World) -> None:
    with pytest.raises(UsageError, match="scheme is missing"):
        server.examine(world, KNOWN, "localhost:8000")


@pytest.mark.parametrize("host", ["192.168.1.7", "triton.example.org"])
def test_an_address_of_the_network_is_reached_by_others(world: World, host: str) -> None:
    assert server.find_reach(world, [Endpoint("http", host, 8000)]).public is True


def test_where_proc_says_nothing_the_reach_is_unknown(tmp_path: Path, world: World) -> None:
    from dataclasses import replace

    assert server.find_reach(replace(world, root=tmp_path), [Endpoint("http", "127.0.0.1", 8000)]).public is None


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (("tritonserver", "--model-control-mode=explicit"), "explicit"),
        (("tritonserver", "--model-control-mode", "poll"), "poll"),
        (("tritonserver", "--http-port=8000"), "none"),
    ],
)
def test_the_control_mode_is_read_from_the_command_line(words: tuple[str, ...], mode: str) -> None:
    assert server.control_mode(Process(1, "tritonserver", words)) == mode
    assert server.control_mode(Process(1, "docker-proxy", words)) == ""
    assert server.control_mode(None) == ""
