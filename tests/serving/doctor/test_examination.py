"""All checks together, and the command: what hangs holds up nothing, what breaks hides nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from convoy.cli.doctor import command
from convoy.serving.doctor.examination import GROUPS, run_checks
from convoy.serving.triton import installation
from convoy.serving.triton.finding import ok, problem

from .conftest import Machine


def hang() -> list:
    import threading

    threading.Event().wait(60)
    return []


def test_a_check_that_hangs_or_fails_is_said_to_and_hides_nothing() -> None:
    def fail() -> list:
        raise OSError(5, "Input/output error")

    started = time.monotonic()
    found = run_checks({"a": hang, "b": fail, "c": lambda: [ok("c", "fine")]}, started + 0.5)

    assert time.monotonic() - started < 3
    assert [found["a"][0].level, found["b"][0].level, found["c"][0].level] == ["warning", "warning", "ok"]
    assert "did not end in time" in found["a"][0].found
    assert "Input/output error" in found["b"][0].found


def doctor(machine: Machine, *options: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with the machine's PATH."""
    return subprocess.run(
        [sys.executable, "-c", "from convoy.cli import main; main()", "doctor", *options],
        env={**machine.world.environment, "PYTHONPATH": str(Path(__file__).parents[3])},
        cwd=machine.world.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_programs_that_hang_do_not_keep_the_command_from_ending(machine: Machine) -> None:
    for name in ("docker", "nvidia-smi", "docker-compose"):
        machine.hanging(name)

    ended = doctor(machine, "--json")
    document = json.loads(ended.stdout)

    assert document["summary"]["seconds"] < 5
    by_group = {finding["group"]: finding for finding in document["findings"] if finding["name"] in ("client", "driver")}
    assert "no answer in time" in by_group["Docker"]["found"]
    assert "no answer in time" in by_group["GPU"]["found"]


def test_the_document_has_every_group_and_counts_its_findings(machine: Machine) -> None:
    ended = doctor(machine, "--json")
    document = json.loads(ended.stdout)

    assert set(document) == {"findings", "summary"}
    assert {finding["group"] for finding in document["findings"]} == set(GROUPS)
    assert all(
        set(finding) == {"name", "level", "found", "expected", "advice", "group", "sources"} for finding in document["findings"]
    )
    for level in ("ok", "info", "warning", "problem"):
        assert document["summary"][level] == sum(finding["level"] == level for finding in document["findings"])
    assert ended.returncode == (1 if document["summary"]["problem"] else 0)
    assert ended.stderr == ""


def test_every_warning_and_problem_says_what_to_do(machine: Machine) -> None:
    machine.program("nvidia-smi", "exit 9")
    machine.program("docker", "exit 1")

    findings = json.loads(doctor(machine, "--json").stdout)["findings"]

    graver = [finding for finding in findings if finding["level"] in ("warning", "problem")]
    assert {"driver", "client"} <= {finding["name"] for finding in graver}
    assert [finding["name"] for finding in graver if not finding["advice"]] == []


def test_people_read_aligned_text_without_colour(machine: Machine) -> None:
    said = doctor(machine).stdout

    assert "\x1b" not in said
    rows = [line for line in said.splitlines() if line.startswith(("  ok ", "  info ", "  warning ", "  problem "))]
    names = [line[11:].split("  ")[0] for line in rows]
    width = max(len(name) for name in names)
    assert all(line[11 + width : 13 + width] == "  " and line[13 + width] != " " for line in rows)
    assert [group for group in GROUPS if group in said.splitlines()] == list(GROUPS)


def test_what_is_missing_for_serving_is_said_with_what_to_do_and_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "check_glibc", lambda: problem("glibc", "2.31", "Use the container.", expected="glibc 2.35"))

    result = CliRunner().invoke(command)

    assert result.exit_code == 1
    assert "problem  glibc" in result.stdout
    assert "expected: glibc 2.35" in result.stdout
    assert "to do: Use the container." in result.stdout
    assert "`convoy serve` does not work here." in result.stdout


def test_a_url_that_is_none_is_wrong_use(machine: Machine) -> None:
    ended = doctor(machine, "--url", "localhost:8000")

    assert ended.returncode == 2
    assert "scheme is missing" in ended.stderr


def test_a_named_server_that_is_not_there_is_a_problem_though_serving_works(machine: Machine) -> None:
    ended = doctor(machine, "--url", "http://127.0.0.1:9", "--json")
    document = json.loads(ended.stdout)

    assert ended.returncode == 1
    assert [finding["level"] for finding in document["findings"] if finding["group"] == "Running server"] == ["problem"]
