"""Batch norms that have no node of their own: folded into the weights before them, or behind them.

In evaluation mode a batch norm is ``y = a x + b`` for each channel, with ``a = gamma / sqrt(var + eps)`` and ``b = beta - a mean``.

- Behind a Conv, a ConvTranspose or a Gemm that feeds nothing else, ``a`` scales that node's weights.
- Before Convs without padding, or Gemms, that are all it feeds, ``a`` scales their weights by input channel and ``b`` goes into
  their bias. With padding it cannot: the border is 0 behind the batch norm, which no weights make of the values before it.

What is left stays a node: a batch norm of a sum or of a concatenation before an activation (DenseNet's). The new weights are
computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Affine:
    """What a batch norm does to each channel: ``scale * x + shift``; both float64, shape (C,)."""

    scale: _Array
    shift: _Array


def fold_batch_norms(model: ir.Model) -> int:
    """Fold the batch norms of the main graph that can be folded.

    The node that takes one up keeps its name. Behind it, its output takes the batch norm's name; the values before and behind a
    batch norm that was folded forwards are one.

    Args:
        model: Changed in place.

    Returns:
        How many are gone.
    """
    n_folded = 0
    for node in list(model.graph):
        affine = _affine(node) if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx") else None
        if affine is not None and (_fold_backwards(model.graph, node, affine) or _fold_forwards(model.graph, node, affine)):
            n_folded += 1
    return n_folded


def _affine(node: ir.Node) -> _Affine | None:
    """None where it is in training mode, gives statistics, or its parameters are computed."""
    training = node.attributes.get("training_mode")
    if (training is not None and training.as_int() != 0) or any(output.uses() for output in node.outputs[1:]):
        return None
    parameters = [_constant(value) for value in node.inputs[1:5]]
    if any(parameter is None for parameter in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(parameter) for parameter in parameters)
    epsilon = node.attributes.get("epsilon")
    scale = gamma / np.sqrt(variance + (1e-5 if epsilon is None else epsilon.as_float()))
    return _Affine(scale, beta - scale * mean)


def _fold_backwards(graph: ir.Graph, norm: ir.Node, affine: _Affine) -> bool:
    value = norm.inputs[0]
    node = value.producer() if value is not None else None
    if value is None or node is None or value.is_graph_output() or len(value.uses()) != 1:
        return False
    weights = _weights(node)
    if weights is None or weights.n_outputs != len(affine.scale):
        return False
    weights.set(graph, weights.by_output(affine.scale), affine.scale * weights.bias + affine.shift)
    output = norm.outputs[0]
    value.name, name = None, output.name
    value.shape, value.type = output.shape, output.type
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    output.name, value.name = None, name
    graph.remove(norm, safe=True)
    return True


def _fold_forwards(graph: ir.Graph, norm: ir.Node, affine: _Affine) -> bool:
    source, output = norm.inputs[0], norm.outputs[0]
    uses = list(output.uses())
    if source is None or output.is_graph_output() or not uses or any(index != 0 for _, index in uses):
        return False
    takers = [_weights(use) for use, _ in uses]
    if not all(taker and taker.takes_shift and taker.n_inputs == len(affine.scale) for taker in takers):
        return False
    for taker in takers:
        assert taker is not None
        taker.set(graph, taker.by_input(affine.scale), taker.bias + taker.response(affine.shift))
    output.replace_all_uses_with(source)
    graph.remove(norm, safe=True)
    return True


@dataclass(frozen=True)
class _Weights:
    """The weights of a linear node.

    Attributes:
        node: Conv, ConvTranspose or Gemm.
        array: Its weights, laid out as (groups, outputs a group, inputs a group, ...).
        bias: Shape (outputs,); zeros where the node has none.
        takes_shift: Whether a constant that is added to its input adds a constant to each output channel.
    """

    node: ir.Node
    array: _Array
    bias: _Array
    takes_shift: bool

    @property
    def n_outputs(self) -> int:
        return self.array.shape[0] * self.array.shape[1]

    @property
    def n_inputs(self) -> int:
        return self.array.shape[0] * self.array.shape[2]

    def by_output(self, scale: _Array) -> _Array:
        groups, outputs = self.array.shape[:2]
        return self.array * scale.reshape(groups, outputs, *(1,) * (self.array.ndim - 2))

    def by_input(self, scale: _Array) -> _Array:
        groups, _, inputs = self.array.shape[:3]
        return self.array * scale.reshape(groups, 1, inputs, *(1,) * (self.array.ndim - 3))

    def response(self, constant: _Array) -> _Array:
        """What the node adds to each output channel where its input channels hold ``constant`` everywhere."""
        total: _Array = self.by_input(constant).sum(axis=tuple(range(2, self.array.ndim))).reshape(-1)
        return total

    def set(self, graph: ir.Graph, array: _Array, bias: _Array) -> None:
        """Give the node new weights; others that share the old ones keep them."""
        old = self.node.inputs[1]
        assert old is not None
        laid_out = _to_node(self.node, array)
        for index, new in ((1, laid_out), (2, bias)):
            current = self.node.inputs[index] if index < len(self.node.inputs) else None
            stem = current.name if current is not None else f"{old.name}_bias"
            value = _initializer(graph, current, str(stem), new.astype(np.float32))
            if index == len(self.node.inputs):
                self.node.resize_inputs(index + 1)
            self.node.replace_input_with(index, value)
        if self.node.op_type == "Gemm":
            self.node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
            self.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


def _weights(node: ir.Node) -> _Weights | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.inputs) < 2:
        return None
    array = _constant(node.inputs[1])
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = _constant(node.inputs[2]) if has_bias else np.zeros(())
    if array is None or bias is None or bias.ndim > 1 or (node.op_type == "Gemm" and _int(node, "transA", 0) != 0):
        return None
    if node.op_type == "Gemm":
        array, bias = _float(node, "alpha") * array, _float(node, "beta") * bias
    laid_out = _from_node(node, array)
    n_outputs = laid_out.shape[0] * laid_out.shape[1]
    return _Weights(node, laid_out, np.broadcast_to(bias, (n_outputs,)), takes_shift=_takes_shift(node))


def _from_node(node: ir.Node, array: _Array) -> _Array:
    if node.op_type == "Gemm":
        return (array if _int(node, "transB", 0) else array.T)[np.newaxis]
    groups = _int(node, "group", 1)
    grouped: _Array = array.reshape(groups, array.shape[0] // groups, *array.shape[1:])
    if node.op_type == "ConvTranspose":
        grouped = grouped.swapaxes(1, 2)
    return grouped


def _to_node(node: ir.Node, array: _Array) -> _Array:
    if node.op_type == "Gemm":
        (dense,) = array
        return np.asarray(dense if _int(node, "transB", 0) else dense.T)
    grouped = array.swapaxes(1, 2) if node.op_type == "ConvTranspose" else array
    merged: _Array = grouped.reshape(grouped.shape[0] * grouped.shape[1], *grouped.shape[2:])
    return merged


def _takes_shift(node: ir.Node) -> bool:
    if node.op_type == "ConvTranspose":
        return False  # its border gets fewer terms
    pads, auto_pad = node.attributes.get("pads"), node.attributes.get("auto_pad")
    padded = pads is not None and any(pads.as_ints())
    return not padded and (auto_pad is None or auto_pad.as_string() in ("NOTSET", "VALID"))


def _initializer(graph: ir.Graph, current: ir.Value | None, stem: str, array: npt.NDArray[np.float32]) -> ir.Value:
    """A new initializer under ``stem``, or under a name derived from it where others still use the old one."""
    name, n = stem, 0
    if current is not None and current.is_initializer() and len(current.uses()) == 1:
        graph.initializers.pop(stem)
        current.name = None
    while name in graph.initializers:
        n += 1
        name = f"{stem}_{n}"
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    graph.register_initializer(value)
    return value


def _constant(value: ir.Value | None) -> _Array | None:
    """A float32 constant in float64; None for what is computed, an input, or of another dtype."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    array: _Array = tensor.numpy().astype(np.float64)
    return array


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else float(attribute.as_float())
