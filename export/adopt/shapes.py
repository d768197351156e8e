"""What shapes a graph has when its batch is of a given size, by ONNX's own inference."""

from __future__ import annotations

import math
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from convoy.export.adopt.names import Shape, attribute, makers, shape_of

_LARGE = 1024  # initialisers of more elements than this say nothing about shapes
Whole: TypeAlias = "npt.NDArray[Any]"
"""Whole numbers or truth values."""

_FOLLOWED: Final = {
    "Add", "And", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Greater", "Identity",
    "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceProd", "Reshape", "Slice", "Squeeze", "Sub",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


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


class Numbers:
    """The whole numbers that values of a graph hold, as far as they follow from constants and from shapes.

    Args:
        model: The graph; nodes of the main graph alone are followed.
        shapes: Shapes of its values, for Shape nodes.
    """

    def __init__(self, model: onnx.ModelProto, shapes: dict[str, Shape]) -> None:
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = makers(model.graph)
        self._imports = list(model.opset_import)
        self._shapes = shapes
        self._found: dict[str, Whole | None] = {}

    def of(self, name: str) -> Whole | None:
        """What ``name`` holds; None where it depends on anything else, or holds other things than a few whole numbers."""
        if name not in self._found:
            self._found[name] = None  # a cycle, if there is one, ends here
            self._found[name] = self._look(name)
        return self._found[name]

    def _look(self, name: str) -> Whole | None:
        if name in self._stored:
            tensor = self._stored[name]
            return _whole(numpy_helper.to_array(tensor)) if math.prod(tensor.dims) <= _LARGE else None
        node = self._makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Shape":
            shape = known(self._shapes.get(node.input[0]))
            start, end = attribute(node, "start", 0), attribute(node, "end", None)
            return None if shape is None else np.array(shape[start:end], dtype=np.int64)
        if node.op_type not in _FOLLOWED:
            return None
        feeds = {given: self.of(given) for given in node.input if given}
        if any(value is None or value.size > _LARGE for value in feeds.values()):
            return None
        inputs = [onnx.ValueInfoProto(name=given) for given in feeds]
        graph = onnx.helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=name)])
        try:
            found: Any = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=self._imports)).run([name], feeds)
        except Exception:  # noqa: BLE001  the evaluator has many kinds; then the numbers are not known
            return None
        return _whole(np.asarray(found[0]))


def _whole(array: npt.NDArray[np.generic]) -> Whole | None:
    return array if array.dtype.kind in "iub" and array.size <= _LARGE else None


def reshaped(shape: Whole, data: tuple[int, ...], *, zero_is_zero: bool) -> tuple[int, ...] | None:
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
