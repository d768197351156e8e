"""Requests joined into one run of the model, and what it gave split again.

Every line of ``run_joined`` is run for each batch, those in its loops for each request: at ten thousand requests a second a
microsecond a request is a hundredth of a core.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import InvalidRequestError

Array: TypeAlias = "npt.NDArray[Any]"
Run: TypeAlias = "Callable[[Sequence[str], Mapping[str, Array]], list[Array]]"
"""Runs a model: names of outputs, arrays of inputs by name -> arrays of outputs."""


class Rows(NamedTuple):
    """What a run gave for several requests: request ``i`` has the rows from ``ends[i - 1]`` (or 0) to ``ends[i]`` of each output.

    Attributes:
        outputs: The outputs by name; the first axis holds the rows.
        ends: Where each request's rows end.
    """

    outputs: list[tuple[str, Array]]
    ends: list[int]


def run_joined(columns: Mapping[str, list[Array]], wanted: Sequence[Collection[str]], run: Run, every: Sequence[str]) -> Rows:
    """Run several requests as one.

    Args:
        columns: By input, one array a request; the first axis of each is the batch.
        wanted: The names of the outputs that each request wants.
        run: Runs the model.
        every: The names of all outputs, in order.

    Returns:
        The rows of the outputs that any request wants.

    Raises:
        InvalidRequestError: The outputs do not carry the batch axis.
        ValueError: The requests do not fit together.
        Exception: Whatever ``run`` raises. After any of these, run them one by one: each gets its own answer.
    """
    joined = {name: np.concatenate(arrays) for name, arrays in columns.items()}
    ends: list[int] = []
    for arrays in columns.values():
        found = list(accumulate(map(len, arrays)))
        if ends and found != ends:
            raise ValueError("the inputs of a request differ in their first axis")
        ends = found
    names = _wanted_by_any(wanted, every)
    outputs = run(names, joined)
    for name, output in zip(names, outputs, strict=True):
        _check_rows(name, output, ends[-1])
    return Rows(list(zip(names, outputs, strict=True)), ends)


def run_alone(
    inputs: Mapping[str, Array], wanted: Collection[str], run: Run, every: Sequence[str], *, batched: bool
) -> list[tuple[str, Array]]:
    """Run one request by itself.

    Args:
        inputs: The arrays by name.
        wanted: The names of the outputs that it wants.
        run: Runs the model.
        every: The names of all outputs, in order.
        batched: Whether the first axis of every tensor is the batch.

    Returns:
        The wanted outputs, by name.

    Raises:
        InvalidRequestError: The outputs do not carry the batch axis.
        Exception: Whatever ``run`` raises.
    """
    names = _wanted_by_any((wanted,), every)
    outputs = run(names, inputs)
    if batched:
        n = len(next(iter(inputs.values())))
        for name, output in zip(names, outputs, strict=True):
            _check_rows(name, output, n)
    return list(zip(names, outputs, strict=True))


def _wanted_by_any(wanted: Sequence[Collection[str]], every: Sequence[str]) -> Sequence[str]:
    if len(wanted[0]) == len(every):
        return every
    asked = set().union(*wanted)
    return [name for name in every if name in asked]


def _check_rows(name: str, output: Array, n: int) -> None:
    if output.ndim == 0 or len(output) != n:
        raise InvalidRequestError(
            f"output '{name}': expected a first axis of {n}, the batch, found shape {list(output.shape)}. "
            "The model does not carry the batch axis to its outputs: set max_batch_size to 0."
        )
