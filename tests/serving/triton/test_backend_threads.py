"""Threads are chosen by what was measured, and little is measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.serving.triton.backend import threads as module
from convoy.serving.triton.backend.threads import _quota, _waited_s, available_cores, choose, make_inputs


@dataclass(frozen=True)
class Node:
    """What ONNX Runtime says of an input."""

    name: str = "x"
    type: str = "tensor(float)"
    shape: tuple[Any, ...] = ("n", 2)


@dataclass
class Clock:
    """The clocks, which sessions move on."""

    wall_s: float = 0.0
    caller_s: float = 0.0
    all_s: float = 0.0
    waited_s: float = 0.0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall_s)
        monkeypatch.setattr(time, "thread_time", lambda: self.caller_s)
        monkeypatch.setattr(time, "process_time", lambda: self.all_s)
        monkeypatch.setattr(module, "_waited_s", lambda: self.waited_s)


@dataclass
class Session:
    """A model that needs so long for a row; the time of a batch grows with its rows."""

    clock: Clock
    row_s: float
    caller_share: float = 1.0
    all_share: float = 1.0
    waited_share: float = 0.0
    nodes: tuple[Node, ...] = (Node(),)
    runs: list[int] = field(default_factory=list)

    def get_inputs(self) -> tuple[Node, ...]:
        return self.nodes

    def run(self, names: None, inputs: Mapping[str, Any]) -> None:
        rows = len(inputs["x"])
        self.runs.append(rows)
        self.clock.wall_s += rows * self.row_s
        self.clock.caller_s += rows * self.row_s * self.caller_share
        self.clock.all_s += rows * self.row_s * self.all_share
        self.clock.waited_s += rows * self.row_s * self.waited_share


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.install(monkeypatch)
    return clock


@pytest.mark.parametrize(
    ("one_s", "several_s", "expected"),
    [(0.01, 0.006, 2), (0.01, 0.009, 1), (0.01, 0.0084, 2), (0.01, 0.0086, 1), (0.0001, 0.0002, 1)],
)
def test_more_threads_are_taken_where_they_need_15_percent_less_time(
    clock: Clock, one_s: float, several_s: float, expected: int
) -> None:
    choice = choose(lambda n: Session(clock, one_s if n == 1 else several_s), 2, 0, {})

    assert choice.threads == expected
    assert choice.session.row_s == (several_s if expected == 2 else one_s)
    assert f"{one_s * 1e3:.3g} ms on 1 thread and {several_s * 1e3:.3g} ms on 2" in choice.evidence


def test_a_batch_has_a_say(clock: Clock) -> None:
    class SlowBatches(Session):
        def run(self, names: None, inputs: Mapping[str, Any]) -> None:
            super().run(names, inputs)
            self.clock.wall_s += 0.01 * (len(inputs["x"]) > 1)

    choice = choose(lambda n: Session(clock, 0.002) if n == 1 else SlowBatches(clock, 0.001), 2, 8, {})

    assert choice.threads == 1
    assert "8 rows in 16 ms on 1 thread and 18 ms on 2" in choice.evidence


def test_measuring_ends_in_time_and_a_batch_is_no_longer_than_it_must_be(clock: Clock) -> None:
    opened: list[Session] = []

    def open_with(threads: int) -> Session:
        opened.append(Session(clock, 0.004))
        return opened[-1]

    choose(open_with, 2, 64, {})

    assert clock.wall_s < 0.5
    assert {rows for session in opened for rows in session.runs} == {1, 5}


def test_a_tiny_model_costs_a_few_milliseconds(clock: Clock) -> None:
    choose(lambda n: Session(clock, 30e-6), 2, 8, {})

    assert clock.wall_s < 0.02


@pytest.mark.parametrize(("all_share", "expected", "opened"), [(1.9, 2, [2]), (1.2, 1, [2, 1])])
def test_a_long_model_is_run_twice_and_opened_again_only_where_its_threads_were_idle(
    clock: Clock, all_share: float, expected: int, opened: list[int]
) -> None:
    sessions: dict[int, Session] = {}

    def open_with(threads: int) -> Session:
        sessions[threads] = Session(clock, 0.4, all_share=all_share)
        return sessions[threads]

    choice = choose(open_with, 2, 64, {})

    assert (choice.threads, list(sessions), sessions[2].runs) == (expected, opened, [1, 1])
    assert f"400 ms on 2 threads, {all_share:.1f} of which work at a time" in choice.evidence


@pytest.mark.parametrize(
    ("row_s", "waited_share", "expected"), [(0.05, 0.5, 2), (0.05, 0.1, 1), (0.001, 0.5, 1)], ids=["yes", "no", "tiny"]
)
def test_where_others_use_the_cores_the_callers_own_work_is_compared(
    clock: Clock, row_s: float, waited_share: float, expected: int
) -> None:
    """Both take as long as the neighbours let them; the caller's own work is halved."""

    def open_with(threads: int) -> Session:
        return Session(clock, row_s, caller_share=0.4 if threads == 1 else 0.2, all_share=0.4, waited_share=waited_share)

    choice = choose(open_with, 2, 0, {})

    assert choice.threads == expected
    assert ("20 ms on 1 thread and 10 ms on 2 (CPU time of the calling thread" in choice.evidence) is (expected == 2)


