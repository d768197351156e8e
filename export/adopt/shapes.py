"""What shapes a graph has when its batch is of a given size, by ONNX's own inference."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx

from convoy.export.adopt.names import Shape, attribute, shape_of

_LARGE = 1024  # initialisers of more elements than this say nothing about shapes


def infer_shapes(model: onnx.ModelProto, input_name: str, batch: int) -> dict[str, Shape]:
    """The shapes of all values that inference can tell, with ``batch`` in the first axis of ``input_name``.

    Args:
        model: Left as it is.
        input_name: The input whose first axis is the batch.
        batch: Its size.
    """
    skeleton = _skeleton(model)
    for value in skeleton.graph.input:
        if value.name == input_name:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=False, data_prop=True)
    found: dict[str, Shape] = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        shape = shape_of(value)
        if shape is not None:
            found[value.name] = shape
    found.update({tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer})
    return found


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its weights and without declared shapes inside: only what inference reads."""
    skeleton = onnx.ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    skeleton.graph.name = model.graph.name
    skeleton.graph.node.extend(model.graph.node)
    skeleton.graph.input.extend(model.graph.input)
    for value in model.graph.output:
        bare = skeleton.graph.output.add(name=value.name)
        bare.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > _LARGE:
            skeleton.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            skeleton.graph.initializer.append(tensor)
    return skeleton


def known(shape: Shape | None) -> tuple[int, ...] | None:
    """``shape`` where all of it is known."""
    if shape is None or None in shape:
        return None
    return tuple(int(dim or 0) for dim in shape)


def constant(graph: onnx.GraphProto, name: str) -> npt.NDArray[np.int64] | None:
    """The whole numbers that ``name`` always holds: an initialiser, or what a Constant node makes; None where it is neither."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return _whole(onnx.numpy_helper.to_array(tensor))
    for node in graph.node:
        if name in node.output:
            if node.op_type != "Constant":
                return constant(graph, node.input[0]) if node.op_type == "Identity" else None
            for key in ("value", "value_ints", "value_int"):
                value = attribute(node, key)
                if value is not None:
                    return _whole(onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.array(value))
    return None


def _whole(array: npt.NDArray[np.generic]) -> npt.NDArray[np.int64] | None:
    return array.astype(np.int64) if array.dtype.kind in "iu" else None


def reshaped(shape: npt.NDArray[np.int64], data: tuple[int, ...], *, zero_is_zero: bool) -> tuple[int, ...] | None:
    """The shape that Reshape gives for such data; None where it cannot."""
    dims = [int(dim) for dim in shape]
    for axis, dim in enumerate(dims):
        if dim == 0 and not zero_is_zero:
            if axis >= len(data):
                return None
            dims[axis] = data[axis]
    total, rest = math.prod(data), math.prod(dim for dim in dims if dim != -1)
    if -1 in dims:
        if rest == 0 or total % rest or dims.count(-1) > 1:
            return None
        dims[dims.index(-1)] = total // rest
    return tuple(dims) if math.prod(dims) == total else None
