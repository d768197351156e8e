"""Operators as their text says, where the ONNX reference evaluator computes something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference.op_run import OpRun

from convoy.export.adopt.names import attribute

_Array = npt.NDArray[Any]


class BatchNormalization(OpRun):
    """Before opset 14. The evaluator takes opset 7 to 13 for training, although only version 14 has a mode for it."""

    op_domain = ""

    def _run(self, x: _Array, scale: _Array, bias: _Array, mean: _Array, var: _Array, **attributes: Any) -> tuple[_Array]:
        shape = (-1, *[1] * (x.ndim - 2))
        epsilon = attributes.get("epsilon")
        factor = scale / np.sqrt(var + (1e-5 if epsilon is None else epsilon))
        return ((x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape),)


def _flattened(x: _Array, node: onnx.NodeProto) -> _Array:
    """Rows of what lies behind ``axis``, 1 where the node gives none (the evaluator would fill in today's -1)."""
    at = attribute(node, "axis", 1) % max(x.ndim, 1)
    return x.reshape(int(np.prod(x.shape[:at])), -1)


class Softmax(OpRun):
    """Before opset 13: over all axes from ``axis`` on together. The evaluator takes one axis."""

    op_domain = ""

    def _run(self, x: _Array, **_: Any) -> tuple[_Array]:
        rows = _flattened(x, self.onnx_node)
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        return ((powers / powers.sum(axis=1, keepdims=True)).reshape(x.shape),)


class LogSoftmax(OpRun):
    """Before opset 13, as ``Softmax``."""

    op_domain = ""

    def _run(self, x: _Array, **_: Any) -> tuple[_Array]:
        rows = _flattened(x, self.onnx_node)
        rows = rows - rows.max(axis=1, keepdims=True)
        return ((rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))).reshape(x.shape),)


class LRN(OpRun):
    """At any opset: a sum over neighbouring channels. The evaluator walks over as many channels as there are images."""

    op_domain = ""

    def _run(self, x: _Array, **attributes: Any) -> tuple[_Array]:
        size = int(attributes["size"])
        before, after = (size - 1) // 2, size // 2
        squares = np.pad(x * x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        total = sum((squares[:, i : i + x.shape[1]] for i in range(size)), np.zeros_like(x))
        alpha, beta, bias = (
            default if (value := attributes.get(name)) is None else value
            for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
        )
        return (x / (bias + alpha / size * total) ** beta,)


def operators_of(opset: int) -> list[type[OpRun]]:
    """The operators with which to run a file of operator set ``opset``, besides the evaluator's own."""
    found: list[type[OpRun]] = [LRN]
    if opset < 13:
        found += [Softmax, LogSoftmax]
    if opset < 14:
        found += [BatchNormalization]
    return found
