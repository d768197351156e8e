"""The truth for an ONNX file without a source: ONNX's own reference evaluator, node by node, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from convoy.export.diagnosis.difference import max_abs_diff
from convoy.export.diagnosis.running import NodeError, as_datatype, first_line, run_node
from convoy.export.diagnosis.structure import Node, Structure, outer_names
from convoy.export.diagnosis.trace import Trace, allowed_difference, count_terms
from convoy.export.diagnosis.values import MEMORY_BYTES, Values

Value = npt.NDArray[Any]
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def trace_onnx(model: bytes, images: npt.NDArray[Any], memory_bytes: int = MEMORY_BYTES) -> Trace:
    """The truth of an ONNX file that others made: each node by ONNX's reference evaluator, in float64 and in float32.

    A node that the evaluator lacks, or fails on, is uncovered: what it makes has no truth. What follows it is computed from what
    ONNX Runtime makes there without graph optimisations; that proves what follows, not the node.

    Args:
        model: The file's bytes, trusted: nothing here bounds what a hostile file asks for.
        images: What the model takes, for all of its inputs; n on the first axis.
        memory_bytes: How much of the values stays in memory; the rest lies in a temporary folder.

    Raises:
        ExportError: The bytes are no ONNX model.
    """
    structure = Structure.of(model)
    truth = _Truth(structure, images, memory_bytes)
    for node in structure.nodes:
        truth.add(node)
    return Trace(
        images=images, structure=structure, values=truth.values, allowed=truth.allowed, errors=truth.errors,
        modules={name: node.module for name, node in structure.makers.items()}, proven=frozenset(truth.values),
        departing=frozenset(truth.departing), uncovered=tuple(truth.uncovered),
        retrace=lambda others: trace_onnx(model, others, memory_bytes),
    )  # fmt: skip


class _Truth:
    """What is known so far."""

    def __init__(self, structure: Structure, images: npt.NDArray[Any], memory_bytes: int) -> None:
        self.structure = structure
        self.values = Values(memory_bytes)
        self.allowed: dict[str, float] = {}
        self.errors: dict[str, float] = {}
        self.departing: set[str] = set()
        self.uncovered: list[str] = []
        self._narrow = Values(memory_bytes)  # the same values where all is computed in float32
        self._assumed = Values(memory_bytes)  # ONNX Runtime's, where there is no truth
        for name in structure.inputs:
            self._assumed.add(name, as_datatype(images, structure.datatypes.get(name)))

    def add(self, node: Node) -> None:
        """Compute what ``node`` makes."""
        if not all(name in self.values or name in self._assumed for name in node.reads):
            self.uncovered.append(f"{node.name} ({node.op_type}): what it reads is uncovered")
            return
        true = {name: self.values[name] if name in self.values else _widened(self._assumed[name]) for name in node.reads}
        typed = {name: as_datatype(value, self.structure.datatypes.get(name)) for name, value in true.items()}
        try:
            wide = evaluate_node(self.structure, node, true, in_float64=True)
            own = evaluate_node(self.structure, node, typed, in_float64=False)
        except NodeError as error:
            self.uncovered.append(f"{node.name} ({node.op_type}): {error}")
            self._assume(node, typed)
            return
        narrow = self._run_narrow(node, own)
        for name, value in wide.items():
            self.values.add(name, value)
            self.allowed[name] = allowed_difference(value, _difference(value, own.get(name)), count_terms(node, typed, value))
            self.errors[name] = _difference(value, narrow.get(name))
            if name in narrow:
                self._narrow.add(name, narrow[name])
        self._prove(node, typed)

    def _assume(self, node: Node, typed: Mapping[str, Value]) -> None:
        try:
            made = run_node(self.structure, node, typed)
        except NodeError as error:
            self.uncovered[-1] += f"; ONNX Runtime cannot run it either: {error}"
            return
        for name, value in made.items():
            self._assumed.add(name, value)

    def _prove(self, node: Node, typed: Mapping[str, Value]) -> None:
        """Whether ONNX Runtime gives the same for this node: a runtime's fault shows here."""
        try:
            made = run_node(self.structure, node, typed)
        except NodeError:
            self.departing.update(node.makes)
            return
        for name, value in made.items():
            if name in self.values and _difference(self.values[name], value) > self.allowed[name]:
                self.departing.add(name)

    def _run_narrow(self, node: Node, own: Mapping[str, Value]) -> Mapping[str, Value]:
        feeds = {
            name: self._narrow[name] if name in self._narrow else self._assumed[name]
            for name in node.reads
            if name in self._narrow or name in self._assumed
        }
        if len(feeds) < len(set(node.reads)):
            return own
        try:
            return evaluate_node(self.structure, node, feeds, in_float64=False)
        except NodeError:
            return own


def evaluate_node(structure: Structure, node: Node, feeds: Mapping[str, Value], *, in_float64: bool) -> dict[str, Value]:
    """Run one node in ONNX's reference evaluator.

    Args:
        structure: The graph that it stands in.
        node: The node.
        feeds: A value for each of ``node.reads``.
        in_float64: Whether weights, constants and casts to float32 become float64.

    Raises:
        NodeError: The evaluator lacks the operator, fails on it, or the operator is random.
    """
    if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.proto.input) > 2):
        raise NodeError("random operators have no truth")
    source = structure.model
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    if in_float64:
        _widen_attributes(proto)
    model = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
    model.functions.extend(source.functions)
    model.graph.name = "node"
    model.graph.node.append(proto)
    weights = {name: structure.array(name) for name in _weights(structure, node)}
    given = dict(feeds) | {name: _widened(array) if in_float64 else array for name, array in weights.items()}
    model.graph.input.extend(onnx.ValueInfoProto(name=name) for name in given)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.makes)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            made = ReferenceEvaluator(model).run(list(node.makes), given)
    except Exception as error:  # the evaluator's operators raise whatever numpy does
        raise NodeError(f"ONNX's reference evaluator cannot run it: {type(error).__name__}: {first_line(error)}") from error
    arrays = {
        name: np.asarray(value) for name, value in zip(node.makes, made, strict=True) if isinstance(value, (np.ndarray, np.generic))
    }
    return {name: _widened(array) if in_float64 else array for name, array in arrays.items()}


def _weights(structure: Structure, node: Node) -> list[str]:
    return [name for name in dict.fromkeys((*node.proto.input, *outer_names(node.proto))) if name in structure.weights]


def _widen_attributes(node: onnx.NodeProto) -> None:
    """Let a node make float64 where it names float32, in its subgraphs too."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.INT and attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.DOUBLE
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64), attribute.t.name))
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for tensor in graph.initializer:
                if tensor.data_type == TensorProto.FLOAT:
                    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
            for inner in graph.node:
                _widen_attributes(inner)


def _widened(value: Value) -> Value:
    return value.astype(np.float64) if value.dtype == np.float32 else value


def _difference(truth: Value, other: Value | None) -> float:
    return max_abs_diff(truth, other) if other is not None and other.shape == truth.shape else float("inf")
