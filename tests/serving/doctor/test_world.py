"""Running programs that fail, hang, or are none."""

from __future__ import annotations

import time
from pathlib import Path

from convoy.serving.doctor.world import Answer

from .conftest import Machine


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_that_hangs_is_stopped_with_all_that_it_started(machine: Machine, tmp_path: Path) -> None:
    path = machine.program("hangs", f"/bin/sleep 600 & echo $! > {tmp_path}/pid; echo said; /bin/sleep 600")
    started = time.monotonic()

    answer = machine.programs().run([str(path)], limit_s=0.5)

    assert time.monotonic() - started < 5
    assert answer.status is None
    assert answer.output == "said\n"
    assert answer.reason == "no answer in time"
    pid, end = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < end, "what the program started still runs"


def test_several_programs_share_one_limit(machine: Machine) -> None:
    path, programs = machine.hanging("hangs"), machine.programs(limit_s=0.6)
    started = time.monotonic()

    answers = [programs.run([str(path)]) for _ in range(4)]

    assert time.monotonic() - started < 3
    assert all(answer.status is None for answer in answers)


def test_a_file_that_is_no_program_is_said_to_be_none(machine: Machine) -> None:
    path = machine.program("broken", "")
    path.write_bytes(b"\x7fELF nonsense")

    answer = machine.programs().run([str(path)])

    assert answer.status == 127
    assert "Exec format error" in answer.reason


def test_only_programs_on_the_path_of_the_world_are_found(machine: Machine) -> None:
    path = machine.program("there", "")

    assert machine.programs().find("there") == str(path)
    assert machine.programs().find("sh") is None


def test_the_reason_is_the_last_thing_that_was_said() -> None:
    assert Answer(1, "out", "first\nlast\n\n").reason == "last"
    assert Answer(1, "only out\n", "").reason == "only out"
    assert Answer(3, "", "").reason == "exit status 3"
    assert Answer(-11, "", "").reason == "signal 11"
