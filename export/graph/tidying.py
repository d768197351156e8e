"""The clean-up of a translated graph: folded, nothing dead or twice there, the batch axis named, nothing of this machine."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from convoy.export.graph.batch_norm import fold_batch_norms

BATCH: Final = "batch"
COLUMNS: Final = "columns"
FRAMES: Final = "frames"
_KEPT_METADATA: Final = ("pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes")
_SPREADING: Final = frozenset({"ConstantOfShape", "Expand", "Range", "Tile", "Resize"})
"""Operators that make much of little: folded where what they make is small."""
_QUANTIZING: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
_MAX_SPREAD: Final = 65_536  # elements
_NO_LIMIT: Final = 2**40


def tidy(model: ir.Model, axes: Mapping[str, str]) -> None:
    """Make of torch's translation what belongs in a file.

    Batch norms and constants are folded; Identity, dead nodes, dead and equal initializers go; shapes that are computed from the
    batch axis alone are stated; axes of any size are called what they are everywhere; names of modules stay, paths of files go.

    Args:
        model: Changed in place.
        axes: What torch called an axis of any size, with its name.
    """
    common.InlinePass()(model)
    optimizer.fold_constants_ir(model)
    fold_batch_norms(model)
    optimizer.optimize_ir(model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT, should_fold=_should_fold, inline=False)
    if state_shapes(model):
        optimizer.optimize_ir(
            model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT, should_fold=_should_fold, inline=False
        )
    common.IdentityEliminationPass()(model)
    _lay_out(model)
    common.DeduplicateHashedInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    _rename_axes(model, axes)
    _strip(model)


def _should_fold(node: ir.Node) -> bool | None:
    """Whether a node with constant inputs is computed now: weights that are computed from others are, whatever their size."""
    if node.op_type in _QUANTIZING:
        return False
    if node.op_type not in _SPREADING:
        return True
    shape = node.outputs[0].shape
    return shape is not None and shape.is_static() and math.prod(shape.numpy()) <= _MAX_SPREAD


def state_shapes(model: ir.Model) -> int:
    """Replace computed shapes of Reshape nodes by constants where at most one dimension depends on the number of images.

    The dimension that does becomes -1. Shapes are followed through Shape, Gather, Slice, Concat, Squeeze, Unsqueeze and Cast of a
    vector, with what the exporter knows of each value's shape.

    Args:
        model: Changed in place.

    Returns:
        How many were replaced.
    """
    n_stated = 0
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx") or node.inputs[1] is None:
            continue
        if node.inputs[1].is_initializer() or ir.convenience.get_const_tensor(node.inputs[1]) is not None:
            continue
        dims = _elements(node.inputs[1])
        if dims is None or sum(dim == -1 or not isinstance(dim, int) for dim in dims) > 1:
            continue
        stated = np.array([dim if isinstance(dim, int) else -1 for dim in dims], np.int64)
        graph = node.graph
        assert graph is not None
        constant = ir.node("Constant", [], attributes={"value": ir.tensor(stated)})
        constant.outputs[0].name = f"{node.outputs[0].name}_shape"
        graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])
        if node.outputs[0].shape is None:
            node.outputs[0].shape = ir.Shape([dim if not isinstance(dim, int) or dim > 0 else None for dim in dims])
        n_stated += 1
    return n_stated


def _elements(value: ir.Value | None) -> list[int | str] | None:
    """The elements of a vector of dimensions, those that depend on the number of images as expressions; None where unknown."""
    if value is None:
        return None
    constant = ir.convenience.get_const_tensor(value)
    if constant is not None:
        return [int(element) for element in constant.numpy().reshape(-1)] if constant.size <= 16 else None
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Shape":
        return _dims(node)
    if node.op_type == "Concat":
        parts = [_elements(part) for part in node.inputs]
        return None if any(part is None for part in parts) else [element for part in parts for element in part or ()]
    if node.op_type in ("Squeeze", "Unsqueeze", "Cast", "Identity"):
        return _elements(node.inputs[0])
    if node.op_type in ("Gather", "Slice"):
        return _picked(node)
    return None


def _dims(node: ir.Node) -> list[int | str] | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    dims = [dim if isinstance(dim, int) else dim.value for dim in shape]
    start, end = node.attributes.get("start"), node.attributes.get("end")
    dims = dims[0 if start is None else start.as_int() : None if end is None else end.as_int()]
    return None if any(dim is None for dim in dims) else [dim for dim in dims if dim is not None]


def _picked(node: ir.Node) -> list[int | str] | None:
    elements = _elements(node.inputs[0])
    operands = [_elements(operand) for operand in node.inputs[1:]]
    if elements is None or any(operand is None or any(not isinstance(i, int) for i in operand) for operand in operands):
        return None
    indices = [[int(i) for i in operand or ()] for operand in operands]
    if node.op_type == "Gather":
        return [elements[i] for i in indices[0]] if all(-len(elements) <= i < len(elements) for i in indices[0]) else None
    if any(len(operand) != 1 for operand in indices):
        return None
    start, end, step = indices[0][0], indices[1][0], indices[3][0] if len(indices) > 3 else 1
    return elements[start:end:step] if step > 0 else None


def _lay_out(model: ir.Model) -> None:
    """Lay weights out as they are written: onnx_ir cannot hash, and so not compare, what was transposed or sliced in place."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            array = tensor.numpy() if tensor is not None else None
            if tensor is not None and array is not None and (tensor.doc_string or not array.flags.c_contiguous):
                value.const_value = ir.tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=value.name)


def _rename_axes(model: ir.Model, axes: Mapping[str, str]) -> None:
    words = {symbol: name for symbol, name in axes.items() if symbol.isidentifier()}
    word = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b")

    def rename(dim: str) -> str:
        return axes.get(dim) or word.sub(lambda found: words[found[0]], dim)

    for graph in model.graphs():
        outputs = [output for node in graph for output in node.outputs]
        for value in (*graph.inputs, *outputs):
            if value.shape is None:
                continue
            dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            value.shape = ir.Shape([rename(dim) if isinstance(dim, str) else dim for dim in dims])


def _strip(model: ir.Model) -> None:
    """Drop what the exporter noted about this machine (source paths, stack traces); keep the names of the modules."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            _clear(value)
        for node in graph:
            kept: dict[str, str] = {key: node.metadata_props[key] for key in _KEPT_METADATA if key in node.metadata_props}
            node.metadata_props.clear()
            node.metadata_props.update(kept)
            node.doc_string = None
            for value in node.outputs:
                _clear(value)


def _clear(value: ir.Value) -> None:
    value.metadata_props.clear()
    value.doc_string = None