def test_on_a_busy_machine_one_thread_is_not_kept_before_several_had_their_chance(clock: Clock) -> None:
    """The other threads get a core only in the fourth round."""

    class Late(Session):
        def run(self, names: None, inputs: Mapping[str, Any]) -> None:
            self.caller_share = 0.2 if len(self.runs) > 5 else 0.4
            super().run(names, inputs)

    def open_with(threads: int) -> Session:
        return (Session if threads == 1 else Late)(clock, 0.05, caller_share=0.4, all_share=0.4, waited_share=0.5)

    assert choose(open_with, 2, 0, {}).threads == 2
    assert clock.wall_s < 2


def test_waiting_for_a_core_is_read_from_the_kernel(tmp_path: Path) -> None:
    for name, text in (("1", "5 2000000000 1"), ("2", "7 500000000 3"), ("3", ""), ("4", "no numbers")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(text)

    assert _waited_s(tmp_path) == 2.5
    assert _waited_s(tmp_path / "missing") == 0


def test_one_core_is_one_thread_and_nothing_is_run(clock: Clock) -> None:
    choice = choose(lambda n: Session(clock, 1.0), 1, 8, {})

    assert (choice.threads, choice.session.runs) == (1, [])


def test_a_model_that_refuses_zeros_gets_one_thread_and_the_reason_is_said(clock: Clock) -> None:
    class Refusing(Session):
        def run(self, names: None, inputs: Mapping[str, Any]) -> None:
            raise RuntimeError("expected a kernel of 3,\n found 1")

    choice = choose(lambda n: Refusing(clock, 0.1), 4, 8, {})

    assert choice.threads == 1
    assert "not measured" in choice.evidence
    assert "expected a kernel of 3, found 1" in choice.evidence


@pytest.mark.parametrize(
    ("node", "max_batch_size", "dims", "expected"),
    [
        (Node(), 8, {}, (3, 2)),
        (Node(shape=("n", "h", "w")), 8, {"x": (-1, 5)}, (3, 1, 5)),
        (Node(shape=("n", "h", "w")), 8, {"x": (4, 5)}, (3, 4, 5)),
        (Node(shape=(2, "w")), 0, {"x": (2, 6)}, (2, 6)),
        (Node(shape=()), 0, {"x": (1,)}, ()),
        (Node(type="tensor(string)"), 8, {}, (3, 2)),
        (Node(type="tensor(float16)", shape=("n", 0)), 8, {}, (3, 0)),
    ],
)
def test_inputs_have_the_shape_that_the_configuration_gives_them(
    clock: Clock, node: Node, max_batch_size: int, dims: dict[str, tuple[int, ...]], expected: tuple[int, ...]
) -> None:
    array = make_inputs(Session(clock, 1, nodes=(node,)), 3, max_batch_size, dims)["x"]

    assert array.shape == expected
    assert array.dtype == {"tensor(string)": np.object_, "tensor(float16)": np.float16}.get(node.type, np.float32)


def test_a_quota_of_the_control_group_counts_as_cores(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert _quota(tmp_path) == 2

    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _quota(tmp_path) is None


def test_a_quota_of_an_old_control_group_counts_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, expected in (("50000", 1), ("400000", 4), ("-1", None)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert _quota(tmp_path) == expected


def test_there_is_no_quota_where_none_is_written(tmp_path: Path) -> None:
    assert _quota(tmp_path) is None


def test_a_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_quota", lambda: 1)

    assert available_cores() == 1
