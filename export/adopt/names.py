"""Values by name, through a graph and the bodies of its control flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx

Shape = tuple["int | None", ...]
"""Dims of a tensor; None where one is not fixed."""


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node (the branches of If, the body of Loop and Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and all graphs inside it."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def reads(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads, those that its bodies take from outside among them."""
    found = {name for name in node.input if name}
    for body in bodies(node):
        found.update(value.name for value in body.output)
        for inner in body.node:
            found |= reads(inner)
    return found


def every_name(graph: onnx.GraphProto) -> set[str]:
    """The names of all values in ``graph`` and the graphs inside it."""
    found: set[str] = set()
    for part in graphs(graph):
        found.update(value.name for value in (*part.input, *part.output))
        found.update(tensor.name for tensor in part.initializer)
        found.update(tensor.values.name for tensor in part.sparse_initializer)
        for node in part.node:
            found.update((*node.input, *node.output))
    return found - {""}


def rename(graph: onnx.GraphProto, new_names: Mapping[str, str]) -> None:
    """Rename values everywhere, bodies included. The new names must be free."""
    if not new_names:
        return
    for part in graphs(graph):
        for value in (*part.input, *part.output, *part.value_info):
            value.name = new_names.get(value.name, value.name)
        for tensor in part.initializer:
            tensor.name = new_names.get(tensor.name, tensor.name)
        for sparse in part.sparse_initializer:
            sparse.values.name = new_names.get(sparse.values.name, sparse.values.name)
        for node in part.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name in new_names:
                        names[i] = new_names[name]


def prune(graph: onnx.GraphProto, outputs: Iterable[str]) -> int:
    """Drop the nodes and initialisers that no output needs.

    Args:
        graph: Sorted; changed in place.
        outputs: The values that are wanted.

    Returns:
        How many nodes went.
    """
    wanted = set(outputs)
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= reads(node)
    n_dropped = len(graph.node) - len(kept)
    if n_dropped:
        _replace(graph.node, kept[::-1])
    if any(tensor.name not in wanted for tensor in graph.initializer):
        _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in wanted])
    if any(tensor.values.name not in wanted for tensor in graph.sparse_initializer):
        _replace(graph.sparse_initializer, [tensor for tensor in graph.sparse_initializer if tensor.values.name in wanted])
    return n_dropped


def _replace(field, kept) -> None:  # type: ignore[no-untyped-def]  # protobuf's repeated fields have no types here
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
    del field[:]
    field.extend(copies)


def opset_version(model: onnx.ModelProto) -> int:
    """The version of the standard operator set that ``model`` imports."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def shape_of(value: onnx.ValueInfoProto) -> Shape | None:
    """The dims that a value declares; None where it declares none."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims)


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: files of IR 3 list every initialiser among the inputs, too."""
    stored = {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in stored]


def makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """By value, the node that makes it."""
    return {name: node for node in graph.node for name in node.output if name}


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or ``default``."""
    return next((onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def title(node: onnx.NodeProto) -> str:
    """A node for people: its name, or what it makes, and its operator."""
    return f"{node.name or next((name for name in node.output if name), '?')!r} ({node.op_type})"
