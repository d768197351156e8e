"""Docker: missing, broken, stopped, forbidden, hanging, without compose, without the GPU."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from convoy.serving.doctor import docker
from convoy.serving.triton.finding import Finding

from .conftest import Machine

INFO = {"ServerVersion": "28.2.2", "Runtimes": {"runc": {}}, "DockerRootDir": "/srv/docker"}
STOPPED = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
FORBIDDEN = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"


def client(machine: Machine, info: str, compose: str = "echo 2.38.2") -> None:
    script = f'case "$1" in --version) echo "Docker version 28.2.2, build e6534b4";; compose) {compose};; info) {info};; esac'
    machine.program("docker", script)


def examine(machine: Machine, *, has_gpu: bool = False, limit_s: float = 20.0) -> dict[str, Finding]:
    findings, _ = docker.examine(machine.world, machine.programs(limit_s), has_gpu=has_gpu)
    return {finding.name: finding for finding in findings}


def levels(found: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.level for name, finding in found.items()}


def says(document: object) -> str:
    return f"echo '{json.dumps(document)}'"


def test_all_of_it_is_there(machine: Machine) -> None:
    client(machine, says({**INFO, "Runtimes": {"runc": {}, "nvidia": {}}}))

    findings, daemon = docker.examine(machine.world, machine.programs(), has_gpu=True)

    assert {finding.name: finding.level for finding in findings} == dict.fromkeys(
        ("client", "daemon", "compose", "GPU runtime"), "ok"
    )
    assert daemon.data == Path("/srv/docker")


def test_no_docker_needs_nothing_done_for_serving(machine: Machine) -> None:
    found = examine(machine)

    assert levels(found) == {"client": "info"}
    assert "convoy serve" in found["client"].advice


def test_a_client_that_does_not_run_is_to_be_installed_again(machine: Machine) -> None:
    machine.program("docker", "echo cannot execute >&2; exit 126")

    found = examine(machine)

    assert levels(found) == {"client": "warning"}
    assert "cannot execute" in found["client"].found


@pytest.mark.parametrize(("said", "advice"), [(STOPPED, "systemctl enable --now docker"), (FORBIDDEN, "usermod -aG docker $USER")])
def test_a_daemon_that_is_out_of_reach_comes_with_what_helps(machine: Machine, said: str, advice: str) -> None:
    client(machine, f"{says({'ServerErrors': [said]})}; echo '{said}' >&2; exit 1")

    found = examine(machine)

    assert found["daemon"].level == "warning"
    assert advice in found["daemon"].advice
    assert "GPU runtime" not in found


def test_a_daemon_elsewhere_is_named(machine: Machine) -> None:
    from dataclasses import replace

    client(machine, "echo 'cannot reach it' >&2; exit 1")
    environment = {**machine.world.environment, "DOCKER_HOST": "tcp://10.0.0.9:2376"}
    elsewhere = replace(machine, world=replace(machine.world, environment=environment))

    assert "tcp://10.0.0.9:2376" in examine(elsewhere)["daemon"].advice


def test_a_daemon_that_hangs_is_said_to_and_the_rest_is_looked_at(machine: Machine) -> None:
    client(machine, "/bin/sleep 600")
    started = time.monotonic()

    found = examine(machine, limit_s=3.0)

    assert time.monotonic() - started < 5
    assert "does not answer in time" in found["daemon"].found
    assert found["compose"].level == "ok"


def test_a_daemon_that_says_nonsense_does_not_answer(machine: Machine) -> None:
    client(machine, "echo '{{json .}}'")

    assert levels(examine(machine))["daemon"] == "warning"


@pytest.mark.parametrize("compose", ['echo "docker: unknown command: docker compose" >&2; exit 1', "/bin/sleep 600", "echo 1.29.2"])
def test_compose_is_missing_hanging_or_old(machine: Machine, compose: str) -> None:
    client(machine, says(INFO), compose)

    finding = examine(machine, limit_s=6.0)["compose"]

    assert finding.level == "warning"
    assert "docker-compose-plugin" in finding.advice


def test_the_old_program_is_no_plugin(machine: Machine) -> None:
    client(machine, says(INFO), "exit 1")
    path = machine.program("docker-compose", "echo 1.29.2")

    assert f"{path}, the old program" in examine(machine)["compose"].found


@pytest.mark.parametrize(("has_gpu", "level"), [(True, "warning"), (False, "info")])
def test_no_gpu_runtime_matters_where_there_is_a_gpu(machine: Machine, has_gpu: bool, level: str) -> None:
    client(machine, says(INFO))

    finding = examine(machine, has_gpu=has_gpu)["GPU runtime"]

    assert finding.level == level
    if has_gpu:
        assert "nvidia-ctk runtime configure" in finding.advice


def test_a_cdi_specification_is_a_way_to_the_gpu(machine: Machine) -> None:
    client(machine, says(INFO))
    machine.file("etc/cdi/nvidia.yaml")

    assert examine(machine, has_gpu=True)["GPU runtime"].level == "ok"
