"""A foreign file in float64: the same weights, every sum and product in double precision, by the ONNX reference evaluator."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from convoy.export.adopt.names import bodies, graphs, opset_version, reads, title
from convoy.export.adopt.reference_operators import operators_of
from convoy.export.adopt.running import batches, first_line, open_plain, rows_of, run_plain, with_outputs

_NARROW: Final = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
_TYPE_ATTRIBUTES: Final = {"to", "dtype", "output_dtype"}


@dataclass(frozen=True)
class WideAnswers:
    """What the reference evaluator gave.

    Attributes:
        outputs: By value: float64, (rows, values a row), for the first rows alone where time ran out; empty where nothing came.
        uncovered: Operators that it lacks or computes in less than float64, and what stopped it, for people.
    """

    outputs: dict[str, npt.NDArray[np.float64]]
    uncovered: tuple[str, ...]


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which every float16, bfloat16 and float32 tensor, constant and cast is float64.

    Weights keep their values. Scales and zero points of quantised operators are widened with the rest.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for graph in graphs(wide.graph):
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for sparse in graph.sparse_initializer:
            _widen_tensor(sparse.values)
        del graph.value_info[:]
        for value in (*graph.input, *graph.output):
            if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in _NARROW:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            _widen_node(node)
    return wide


def _widen_node(node: onnx.NodeProto) -> None:
    if node.op_type == "Constant":
        for key in ("value_float", "value_floats"):
            for entry in [entry for entry in node.attribute if entry.name == key]:
                value = np.asarray(onnx.helper.get_attribute_value(entry), dtype=np.float64)
                node.attribute.remove(entry)
                node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(value)))
    if node.op_type in ("ConstantOfShape",) and not node.attribute:  # float32 zeros where it says nothing
        node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    for entry in node.attribute:
        if entry.type == onnx.AttributeProto.TENSOR:
            _widen_tensor(entry.t)
        elif entry.name in _TYPE_ATTRIBUTES and entry.type == onnx.AttributeProto.INT and entry.i in _NARROW:
            entry.i = TensorProto.DOUBLE


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _NARROW:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def run_wide(
    model: onnx.ModelProto,
    name: str,
    feed: npt.NDArray[Any],
    outputs: Sequence[str],
    batch_size: int,
    *,
    fixed: bool,
    has_batch_axis: bool = True,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> WideAnswers:
    """Run a model in float64, as many rows as the time allows, at least one call.

    Args:
        model: The foreign model, as it came.
        name: Its input.
        feed: float64 rows for the input (whole numbers as they are), (n, ...).
        outputs: Values of the main graph that are wanted.
        batch_size: Rows a call.
        fixed: The file takes exactly that many: the last call is filled up with its last row.
        has_batch_axis: False where the file takes one row without an axis that counts them.
        budget_s: After this many seconds no further call is begun.
        clock: Tells the time in seconds.
    """
    wide = widen(model)
    wide.graph.output.extend(
        onnx.ValueInfoProto(name=output) for output in outputs if output not in {value.name for value in wide.graph.output}
    )
    try:
        evaluator = evaluator_of(wide)
    except Exception as error:  # noqa: BLE001  the evaluator raises many kinds for what it does not know
        return WideAnswers({}, lacks(wide) or (f"the ONNX reference evaluator refuses the graph: {first_line(error)}",))
    started = clock()
    parts: dict[str, list[npt.NDArray[np.float64]]] = {output: [] for output in outputs}
    narrow: dict[str, None] = {}
    for rows, n in batches(feed, batch_size, fixed=fixed):
        if parts[outputs[0]] and clock() - started > budget_s:
            break
        try:
            with np.errstate(all="ignore"):  # infinities show in the result
                values: Any = evaluator.run(None, {name: rows if has_batch_axis else rows[0]}, intermediate=True)
        except Exception as error:  # noqa: BLE001  numpy's and the evaluator's many kinds
            return WideAnswers({}, (f"the ONNX reference evaluator fails: {first_line(error)}",))
        narrow.update(dict.fromkeys(_narrowed(wide.graph, values)))
        for output in outputs:
            parts[output].append(rows_of(output, np.asarray(values[output], dtype=np.float64), len(rows))[:n])
    if narrow:
        return WideAnswers(
            {}, tuple(f"{op_type} (the ONNX reference evaluator computes it in less than float64)" for op_type in narrow)
        )
    return WideAnswers({output: np.concatenate(found) for output, found in parts.items()}, ())


def evaluator_of(model: onnx.ModelProto) -> ReferenceEvaluator:
    """The reference evaluator, with operators of old operator sets put right."""
    return ReferenceEvaluator(model, new_ops=operators_of(opset_version(model)))


def first_disagreement(model: onnx.ModelProto, name: str, rows: npt.NDArray[Any]) -> str | None:
    """The first node that the evaluator in float64 and ONNX Runtime in float32 read differently.

    Rounding is no disagreement: differences count from 2 % of the largest value on, from 10 % in networks of float16, and only if
    the node gives them on ONNX Runtime's own inputs too, where earlier rounding cannot have grown.

    Args:
        model: The foreign model, as it came.
        name: Its input.
        rows: What goes in, float64 (whole numbers as they are).

    Returns:
        The node for people; None where they agree.
    """
    slack = 0.1 if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer) else 0.02
    narrow = next(value for value in model.graph.input if value.name == name).type.tensor_type.elem_type
    wanted = {value.name for value in model.graph.output}.union(*(reads(node) for node in model.graph.node))
    values = [output for node in model.graph.node for output in node.output if output in wanted]  # not the masks of old Dropouts
    feed = rows.astype(onnx.helper.tensor_dtype_to_np_dtype(narrow))
    found = run_plain(open_plain(with_outputs(model, values)), {name: feed})
    wide = widen(model)
    try:
        with np.errstate(all="ignore"):
            truth: Any = evaluator_of(wide).run(None, {name: rows}, intermediate=True)
    except Exception:  # noqa: BLE001  ``run_wide`` says why it fails
        return None
    stored = {tensor.name: tensor for tensor in wide.graph.initializer}
    for node in wide.graph.node:
        for output in node.output:
            if output not in found or found[output].dtype.kind != "f" or _near(found[output], truth.get(output), slack):
                continue
            given = {
                entry: numpy_helper.to_array(stored[entry]) if entry in stored else _wide({name: feed, **found}.get(entry))
                for entry in node.input
                if entry
            }
            if not _near(found[output], _alone(wide, node, given, output), slack):
                return title(node)
    return None


def _alone(wide: onnx.ModelProto, node: onnx.NodeProto, given: dict[str, Any], output: str) -> Any:
    """What the evaluator makes of a node's inputs; None where it cannot, or where the node reads more than its inputs."""
    if reads(node) - given.keys() or any(value is None for value in given.values()):
        return None
    inputs = [onnx.ValueInfoProto(name=entry) for entry in given]
    graph = onnx.helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=output)])
    try:
        with np.errstate(all="ignore"):
            made: Any = evaluator_of(onnx.helper.make_model(graph, opset_imports=wide.opset_import)).run([output], given)
    except Exception:  # noqa: BLE001  the evaluator has many kinds; then nothing speaks for agreement
        return None
    return made[0]


