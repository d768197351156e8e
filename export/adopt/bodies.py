"""The graphs of a model, one by one: the main graph, the graphs inside its nodes, the local functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from convoy.contract.errors import ExportError
from convoy.export.adopt.limits import Limits


@dataclass(frozen=True)
class Body:
    """Nodes that stand in one scope.

    Attributes:
        source: The graph or the local function.
        where: How messages call it.
        depth: How many graphs enclose it.
        function: The function in which it stands, if any.
    """

    source: onnx.GraphProto | onnx.FunctionProto
    where: str
    depth: int
    function: onnx.FunctionProto | None

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The nodes in the file's order."""
        return self.source.node


def bodies(model: onnx.ModelProto, limits: Limits) -> Iterator[Body]:
    """Yield every body of ``model``, those inside nodes included.

    Raises:
        ExportError: Graphs are nested deeper than ``limits.max_depth``.
    """
    pending = [Body(model.graph, "the graph", 0, None)]
    pending += [Body(function, f"the local function {function.name!r}", 0, function) for function in model.functions]
    while pending:
        body = pending.pop()
        yield body
        for node in body.nodes:
            for attribute, graph in subgraphs(node):
                if body.depth + 1 > limits.max_depth:
                    raise ExportError(
                        f"expected graphs nested {limits.max_depth} deep at most, found more in {describe(node)}: "
                        "flatten its If, Loop or Scan nodes."
                    )
                pending.append(Body(graph, f"{attribute!r} of {describe(node)}", body.depth + 1, body.function))


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield the graphs inside ``node`` with their attributes' names."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def describe(node: onnx.NodeProto) -> str:
    """Call a node by what a person can search for: its name, else its first output."""
    name = node.name or next((output for output in node.output if output), "")
    return f"the {node.op_type} node {name[:120]!r}"
