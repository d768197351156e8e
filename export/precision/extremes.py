"""How large and how small the values inside a network become: measured on images, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from convoy.contract.errors import ExportError
from convoy.export.gate.runtime import open_session, run_session

_BATCH_SIZE = 8


def float_tensors(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...] | None]:
    """The float32 tensors that nodes make: name to shape, None where a dim is not fixed, or for a shape that is not known.

    Raises:
        ExportError: The shapes of the graph contradict each other.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # several kinds
        raise ExportError(f"ONNX cannot infer the shapes inside this model: {error}") from error
    made = {name for node in model.graph.node for name in node.output}
    shapes: dict[str, tuple[int | None, ...] | None] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        if value.name in made and tensor.elem_type == TensorProto.FLOAT:
            dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
            shapes[value.name] = dims if tensor.HasField("shape") else None
    return shapes


def largest_values(model: onnx.ModelProto, images: npt.NDArray[np.uint8], tensors: Sequence[str]) -> dict[str, float]:
    """The largest absolute value of each tensor on some images, computed in float32.

    Args:
        model: The model; not changed.
        images: uint8, shape (n, H, W, C).
        tensors: Names of float32 tensors that nodes make.

    Returns:
        By tensor; infinite where a value is not finite.

    Raises:
        ExportError: ONNX Runtime cannot run the model.
    """
    return {name: float(rows.max()) for name, rows in _reduced(model, images, tensors, "ReduceMax").items()}


def smallest_values(model: onnx.ModelProto, images: npt.NDArray[np.uint8], tensors: Sequence[str]) -> dict[str, float]:
    """The smallest absolute value of each tensor; all else as in ``largest_values``."""
    return {name: float(rows.min()) for name, rows in _reduced(model, images, tensors, "ReduceMin").items()}


def _reduced(
    model: onnx.ModelProto, images: npt.NDArray[np.uint8], tensors: Sequence[str], op_type: str
) -> dict[str, npt.NDArray[np.float32]]:
    """Of each batch, one number a tensor."""
    if not tensors:
        return {}
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    for i, tensor in enumerate(tensors):
        magnitude, reduced, row = f"convoy_magnitude_{i}", f"convoy_reduced_{i}", f"convoy_row_{i}"
        probed.graph.node.append(helper.make_node("Abs", [tensor], [magnitude]))
        probed.graph.node.append(helper.make_node(op_type, [magnitude], [reduced], keepdims=0))
        probed.graph.node.append(helper.make_node("Reshape", [reduced, "convoy_one"], [row]))
        probed.graph.output.append(helper.make_tensor_value_info(row, TensorProto.FLOAT, [1]))
    probed.graph.initializer.append(helper.make_tensor("convoy_one", TensorProto.INT64, [1], [1]))
    session = open_session(probed.SerializeToString(), level="disabled")
    found = run_session(session, images, _BATCH_SIZE)
    return {name: np.nan_to_num(found[f"convoy_row_{i}"], nan=np.inf, posinf=np.inf) for i, name in enumerate(tensors)}
