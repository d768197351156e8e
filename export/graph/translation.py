"""Operators that torch's exporter takes apart badly, translated as one or two ONNX nodes each.

An adaptive average pool, decomposed by torch, becomes a mean over strides where its input lies in memory as the pixels came
(channels last), which turns into a gather with computed indices in ONNX; and a nest of gathers and selections where its windows
differ in size. Here it is what it is: a pool, or a product with two constant matrices, for it is linear and separable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnxscript import opset18 as op


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export`` takes as its ``custom_translation_table``."""
    return {torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d}


def _adaptive_avg_pool2d(self: Any, output_size: Sequence[int]) -> Any:
    height, width = self.shape[-2:]  # of (N, C, H, W) or (C, H, W)
    batched = len(self.shape) == 4
    if tuple(output_size) == (1, 1):
        axes: Any = op.Constant(value_ints=[-2, -1])
        return op.GlobalAveragePool(self) if batched else op.ReduceMean(self, axes, keepdims=1)
    if not (isinstance(height, int) and isinstance(width, int)):
        raise TypeError(f"adaptive_avg_pool2d: expected a feature map of a size that does not depend on values, found {self.shape}")
    rows, columns = int(output_size[0]), int(output_size[1])
    if (rows, columns) == (height, width):
        return op.Identity(self)
    if batched and height % rows == 0 and width % columns == 0:
        window = [height // rows, width // columns]
        return op.AveragePool(self, kernel_shape=window, strides=window)
    over_rows = op.Constant(value=_tensor(averaging(height, rows)))  # (rows, H)
    over_columns = op.Constant(value=_tensor(averaging(width, columns).T))  # (W, columns)
    return op.MatMul(op.MatMul(over_rows, self), over_columns)  # (N, C, rows, columns)


def averaging(size: int, outputs: int) -> npt.NDArray[np.float32]:
    """The matrix of an adaptive average pool along one axis.

    Row ``i`` averages the elements from ``floor(i * size / outputs)`` to ``ceil((i + 1) * size / outputs)``, the latter left out.

    Args:
        size: How many elements there are.
        outputs: How many averages.

    Returns:
        float32, shape (outputs, size); each row sums to 1.
    """
    matrix = np.zeros((outputs, size), np.float32)
    for i in range(outputs):
        start, stop = i * size // outputs, -(-(i + 1) * size // outputs)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def _tensor(matrix: npt.NDArray[np.float32]) -> Any:
    import onnx.numpy_helper

    return onnx.numpy_helper.from_array(np.ascontiguousarray(matrix))
