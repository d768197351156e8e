"""float16 as a GPU stores it, on a CPU: every value rounded, where ONNX Runtime's CPU provider would not round at all."""

from __future__ import annotations

from typing import Final

import onnx
from onnx import TensorProto, helper

from convoy.contract.errors import ExportError
from convoy.export.precision.structure import prepare

_MAKES_CONSTANTS: Final = {"Constant", "ConstantOfShape"}


def emulate_float16(model: bytes) -> bytes:
    """The same computation with each float16 operator in float32 between casts that stand in the graph.

    ONNX Runtime's CPU provider has hardly any float16 arithmetic. It computes in float32 and takes the casts out that it had put
    in, so that values between the layers are never rounded, nor do they overflow. Casts that stand in the graph it leaves, without
    graph optimisations. So the result, run at the level "disabled", rounds what every operator gives to float16, and overflows
    where float16 does. Sums within an operator are in float32, as in the tensor cores of GPUs.

    Args:
        model: A file with float16 inside.

    Returns:
        A file for measurements, not for serving.

    Raises:
        ExportError: It is no ONNX file, or its types cannot be inferred.
    """
    proto = prepare(model)
    narrow = _float16_tensors(proto)
    nodes: list[onnx.NodeProto] = []
    wide: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type == "Cast" or node.op_type in _MAKES_CONSTANTS or not narrow & {*node.input, *node.output}:
            nodes.append(node)
            continue
        for name in node.input:
            if name in narrow and name not in wide:
                wide[name] = f"{name}_convoy_wide"
                nodes.append(helper.make_node("Cast", [name], [wide[name]], f"{name}_convoy_widen", to=TensorProto.FLOAT))
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [wide.get(name, name) for name in node.input]
        copy.output[:] = [f"{name}_convoy_exact" if name in narrow else name for name in node.output]
        nodes.append(copy)
        nodes.extend(
            helper.make_node("Cast", [f"{name}_convoy_exact"], [name], f"{name}_convoy_round", to=TensorProto.FLOAT16)
            for name in node.output
            if name in narrow
        )
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.graph.value_info[:]
    serialized: bytes = proto.SerializeToString()
    return serialized


def _float16_tensors(model: onnx.ModelProto) -> set[str]:
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    except Exception as error:  # several kinds
        raise ExportError(f"ONNX cannot infer the types inside the float16 file: {error}") from error
    found = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    values = (*graph.input, *graph.value_info, *graph.output)
    return found | {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
