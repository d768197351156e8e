"""One node at a time in ONNX Runtime, on inputs of our choice, without graph optimisations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.errors import ExportError
from convoy.export.diagnosis.structure import Node, Structure, outer_names
from convoy.export.gate.runtime import open_session

Value = npt.NDArray[Any]
_WIDE = {np.dtype(np.float64)}


class NodeError(ExportError):
    """ONNX Runtime refuses a node, or fails on it."""


def run_node(structure: Structure, node: Node, feeds: Mapping[str, Value]) -> dict[str, Value]:
    """Run one node by itself.

    Args:
        structure: The graph that it stands in; its weights are taken from there.
        node: The node.
        feeds: A value for each of ``node.reads``, in the datatype that the graph has there.

    Returns:
        What the node makes, by name. Outputs that are no tensors (sequences, optionals) are left out.

    Raises:
        NodeError: ONNX Runtime refuses the node or fails on these values; the message is ONNX Runtime's.
    """
    missing = [name for name in node.reads if name not in feeds]
    if missing:
        raise NodeError(f"it reads {', '.join(map(repr, missing))}, which nothing makes")
    model = _single(structure, node, feeds)
    try:
        session = open_session(model.SerializeToString(), level="disabled", threads=1)
        wanted = {value.name for value in session.get_inputs()}
        arrays = session.run(list(node.makes), {name: value for name, value in feeds.items() if name in wanted})
    except Exception as error:  # ONNX Runtime's exceptions have no public common base
        raise NodeError(first_line(error)) from error
    return {name: array for name, array in zip(node.makes, arrays, strict=True) if isinstance(array, np.ndarray)}


def as_datatype(value: Value, elem_type: int | None) -> Value:
    """A true value as the graph holds it: float64 becomes float32 where the graph's datatype is unknown."""
    if elem_type:
        try:
            return np.asarray(value, dtype=onnx.helper.tensor_dtype_to_np_dtype(elem_type))
        except (KeyError, TypeError, ValueError):
            pass
    return np.asarray(value, dtype=np.float32) if value.dtype in _WIDE else value


def first_line(error: BaseException) -> str:
    """What ONNX Runtime says, without its own preamble, in one line of bearable length."""
    text = " ".join(str(error).split())
    for mark in ("cannot load the model on CPUExecutionProvider: ", "Status Message: "):
        text = text.rpartition(mark)[2]
    return text[:300]


def _single(structure: Structure, node: Node, feeds: Mapping[str, Value]) -> onnx.ModelProto:
    source = structure.model
    model = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
    model.functions.extend(source.functions)
    graph = model.graph
    graph.name = "node"
    graph.node.append(node.proto)
    for name in dict.fromkeys(node.reads):
        value = feeds[name]
        datatype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, datatype, [None] * value.ndim))
    used = dict.fromkeys((*node.proto.input, *outer_names(node.proto)))
    graph.initializer.extend(structure.weights[name] for name in used if name in structure.weights)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.makes)
    return model
