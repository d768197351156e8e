"""Names in their scopes: each value made once, before it is used, and no node that waits for itself."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator

import onnx

from convoy.contract.errors import ExportError
from convoy.export.adopt.bodies import describe, subgraphs

_Scope = ChainMap[str, bool]


def check_scopes(model: onnx.ModelProto) -> None:
    """Check that every graph and local function of ``model`` is in static single assignment form and sorted.

    The depth of nested graphs must have been bounded before (:func:`convoy.export.adopt.bodies.bodies`).

    Raises:
        ExportError: A name is missing or taken twice, an input is undefined, nodes are unsorted or form a cycle.
    """
    graph = model.graph
    if not graph.node or not graph.output or not graph.input:
        raise ExportError(
            f"expected a graph with nodes, inputs and outputs, found {len(graph.node)} nodes, {len(graph.input)} inputs and "
            f"{len(graph.output)} outputs: the file is cut short, damaged, or no model."
        )
    _check_graph(graph, "the graph", ChainMap())
    for function in model.functions:
        where, scope = f"the local function {function.name!r}", _Scope()
        _define(scope, function.input, where)
        _check_nodes(function.node, where, scope)
        _check_outputs(function.output, where, scope)


def _check_graph(graph: onnx.GraphProto, where: str, outer: _Scope) -> None:
    scope = outer.new_child()
    _define(scope, [value.name for value in graph.input], where)
    stored = [tensor.name for tensor in graph.initializer] + [tensor.values.name for tensor in graph.sparse_initializer]
    if len(set(stored)) != len(stored):
        raise ExportError(f"expected each initialiser of {where} once, found {_twice(stored)!r} twice: the file is damaged.")
    inputs = {value.name for value in graph.input}  # an initialiser may be the default of an input
    _define(scope, [name for name in stored if name not in inputs], where)
    _check_nodes(graph.node, where, scope)
    _check_outputs([value.name for value in graph.output], where, scope)


def _twice(names: list[str]) -> str:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), "")  # type: ignore[func-returns-value]


def _define(scope: _Scope, names: Iterable[str], where: str) -> None:
    for name in names:
        if not name:
            raise ExportError(
                f"expected names for all inputs and initialisers of {where}, found an empty one: the file is damaged."
            )
        if name in scope.maps[0]:
            raise ExportError(f"expected each value of {where} made once, found {name[:120]!r} made twice: the file is damaged.")
        scope[name] = True


def _check_outputs(names: Iterable[str], where: str, scope: _Scope) -> None:
    listed = list(names)
    if len(set(listed)) != len(listed):
        raise ExportError(f"expected each output of {where} once, found {_twice(listed)!r} twice: the file is damaged.")
    for name in listed:
        if name not in scope:
            raise ExportError(f"expected outputs of {where} that something makes, found {name[:120]!r}: the file is damaged.")


def _check_nodes(nodes: Iterable[onnx.NodeProto], where: str, scope: _Scope) -> None:
    for node in nodes:
        for name in node.input:
            if name and name not in scope:
                raise _undefined(name, node, list(nodes), where)
        for attribute, graph in subgraphs(node):
            try:
                _check_graph(graph, f"{attribute!r} of {describe(node)}", scope)
            except _UndefinedError as error:
                raise _undefined(error.name, node, list(nodes), where) from error
        _define(scope, [name for name in node.output if name], where)


class _UndefinedError(ExportError):
    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def _undefined(name: str, node: onnx.NodeProto, nodes: list[onnx.NodeProto], where: str) -> ExportError:
    makers = {output: maker for maker in nodes for output in maker.output if output}
    if name not in makers:
        message = f"expected inputs that something makes, found {name[:120]!r} at {describe(node)} in {where}: the file is damaged."
        return _UndefinedError(message, name)
    if _waits_for(makers[name], node, makers):
        return ExportError(
            f"expected a graph without cycles, found one in {where}: {describe(node)} waits for {name[:120]!r}, which "
            f"{describe(makers[name])} makes from its result. The file is damaged or hostile."
        )
    return ExportError(
        f"expected nodes in the order of their work, found {describe(node)} before {describe(makers[name])}, which makes its input "
        f"{name[:120]!r}: sort the graph (onnx_ir's Model.graph.sort()), and save it again."
    )


def _waits_for(maker: onnx.NodeProto, node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> bool:
    targets = {output for output in node.output if output}
    pending, seen = [maker], set[str]()
    while pending:
        current = pending.pop()
        for name in _reads(current):
            if name in targets:
                return True
            if name in makers and name not in seen:
                seen.add(name)
                pending.append(makers[name])
    return maker is node


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for _, graph in subgraphs(node):
        for inner in graph.node:
            yield from _reads(inner)
        yield from (value.name for value in graph.output)
