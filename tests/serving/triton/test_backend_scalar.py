"""A tensor without axes is one of one element on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from convoy.serving.triton.backend.border import Border
from convoy.serving.triton.backend.options import Options
from convoy.serving.triton.backend.scalar import with_scalars
from convoy.serving.triton.backend.session import open_session

SCALAR = (TensorProto.FLOAT, [])
PAIR = (TensorProto.FLOAT, [2])


def opened(path: Any) -> tuple[Any, Border]:
    session = open_session(path, Options(intra_op_threads=1)).session
    return session, Border.of(session)


@pytest.mark.parametrize("dims", [[1], [1, 1]])
def test_scalars_are_fitted_on_both_sides(onnx_file: Any, dims: list[int]) -> None:
    session, border = opened(onnx_file("Neg", inputs={"x": SCALAR}, outputs={"y": SCALAR}))
    fitted = with_scalars(session, border, {"output": [{"name": "y", "dims": dims}]})

    (y,) = fitted.run(["y"], {"x": np.full(dims, 3, np.float32)}, None)

    assert (y.shape, y.dtype, y.item()) == (tuple(dims), np.float32, -3)


def test_a_scalar_beside_a_tensor_leaves_the_tensor_alone(onnx_file: Any) -> None:
    session, border = opened(onnx_file("Mul", inputs={"x": PAIR, "factor": SCALAR}, outputs={"y": PAIR}))
    fitted = with_scalars(session, border, {"output": [{"name": "y", "dims": [2]}]})

    (y,) = fitted.run(["y"], {"x": np.array([1, 2], np.float32), "factor": np.array([5], np.float32)})

    assert y.tolist() == [5, 10]


def test_without_scalars_nothing_stands_in_between(onnx_file: Any) -> None:
    session, border = opened(onnx_file())

    assert with_scalars(session, border, {"output": [{"name": "y", "dims": [2]}]}) is session
