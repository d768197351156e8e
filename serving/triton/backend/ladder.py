"""A session for each of a few batch sizes, where a change of size is what costs: on GPUs.

ONNX Runtime since 1.20 plans every convolution anew in each run whose shapes are not those of the run before (its issue 23006),
and dynamic batching gives nearly each run another batch. On an H200 with ONNX Runtime 1.31 a change costs 27 ms with LeNet5, whose
batch of 64 takes 0.4 ms, and 140 to 200 ms with ResNet18, whose batch takes 9 ms. So a batch is filled up with zeros to the next
of a few sizes, and each size has a session that never sees another. An image's answer does not depend on its batch: the gate has
seen to that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from convoy.serving.triton.backend.threads import make_inputs

DEAR: Final = 1.5
"""A change of size is dear where the run after it takes this many times as long as the same run after one of its own size ..."""

DEAR_S: Final = 1e-3
"""... and this much longer."""


class Ladder:
    """Runs as a session does, each batch in the session of the smallest size that holds it.

    Args:
        rungs: By batch size, a session that is run with that size alone.
    """

    def __init__(self, rungs: Mapping[int, Any]) -> None:
        self._rungs = sorted(rungs.items())

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes, rising."""
        return tuple(size for size, _ in self._rungs)

    def run(self, names: Sequence[str], inputs: Mapping[str, Any], run_options: Any = None) -> list[Any]:
        """Run the model.

        Args:
            names: The outputs that are wanted.
            inputs: The arrays by name; the first axis of each is the batch.
            run_options: ONNX Runtime's run options.

        Returns:
            The outputs in the order of ``names``, without the rows that were filled in.
        """
        rows = len(next(iter(inputs.values())))
        size, session = next((rung for rung in self._rungs if rung[0] >= rows), self._rungs[-1])
        if size <= rows:
            return list(session.run(names, inputs, run_options))
        filled = {name: _fill(array, size) for name, array in inputs.items()}
        # an output without the batch axis stays as it is, for others to refuse
        return [
            output[:rows] if output.ndim and len(output) == size else output for output in session.run(names, filled, run_options)
        ]

    def get_inputs(self) -> Any:
        """What the model takes, as ONNX Runtime says it."""
        return self._rungs[0][1].get_inputs()

    def get_outputs(self) -> Any:
        """What it gives."""
        return self._rungs[0][1].get_outputs()

    def get_overridable_initializers(self) -> Any:
        """What it may be given."""
        return self._rungs[0][1].get_overridable_initializers()


class Climb(NamedTuple):
    """What became of a session.

    Attributes:
        session: It itself, or a ladder.
        notes: Why, for the log.
        warnings: What could not be had.
    """

    session: Any
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def climb(
    session: Any,
    open_another: Callable[[], Any],
    sizes: Sequence[int],
    dims: Mapping[str, Sequence[int]],
    clock: Callable[[], float] = time.perf_counter,
) -> Climb:
    """A ladder around a session, where a change of the batch's size is dear; else the session itself.

    Args:
        session: An open one.
        open_another: Opens one more on the same file.
        sizes: The batch sizes, rising.
        dims: By input, what the configuration says of its dims without the batch axis.
        clock: Seconds.
    """
    if len(sizes) < 2 or any(node.type == "tensor(string)" for node in session.get_inputs()):
        return Climb(session)
    small, large = (make_inputs(session, size, sizes[-1], dims) for size in (sizes[0], sizes[-1]))
    try:
        steady_s, changed_s = _time_a_change(session, small, large, clock)
    except Exception as error:  # noqa: BLE001 - a model may refuse zeros or extents of 1; that is no reason not to serve it
        why = " ".join(str(error).split())[:300]
        return Climb(session, (f"batches: not measured, as the model does not take zeros ({why}). Give it a warm-up sample.",))
    evidence = f"{sizes[-1]} rows take {steady_s * 1e3:.3g} ms, and {changed_s * 1e3:.3g} ms after a batch of another size"
    if changed_s < steady_s * DEAR or changed_s < steady_s + DEAR_S:
        return Climb(session, (f"batches: {evidence}: one session for all",))
    rungs = {sizes[-1]: session}
    for size in reversed(sizes[:-1]):
        try:
            another = open_another()
            another.run(None, make_inputs(another, size, sizes[-1], dims))
        except Exception as error:  # noqa: BLE001 - the GPU's memory is full: what there is serves
            reason = " ".join(str(error).split())[:300]
            least = min(rungs)
            warning = f"batches of fewer than {least} are filled up to {least}: no further session could be opened ({reason})"
            return Climb(Ladder(rungs), (f"batches: {evidence}",), (warning,))
        rungs[size] = another
    session.run(None, large)  # the change was measured with the smallest last
    return Climb(Ladder(rungs), (f"batches: {evidence}: a session each for {', '.join(map(str, sizes))} rows",))


def _time_a_change(session: Any, small: Any, large: Any, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a run of ``large`` after one of its own size, and after one of ``small``; of two tries the shorter each."""
    steady, changed = [], []
    session.run(None, large)
    for _ in range(2):
        steady.append(_timed(session, large, clock))
        session.run(None, small)
        changed.append(_timed(session, large, clock))
    return min(steady), min(changed)


def _timed(session: Any, inputs: Any, clock: Callable[[], float]) -> float:
    start = clock()
    session.run(None, inputs)
    return clock() - start


def _fill(array: Any, size: int) -> Any:
    filled = np.zeros((size, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled
