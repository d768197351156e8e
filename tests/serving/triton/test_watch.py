"""What the supervisor notices the end of processes with, and the processes that Triton forgets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from convoy.serving.triton.abandoned import ABANDONED_S, IDLE_S, AbandonedStubs, cpu_ticks
from convoy.serving.triton.stub import Stub
from convoy.serving.triton.watch import ProcessWatch


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def watch() -> Iterator[ProcessWatch]:
    result = ProcessWatch()
    yield result
    result.close()


def test_the_end_of_a_process_wakes_who_waits_and_is_told_once(watch: ProcessWatch, sleeper: subprocess.Popen[bytes]) -> None:
    watch.watch([sleeper.pid])
    assert not watch.wait(0)
    began = time.monotonic()

    threading.Timer(0.1, sleeper.kill).start()

    assert watch.wait(10)
    assert time.monotonic() - began < 5
    assert not watch.wait(0)


def test_a_process_that_is_no_longer_watched_wakes_nobody(watch: ProcessWatch, sleeper: subprocess.Popen[bytes]) -> None:
    watch.watch([sleeper.pid])
    watch.watch([])

    sleeper.kill()
    sleeper.wait()

    assert not watch.wait(0.05)


def test_one_that_has_ended_already_is_no_fault(watch: ProcessWatch, sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()

    watch.watch([sleeper.pid])

    assert not watch.wait(0)


def test_who_waits_can_be_woken_by_another_thread(watch: ProcessWatch) -> None:
    threading.Timer(0.05, watch.wake).start()

    assert watch.wait(10)
    assert not watch.wait(0)


def test_it_leaves_no_descriptor_open(sleeper: subprocess.Popen[bytes]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    watch = ProcessWatch()
    watch.watch([sleeper.pid, os.getpid()])

    watch.close()
    watch.wake()

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_forgotten_process_that_idles_is_ended_after_its_time(sleeper: subprocess.Popen[bytes]) -> None:
    stub, other = (Stub(pid, "m", "1", "m_0", f"segment {pid}") for pid in (sleeper.pid, os.getpid()))
    abandoned = AbandonedStubs()
    abandoned.add([stub], now=100)

    assert abandoned.rest([stub, other]) == [other]
    assert abandoned.clear([stub, other], now=100 + ABANDONED_S - 1) == []
    assert abandoned.clear([stub, other], now=100 + ABANDONED_S) == [stub]
    assert sleeper.wait(10) == -signal.SIGKILL
    assert abandoned.clear([other], now=200) == []
    assert abandoned.rest([stub]) == [stub], "a process that has ended is forgotten"


def test_a_forgotten_process_that_still_computes_is_let_finish() -> None:
    program = "import sys\nwhile True: sys.stdout.write(''); exec('for _ in range(10000): pass')"
    busy = subprocess.Popen([sys.executable, "-c", program])
    stub = Stub(busy.pid, "m", "1", "m_0", "segment")
    abandoned = AbandonedStubs()
    abandoned.add([stub], now=0)
    try:
        ticks = 0
        for now in (ABANDONED_S + n * IDLE_S for n in range(3)):
            deadline = time.monotonic() + 20
            while cpu_ticks(busy.pid) < ticks + 3:
                assert time.monotonic() < deadline
            ticks = cpu_ticks(busy.pid)
            assert abandoned.clear([stub], now=now) == []
    finally:
        busy.kill()
        busy.wait()
