"""An ONNX graph as something to walk: nodes in topological order, who makes and who reads each value, what weights hold."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from convoy.contract.errors import ExportError

_SCOPES = "pkg.torch.onnx.name_scopes"
_SERVABLE = "classifier."  # Servable's one attribute: its users never wrote it


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        index: Its place in topological order.
        name: Its name, or one made from operator and place where it has none.
        proto: The node.
        reads: Values that it reads and that other nodes or the caller make: its own inputs in their order, then what its
            subgraphs read from outside. No weights, no absent inputs.
    """

    index: int
    name: str
    proto: onnx.NodeProto
    reads: tuple[str, ...]

    @property
    def op_type(self) -> str:
        """The operator, with its domain where that is not ONNX's."""
        domain = self.proto.domain
        return self.proto.op_type if domain in ("", "ai.onnx") else f"{domain}::{self.proto.op_type}"

    @property
    def makes(self) -> tuple[str, ...]:
        """The values that it makes."""
        return tuple(name for name in self.proto.output if name)

    @property
    def module(self) -> str:
        """The path of the PyTorch module that it came from, by the exporter's note; empty where there is none."""
        for entry in self.proto.metadata_props:
            if entry.key == _SCOPES:
                try:
                    scopes = ast.literal_eval(entry.value)
                except (ValueError, SyntaxError):
                    return ""
                return module_path(str(scopes[-2])) if isinstance(scopes, list) and len(scopes) > 1 else ""
        return ""


def module_path(path: str) -> str:
    """A module's path as the network's author knows it: without the wrapper that the export puts around."""
    if path in ("classifier", "_empty_nn_module_stack_from_metadata_hook"):
        return ""
    return path.removeprefix(_SERVABLE)


@dataclass(frozen=True)
class Structure:
    """An ONNX model's graph.

    Attributes:
        model: The model.
        nodes: In topological order; equals stay in the file's order.
        weights: By name, what the file holds (initialisers).
        inputs: What the caller feeds.
        outputs: What the caller gets.
        cyclic: Nodes that wait for each other or for a value that nothing makes; they stand at the end of ``nodes``.
    """

    model: onnx.ModelProto
    nodes: tuple[Node, ...]
    weights: Mapping[str, onnx.TensorProto]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cyclic: frozenset[int]
    _digests: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, model: onnx.ModelProto | bytes) -> Structure:
        """Index a model.

        Raises:
            ExportError: The bytes are no ONNX model.
        """
        if isinstance(model, bytes):
            try:
                model = onnx.load_model_from_string(model)
            except Exception as error:  # protobuf's parser raises its own kinds
                raise ExportError(f"expected an ONNX model, found bytes that do not parse as one: {error}") from error
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        inputs = tuple(value.name for value in model.graph.input if value.name not in weights)
        nodes, cyclic = _sort(model.graph, set(weights), set(inputs))
        return cls(model, nodes, weights, inputs, tuple(value.name for value in model.graph.output), cyclic)

    @cached_property
    def makers(self) -> dict[str, Node]:
        """By value, the node that makes it."""
        return {name: node for node in self.nodes for name in node.makes}

    @cached_property
    def readers(self) -> dict[str, tuple[Node, ...]]:
        """By value, the nodes that read it."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.reads):
                readers.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    @cached_property
    def last_reader(self) -> dict[str, int]:
        """By value, the place of the last node that reads it."""
        return {name: nodes[-1].index for name, nodes in self.readers.items()}

    @cached_property
    def datatypes(self) -> dict[str, int]:
        """By value, ONNX's element type as shape inference finds it; values that it cannot tell are absent."""
        try:
            inferred = onnx.shape_inference.infer_shapes(self._without_weights())
        except Exception:  # noqa: BLE001 inference refuses broken graphs with several kinds
            inferred = self.model
        known = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        return {value.name: value.type.tensor_type.elem_type for value in known if value.type.tensor_type.elem_type}

    def digest(self, weight: str) -> bytes:
        """What a weight holds, as a digest over datatype, dims and elements."""
        if weight not in self._digests:
            tensor = self.weights[weight]
            array = np.ascontiguousarray(numpy_helper.to_array(tensor))
            head = f"{tensor.data_type} {tuple(tensor.dims)} ".encode()
            data = str(array.tolist()).encode() if array.dtype == object else array.tobytes()
            self._digests[weight] = hashlib.sha256(head + data).digest()
        return self._digests[weight]

    def array(self, weight: str) -> npt.NDArray[Any]:
        """A weight's elements."""
        array: npt.NDArray[Any] = numpy_helper.to_array(self.weights[weight])
        return array

    def signature(self, node: Node) -> tuple[Any, ...]:
        """What a node computes: two nodes of one signature give the same outputs for the same ``reads``."""
        parts = [self.digest(name) if name in self.weights else b"read" if name else b"absent" for name in node.proto.input]
        bodies = [attribute.SerializeToString(deterministic=True) for attribute in node.proto.attribute]
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.proto.attribute):
            bodies.extend(self.digest(name) for name in outer_names(node.proto) if name in self.weights)
        return (node.op_type, len(node.proto.output), tuple(parts), tuple(sorted(bodies)))

    def _without_weights(self) -> onnx.ModelProto:
        """A copy for shape inference, large weights as typed inputs: only their types matter, and copying them is slow."""
        light = onnx.ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import)
        light.functions.extend(self.model.functions)
        light.graph.name = "graph"
        light.graph.node.extend(node.proto for node in self.nodes)
        light.graph.input.extend(value for value in self.model.graph.input if value.name not in self.weights)
        light.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in self.model.graph.output)
        for name, tensor in self.weights.items():
            if np.prod(tensor.dims, dtype=np.int64) <= 64:
                light.graph.initializer.append(tensor)
            else:
                light.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        return light


