"""The parts of a classifier's graph: preprocessing on pixels, layers with weights, and the head that ends in logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx

from convoy.contract.errors import ExportError

WEIGHTED_OPERATORS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Where nearly all arithmetic and nearly all weights of a network are."""


@dataclass(frozen=True)
class Layer:
    """A node with weights and what follows it, up to the next such node.

    Attributes:
        name: The name of the node with weights.
        nodes: The names of all its nodes, that one first.
    """

    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """A graph's nodes by what they are for.

    Attributes:
        preprocessing: Names of the nodes without weights that no node with weights comes before.
        layers: The layers, in the graph's order.
        head: Names of the nodes without weights that no node with weights comes after (the softmax, at least).
        last: Tensors that nodes with weights make for the head or as outputs, and for nothing else.
    """

    preprocessing: frozenset[str]
    layers: tuple[Layer, ...]
    head: frozenset[str]
    last: frozenset[str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Structure:
        """The structure of ``model``, whose nodes are sorted and have unique names (``prepare``)."""
        graph = model.graph
        constants = {tensor.name for tensor in graph.initializer}
        constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
        weighted = {
            node.name
            for node in graph.node
            if node.op_type in WEIGHTED_OPERATORS and (constants.intersection(node.input) or node.op_type == "MatMul")
        }
        before: dict[str, int] = {}  # tensor -> index of the last layer that it depends on
        members: list[list[str]] = []
        preprocessing = set()
        for node in graph.node:
            layer = max((before.get(name, -1) for name in node.input), default=-1)
            if node.name in weighted:
                layer = len(members)
                members.append([])
            if layer >= 0:
                members[layer].append(node.name)
            else:
                preprocessing.add(node.name)
            before.update(dict.fromkeys(node.output, layer))

        needed: set[str] = set()  # tensors that a node with weights depends on
        head = set()
        for node in reversed(graph.node):
            if node.name in weighted or needed.intersection(node.output):
                needed.update(node.input)
            elif node.name not in preprocessing:
                head.add(node.name)
        last = {name for node in graph.node if node.name in weighted for name in node.output if name not in needed}
        layers = tuple(Layer(names[0], tuple(name for name in names if name not in head)) for names in members)
        return cls(frozenset(preprocessing), layers, frozenset(head), frozenset(last))


def prepare(model: bytes) -> onnx.ModelProto:
    """Parse a model; give every node a name that no other has.

    Raises:
        ExportError: It is no ONNX file.
    """
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf raises several kinds
        raise ExportError(f"expected an ONNX file, found something else: {error}") from error
    taken = {node.name for node in proto.graph.node}
    seen: set[str] = set()
    for i, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            node.name = next(name for k in range(len(taken) + 1) if (name := f"{node.op_type}_{i}_{k}") not in taken)
            taken.add(node.name)
        seen.add(node.name)
    return proto


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initialisers that no output depends on."""
    used = {output.name for output in graph.output}
    kept = []
    for node in reversed(sorted_nodes(graph)):
        if used.intersection(node.output):
            kept.append(node)
            used.update(node.input)
            used.update(captured(node))
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def sorted_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes in an order in which each comes after what it depends on; otherwise in the order that they have.

    Raises:
        ExportError: The graph has a cycle, or a value that nothing makes.
    """
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output}
    order: list[int] = []
    state = [0] * len(graph.node)  # 0 new, 1 waits for what it depends on, 2 placed
    for start in range(len(graph.node)):
        stack = [start]
        while stack:
            i = stack[-1]
            if state[i] == 0:
                state[i] = 1
                needs = [maker[name] for name in (*graph.node[i].input, *captured(graph.node[i])) if name in maker]
                if any(state[k] == 1 for k in needs):
                    raise ExportError(f"expected a graph without cycles, found one through node {graph.node[i].name!r}.")
                stack.extend(k for k in reversed(needs) if state[k] == 0)
                continue
            stack.pop()
            if state[i] == 1:
                state[i] = 2
                order.append(i)
    return [graph.node[i] for i in order]


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the node's subgraphs read, those of the surrounding graph among them."""
    graphs = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    return {name for graph in graphs for inner in graph.node for name in (*inner.input, *captured(inner))} | {
        output.name for graph in graphs for output in graph.output
    }
