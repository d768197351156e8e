"""Batches filled up to few sizes, where a change of size is dear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import UsageError
from convoy.serving.triton.backend.ladder import Ladder, climb
from convoy.serving.triton.backend.options import Options

SIZES = (1, 2, 4, 8)


class Clock:
    """Time that passes only where somebody says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Session:
    """Doubles its input; plans anew whenever the batch's size is not that of the run before, as ONNX Runtime does on CUDA."""

    def __init__(self, clock: Clock, *, change_s: float = 0.1, run_s: float = 0.01, type_: str = "tensor(float)") -> None:
        self.clock, self.change_s, self.run_s, self.type = clock, change_s, run_s, type_
        self.ran: list[int] = []

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", shape=["n", 2], type=self.type)]

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any], run_options: Any = None) -> list[Any]:
        rows = len(inputs["x"])
        self.clock.now_s += self.run_s + (self.change_s if rows not in self.ran[-1:] else 0)
        self.ran.append(rows)
        return [inputs["x"] * 2, np.array(7.0), np.arange(3)]


def climbed(**options: Any) -> tuple[Any, list[Session]]:
    clock, opened = Clock(), []

    def another() -> Session:
        opened.append(Session(clock, **options))
        return opened[-1]

    return climb(another(), another, SIZES, {}, clock), opened


def test_a_dear_change_of_size_gets_a_session_for_each_size_and_none_ever_changes_again() -> None:
    (session, notes, warnings), opened = climbed()

    assert isinstance(session, Ladder)
    assert (session.sizes, warnings) == (SIZES, ())
    assert notes == ("batches: 8 rows take 10 ms, and 110 ms after a batch of another size: a session each for 1, 2, 4, 8 rows",)
    n_before = [len(one.ran) for one in opened]
    for rows in (1, 8, 3, 5, 2, 1, 7, 8, 4):
        session.run(["y"], {"x": np.zeros((rows, 2), np.float32)})
    last = [one.ran[n - 1 :] for one, n in zip(opened, n_before, strict=True)]
    assert all(len(set(sizes)) == 1 for sizes in last)


@pytest.mark.parametrize("options", [{"change_s": 0.0}, {"change_s": 0.0009, "run_s": 1e-4}, {"change_s": 0.004, "run_s": 0.01}])
def test_where_a_change_costs_little_one_session_does(options: dict[str, float]) -> None:
    (session, notes, _), opened = climbed(**options)

    assert session is opened[0]
    assert notes[0].endswith("one session for all")


@pytest.mark.parametrize("rows", range(1, 9))
def test_every_batch_is_answered_row_by_row_as_without_a_ladder(rows: int) -> None:
    session = climbed()[0].session
    x = np.random.default_rng(rows).normal(size=(rows, 2)).astype(np.float32)

    doubled, scalar, other = session.run(["y", "s", "o"], {"x": x})

    np.testing.assert_array_equal(doubled, 2 * x)
    assert doubled.dtype == np.float32
    assert (scalar.ndim, len(other)) == (0, 3)  # without the batch axis: for others to refuse


def test_a_model_that_refuses_zeros_is_served_all_the_same() -> None:
    clock = Clock()
    session = Session(clock)
    session.run = lambda *_: (_ for _ in ()).throw(RuntimeError("no zeros"))  # type: ignore[method-assign]

    found = climb(session, lambda: session, SIZES, {}, clock)

    assert found.session is session
    assert "does not take zeros (no zeros)" in found.notes[0]


def test_what_the_memory_of_the_gpu_does_not_hold_is_done_without_and_said() -> None:
    clock, opened = Clock(), []

    def another() -> Session:
        if len(opened) == 3:
            raise MemoryError("CUDA out of memory")
        opened.append(Session(clock))
        return opened[-1]

    found = climb(another(), another, SIZES, {}, clock)

    assert found.session.sizes == (2, 4, 8)
    assert found.warnings == (
        "batches of fewer than 2 are filled up to 2: no further session could be opened (CUDA out of memory)",
    )
    (doubled, *_) = found.session.run(["y"], {"x": np.ones((1, 2), np.float32)})
    assert doubled.shape == (1, 2)


def test_strings_are_left_alone() -> None:
    (session, notes, _), opened = climbed(type_="tensor(string)")

    assert session is opened[0]
    assert notes == ()


def config(**more: Any) -> dict[str, Any]:
    return {"max_batch_size": 12, "dynamic_batching": {"preferred_batch_size": [6]}, **more}


def sizes_parameter(text: str) -> dict[str, Any]:
    return {"parameters": {"convoy_gpu_batch_sizes": {"string_value": text}}}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (config(), (1, 2, 4, 6, 8, 12)),
        (config(max_batch_size=1), (1,)),
        (config(max_batch_size=0), ()),
        (config(**sizes_parameter("3, 6")), (3, 6, 12)),
        (config(**sizes_parameter("any")), ()),
        (config(parameters={"gpu_mem_limit": {"string_value": "1000000"}}), ()),
    ],
)
def test_the_sizes_are_doubles_and_preferred_ones_unless_somebody_says_otherwise(
    said: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert Options.read(said, kind="GPU").batch_sizes == expected
    assert Options.read(said, kind="CPU").batch_sizes == ()


@pytest.mark.parametrize("text", ["", "0", "13", "two", "1;2"])
def test_sizes_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"'convoy_gpu_batch_sizes': expected a whole number from 1 to 12"):
        Options.read(config(**sizes_parameter(text)), kind="GPU")