def outer_names(node: onnx.NodeProto) -> list[str]:
    """What a node's subgraphs read from outside, each name once."""
    names: dict[str, None] = {}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inside = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            for inner in graph.node:
                for name in (*inner.input, *outer_names(inner)):
                    if name and name not in inside:
                        names[name] = None
                inside.update(inner.output)
            names.update({value.name: None for value in graph.output if value.name not in inside})
    return list(names)


def _sort(graph: onnx.GraphProto, weights: set[str], inputs: set[str]) -> tuple[tuple[Node, ...], frozenset[int]]:
    reads = [tuple(name for name in (*node.input, *outer_names(node)) if name and name not in weights) for node in graph.node]
    made = set(inputs)
    waiting = list(range(len(graph.node)))
    order: list[int] = []
    while waiting:
        left = []
        for i in waiting:
            if made.issuperset(reads[i]):
                made.update(graph.node[i].output)
                order.append(i)
            else:
                left.append(i)
        if len(left) == len(waiting):
            break
        waiting = left
    n_sorted = len(order)
    order.extend(waiting if n_sorted < len(graph.node) else [])
    used: set[str] = set()
    nodes = []
    for place, i in enumerate(order):
        proto = graph.node[i]
        name = proto.name if proto.name and proto.name not in used else f"{proto.name or proto.op_type}#{i}"
        used.add(name)
        nodes.append(Node(place, name, proto, reads[i]))
    return tuple(nodes), frozenset(range(n_sorted, len(nodes)))


def attributes(node: onnx.NodeProto, opset: int) -> dict[str, Any]:
    """A node's attributes with the operator's defaults filled in; tensors and subgraphs as their bytes."""
    found: dict[str, Any] = {}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        for name, declared in schema.attributes.items():
            if declared.default_value.name:
                found[name] = _plain(onnx.helper.get_attribute_value(declared.default_value))
    except onnx.defs.SchemaError:
        pass  # an operator that ONNX does not define has no defaults to fill in
    for own in node.attribute:
        found[own.name] = _plain(onnx.helper.get_attribute_value(own))
    return found


def opset_version(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set that a model asks for."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        array = numpy_helper.to_array(value)
        return array.tolist() if array.size <= 16 else value.SerializeToString(deterministic=True)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if hasattr(value, "SerializeToString"):
        return value.SerializeToString(deterministic=True)
    return value
