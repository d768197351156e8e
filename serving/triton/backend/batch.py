"""Requests joined, run once, and split again; where the joint run fails, one by one, so that a bad request fails alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import InvalidRequestError

Array: TypeAlias = "npt.NDArray[Any]"
Run: TypeAlias = "Callable[[Sequence[str], Mapping[str, Array]], list[Array]]"
"""Runs a model: names of outputs, arrays of inputs by name -> arrays of outputs."""


class Request(NamedTuple):
    """What one caller asks.

    A tuple and no dataclass: one is made for every request, and a frozen dataclass takes four times as long to make.

    Attributes:
        inputs: The input arrays by name.
        outputs: The names of the outputs that the caller wants.
    """

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]


Answer: TypeAlias = "list[Array] | Exception"
"""The wanted outputs in the caller's order, or why there are none."""


def answer_all(requests: Sequence[Request], run: Run, *, batched: bool) -> list[Answer]:
    """Answer requests, in one run where that is possible.

    Args:
        requests: The requests.
        run: Runs the model.
        batched: Whether the first axis of every tensor is the batch axis.

    Returns:
        One answer a request, in order.
    """
    if len(requests) == 1 or not batched or not _can_join(requests):
        return [answer(request, run, batched=batched) for request in requests]
    names = _wanted(requests)
    sizes = [next(iter(request.inputs.values())).shape[0] for request in requests]
    try:
        joined = {name: np.concatenate([request.inputs[name] for request in requests]) for name in requests[0].inputs}
        outputs = run(names, joined)
    except Exception:  # noqa: BLE001 - one request may have spoiled the run: each shall have its own answer, or its own error
        return [answer(request, run, batched=batched) for request in requests]
    n = sum(sizes)
    if any(output.shape[:1] != (n,) for output in outputs):
        return [answer(request, run, batched=batched) for request in requests]
    answers: list[Answer] = []
    start = 0
    for request, size in zip(requests, sizes, strict=True):
        end = start + size
        if request.outputs == names:
            answers.append([output[start:end] for output in outputs])
        else:
            answers.append([outputs[names.index(name)][start:end] for name in request.outputs])
        start = end
    return answers


def answer(request: Request, run: Run, *, batched: bool) -> Answer:
    """Answer one request by itself."""
    try:
        outputs = run(request.outputs, request.inputs)
        if batched:
            n = next(iter(request.inputs.values())).shape[0]
            for name, output in zip(request.outputs, outputs, strict=True):
                if output.shape[:1] != (n,):
                    raise InvalidRequestError(
                        f"output '{name}': expected a first axis of {n}, the batch, found shape {list(output.shape)}. "
                        "The model does not carry the batch axis to its outputs: set max_batch_size to 0."
                    )
    except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime raises is this caller's answer
        return error
    return outputs


def _can_join(requests: Sequence[Request]) -> bool:
    """Whether all requests have the same tensors, alike but for the first axis, and each one batch size."""
    first = requests[0].inputs
    for name, model in first.items():
        if model.ndim == 0:
            return False
        dtype, rest = model.dtype, model.shape[1:]
        for request in requests:
            array = request.inputs.get(name)
            if array is None or array.dtype != dtype or array.shape[1:] != rest:
                return False
    return all(len(request.inputs) == len(first) and _has_one_size(request.inputs) for request in requests)


def _has_one_size(inputs: Mapping[str, Array]) -> bool:
    return len(inputs) == 1 or len({array.shape[0] for array in inputs.values()}) == 1


def _wanted(requests: Sequence[Request]) -> tuple[str, ...]:
    first = requests[0].outputs
    if all(request.outputs == first for request in requests):
        return first
    return tuple(dict.fromkeys(name for request in requests for name in request.outputs))
