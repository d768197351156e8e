"""Operator sets, operators and local functions: each one known, none that calls itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import onnx

from convoy.contract.errors import ExportError
from convoy.export.adopt.bodies import bodies, describe, subgraphs
from convoy.export.adopt.limits import MIN_OPSET_VERSION, RUNTIME_DOMAIN, RUNTIME_OPERATORS, Limits
from convoy.export.graph.targets import MAX_OPSET_VERSION

_STANDARD: Final = ("", "ai.onnx")
_FunctionKey = tuple[str, str, str]


def check_operators(model: onnx.ModelProto, limits: Limits) -> None:
    """Check that every node's operator is known, and that the model stays small when its local functions are written out.

    Known is what ONNX defines at the operator set that the file imports, a local function of the file, and those of ONNX
    Runtime's own operators that :data:`convoy.export.adopt.limits.RUNTIME_OPERATORS` names.

    Raises:
        ExportError: An operator set is missing, imported twice or outside 7 to 21; an operator is unknown or has an impossible
            number of inputs or outputs; functions call themselves, or grow beyond ``limits`` when they are written out.
    """
    imports = _imports("the file", model.opset_import)
    functions = _functions(model)
    _check_size(model, functions, limits)
    for body in bodies(model, limits):
        known = imports if body.function is None else _imports(body.where, body.function.opset_import)
        for node in body.nodes:
            _check_node(node, known, functions)


def _imports(owner: str, entries: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    domains = ["" if entry.domain in _STANDARD else entry.domain for entry in entries]
    if twice := [domain or "ai.onnx" for domain, count in Counter(domains).items() if count > 1]:
        raise ExportError(f"expected each operator set imported once by {owner}, found {twice[:5]} more than once: save it again.")
    imports = {domain: entry.version for domain, entry in zip(domains, entries, strict=True)}
    if owner == "the file" and "" not in imports:
        raise ExportError(
            f"expected a file that imports ONNX's own operator set, found {sorted(imports)[:5]} alone: it is no network."
        )
    opset = imports.get("", MIN_OPSET_VERSION)
    if opset > MAX_OPSET_VERSION:
        raise ExportError(
            f"expected opset {MIN_OPSET_VERSION} to {MAX_OPSET_VERSION}, found {opset} in {owner}: not every server loads it. "
            f"Export the network again with opset_version={MAX_OPSET_VERSION} or lower."
        )
    if opset < MIN_OPSET_VERSION:
        raise ExportError(
            f"expected opset {MIN_OPSET_VERSION} to {MAX_OPSET_VERSION}, found {opset} in {owner}, whose operators differ. "
            "Export the network again, or convert a file that you trust with onnx.version_converter.convert_version."
        )
    return imports


def _functions(model: onnx.ModelProto) -> dict[_FunctionKey, onnx.FunctionProto]:
    functions: dict[_FunctionKey, onnx.FunctionProto] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if function.domain in (*_STANDARD, RUNTIME_DOMAIN) or not function.name:
            raise ExportError(
                f"expected local functions in a domain of their own, found {key}: it would replace a standard operator."
            )
        if key in functions:
            raise ExportError(f"expected each local function once, found {key} twice: the file is damaged.")
        functions[key] = function
    return functions


def _key(node: onnx.NodeProto) -> _FunctionKey:
    return (node.domain, node.op_type, node.overload)


def _check_node(node: onnx.NodeProto, imports: dict[str, int], functions: dict[_FunctionKey, onnx.FunctionProto]) -> None:
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) != len(names):
        raise ExportError(f"expected each attribute once, found {names[:8]} in {describe(node)}: the file is damaged.")
    domain = "" if node.domain in _STANDARD else node.domain
    if (function := functions.get(_key(node))) is not None:
        if len(node.input) > len(function.input) or len(node.output) > len(function.output):
            raise ExportError(
                f"{describe(node)} has more inputs or outputs than the local function that it calls: the file is damaged."
            )
        return
    if domain == RUNTIME_DOMAIN and node.op_type in RUNTIME_OPERATORS:
        return
    if domain not in imports:
        raise ExportError(
            f"expected operators of imported operator sets ({sorted(imports)}), found {describe(node)} of {domain!r}."
        )
    try:
        schema = onnx.defs.get_schema(node.op_type, imports[domain], domain)
    except onnx.defs.SchemaError:
        schema = None
    if schema is None or schema.deprecated or domain.startswith("ai.onnx.preview"):
        set_name = f"{domain or 'ai.onnx'} {imports[domain]}"
        raise ExportError(
            f"expected operators that the target servers have, found {describe(node)}, which {set_name} does not have: "
            "export the network again without it, with standard ONNX operators."
        )
    _check_arity(node, schema)


def _check_arity(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> None:
    fits = schema.min_input <= len(node.input) <= schema.max_input and schema.min_output <= len(node.output) <= schema.max_output
    if not fits:
        raise ExportError(
            f"expected {schema.min_input} to {schema.max_input} inputs and {schema.min_output} to {schema.max_output} outputs at "
            f"{describe(node)}, found {len(node.input)} and {len(node.output)}: the file is damaged."
        )


def _check_size(model: onnx.ModelProto, functions: dict[_FunctionKey, onnx.FunctionProto], limits: Limits) -> None:
    sizes: dict[_FunctionKey, int] = {}
    for key in functions:
        _written_out(functions[key], key, functions, sizes, [], limits)
    total = _count(model.graph.node, functions, sizes, [], limits)
    if total > limits.max_nodes:
        raise ExportError(
            f"expected at most {limits.max_nodes:,} nodes, local functions written out, found {total:,}: the file is "
            "hostile, or no image network."
        )


def _written_out(
    function: onnx.FunctionProto,
    key: _FunctionKey,
    functions: dict[_FunctionKey, onnx.FunctionProto],
    sizes: dict[_FunctionKey, int],
    callers: list[_FunctionKey],
    limits: Limits,
) -> int:
    if key in sizes:
        return sizes[key]
    if key in callers:
        chain = " -> ".join(name for _, name, _ in [*callers[callers.index(key) :], key])
        raise ExportError(
            f"expected local functions that end, found one that calls itself ({chain}): the file is damaged or hostile."
        )
    if len(callers) >= 4 * limits.max_depth:
        raise ExportError(
            f"expected local functions that call {4 * limits.max_depth} deep at most, found more at {function.name!r}."
        )
    sizes[key] = _count(function.node, functions, sizes, [*callers, key], limits)
    return sizes[key]


def _count(
    nodes: Sequence[onnx.NodeProto],
    functions: dict[_FunctionKey, onnx.FunctionProto],
    sizes: dict[_FunctionKey, int],
    callers: list[_FunctionKey],
    limits: Limits,
) -> int:
    total = 0
    for node in nodes:
        key = _key(node)
        total += _written_out(functions[key], key, functions, sizes, callers, limits) if key in functions else 1
        for _, graph in subgraphs(node):
            total += _count(graph.node, functions, sizes, callers, limits)
    return total
