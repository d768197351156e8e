"""``convoy doctor``: what it says and how it exits."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from convoy.cli.doctor import command
from convoy.serving.triton import installation, machine
from convoy.serving.triton.finding import problem
from convoy.serving.triton.guard import SHM


def test_a_machine_that_can_serve_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(command, ["--json"])

    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["can_serve"] is True
    assert {
        "Python",
        "glibc",
        "numpy",
        "libpython",
        "Triton",
        "ONNX Runtime",
        "GPU",
        "Docker",
        "port",
        "shared memory",
        "torch",
    } <= {finding["subject"] for finding in document["findings"]}


def test_what_is_missing_is_said_with_what_to_do_and_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "check_glibc", lambda: problem("glibc", "expected 2.35, found 2.31.", "Use the container."))

    result = CliRunner().invoke(command)

    assert result.exit_code == 1
    assert "problem  glibc" in result.stdout
    assert "expected 2.35, found 2.31. Use the container." in result.stdout
    assert "does not work here: 1 problem" in result.stdout


def programs(monkeypatch: pytest.MonkeyPatch, **answers: str | None) -> None:
    """Stand-ins for programs: what each prints; None where it fails; not installed where it is not named."""

    def run(words: list[str], **_: Any) -> Any:
        answer = answers[words[0]]
        if answer is None:
            raise subprocess.CalledProcessError(1, words)
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(shutil, "which", lambda name: name.replace("-", "_") if name.replace("-", "_") in answers else None)
    monkeypatch.setattr(subprocess, "run", run)


def test_gpus_are_listed_as_the_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    programs(monkeypatch, nvidia_smi="NVIDIA H100, 550.1, 81559 MiB\n")

    assert machine.check_gpu(machine.find_gpus()).found == "NVIDIA H100, 550.1, 81559 MiB"


@pytest.mark.parametrize(("answers", "level"), [({}, "ok"), ({"nvidia_smi": None}, "warning")])
def test_no_gpu_is_fine_but_a_driver_that_fails_is_not(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, str | None], level: str
) -> None:
    programs(monkeypatch, **answers)

    assert machine.check_gpu(machine.find_gpus()).level == level


@pytest.mark.parametrize(
    ("answers", "level", "expected"),
    [
        ({}, "ok", "not installed"),
        ({"docker": None}, "warning", "daemon does not answer"),
        ({"docker": "27.0"}, "ok", "compose 27.0"),
    ],
)
def test_docker_is_there_or_not(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str | None], level: str, expected: str) -> None:
    programs(monkeypatch, **answers)

    finding = machine.check_docker()

    assert (finding.level, expected in finding.found) == (level, True)


def test_a_build_without_cuda_on_a_machine_with_a_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])

    assert machine.check_providers(has_gpu=False).level == "ok"
    assert "pip install onnxruntime-gpu" in machine.check_providers(has_gpu=True).advice


def test_little_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_blocks=16_384, f_bavail=16_000, f_frsize=4096))

    finding = machine.check_shared_memory(SHM)

    assert finding.level == "warning"
    assert "--shm-size" in finding.advice


def test_a_taken_default_port_is_a_warning_with_the_option() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        finding = machine.check_default_port(listener.getsockname()[1], "--http-port")

    assert finding.level == "warning"
    assert "--http-port" in finding.found


def test_what_was_never_installed_is_not_to_be_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    finding = machine.check_providers(has_gpu=False)

    assert str(finding) == "execution providers: onnxruntime is not installed. pip install '.[serve]' in Convoy's folder."