def _wide(value: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    return value.astype(np.float64) if value is not None and value.dtype.kind == "f" else value


def _near(actual: npt.NDArray[Any], truth: Any, slack: float) -> bool:
    if not isinstance(truth, np.ndarray) or truth.shape != actual.shape:
        return False
    both = np.isfinite(actual) & np.isfinite(truth)
    scale = float(np.abs(truth[both]).max(initial=0))
    return float(np.abs(actual[both].astype(np.float64) - truth[both]).max(initial=0)) <= slack * scale + 1e-6


def lacks(model: onnx.ModelProto) -> tuple[str, ...]:
    """The operators of ``model`` that the reference evaluator lacks, for people."""
    found: dict[str, None] = {}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for graph in graphs(model.graph):
        for node in graph.node:
            if any(True for _ in bodies(node)):
                continue  # its bodies are looked at by themselves
            operator = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            if operator not in found and not _has(node, versions):
                found[operator] = None
    return tuple(f"{operator} (the ONNX reference evaluator lacks it)" for operator in found)


def _has(node: onnx.NodeProto, versions: dict[str, int]) -> bool:
    graph = onnx.helper.make_graph([node], "one", [onnx.ValueInfoProto(name=name) for name in node.input if name], [])
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
    try:
        ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports))
    except Exception:  # noqa: BLE001  the evaluator raises many kinds for what it does not know
        return False
    return True


def _narrowed(graph: onnx.GraphProto, values: dict[str, Any]) -> list[str]:
    """Operators that made float32 or float16 of what went in as float64."""
    return [
        node.op_type
        for node in graph.node
        if any(getattr(values.get(name), "dtype", None) in (np.float32, np.float16) for name in node.output if name)
        and not any(getattr(values.get(name), "dtype", None) in (np.float32, np.float16) for name in node.input if name)
    ]
