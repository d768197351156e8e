"""float16: half the bytes, and twice the arithmetic on GPUs, with float32 where float16 would not carry the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from convoy.contract.errors import ExportError
from convoy.export.precision.converted import Converted, serialize
from convoy.export.precision.extremes import float_tensors, largest_values, smallest_values
from convoy.export.precision.structure import Structure, prepare

FLOAT16_MAX: Final = 65504.0
HEADROOM: Final = 4.0
"""A tensor stays in float32 where it comes within this factor of float16's largest value: other images may go further."""
MAX_WEIGHT_ERROR: Final = 2.0**-10
"""Weights stay in float32 where float16 is off by more than this share of the largest: twice what rounding costs in its normal
range."""
SMALLEST_DIVISOR: Final = 2.0**-14
"""A divisor that becomes smaller stays in float32: below its normal range float16 loses digits, and soon all of them."""
MAX_SUM_LENGTH: Final = 2048
"""A running sum of more ones than this stands still in float16."""

_NUMERIC: Final = {
    "Softmax": "a sum of exponentials", "LogSoftmax": "a sum of exponentials", "ReduceLogSumExp": "a sum of exponentials",
    "LayerNormalization": "mean and variance of many values", "InstanceNormalization": "mean and variance of many values",
    "GroupNormalization": "mean and variance of many values", "MeanVarianceNormalization": "mean and variance of many values",
    "LpNormalization": "a sum of powers", "ReduceL2": "a sum of squares", "ReduceSumSquare": "a sum of squares",
    "ReduceLogSum": "a logarithm of a sum", "CumSum": "a running sum",
}  # fmt: skip
_CONTROL_FLOW: Final = {"If", "Loop", "Scan"}
_SUMS: Final = {"ReduceMean", "ReduceSum", "ReduceL1", "GlobalAveragePool"}


def to_fp16(model: bytes, images: npt.NDArray[np.uint8]) -> Converted:
    """Convert an exported float32 file to float16, with float32 where that is needed.

    Types at the border stay. In float32 stay: preprocessing (on raw pixels), operators that sum powers or exponentials or that
    have no float16 form, sums of more than ``MAX_SUM_LENGTH`` elements or whose terms could add up beyond float16, divisions by
    less than ``SMALLEST_DIVISOR``, nodes with weights that float16 cannot hold, and nodes that make or take a tensor whose
    largest value on ``images`` comes within ``HEADROOM`` of float16's.

    The conversion is that of ``onnxruntime.transformers.float16``: it comes with ONNX Runtime and is released with it. The same
    code in ``onnxconverter-common`` (one release a year) clamps at 1e4 unless told otherwise and knows no inputs that must stay
    float32. What both leave behind, a round trip through float16 between two nodes in float32, is taken out here: a value that
    float16 cannot hold would not survive it.

    Args:
        model: The float32 file.
        images: Images on which the values inside are measured, uint8, shape (n, H, W, C).

    Raises:
        ExportError: The file cannot be converted, or no target server could load the result.
    """
    source = prepare(model)
    kept = _kept_in_float32(source, images)
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    _part_initializers(proto, set(kept))
    converted = _convert(proto, sorted(kept))
    _share_casts(converted.graph)
    _bridge(converted.graph)
    shapes = float_tensors(source)
    consumed = {node.name: node for node in source.graph.node}
    listed = {name: reason for name, reason in kept.items() if shapes.keys() & {*consumed[name].input, *consumed[name].output}}
    return Converted(serialize(converted, source), listed)


def _convert(proto: onnx.ModelProto, kept: list[str]) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        converted: onnx.ModelProto = convert_float_to_float16(proto, keep_io_types=True, op_block_list=[], node_block_list=kept)
    except Exception as error:  # whatever the converter raises for a graph that it does not foresee
        raise ExportError(f"ONNX Runtime's converter cannot turn this model into float16: {error}") from error
    return converted


def _kept_in_float32(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> dict[str, str]:
    """By node, why it must stay in float32."""
    structure = Structure.of(model)
    shapes = float_tensors(model)
    largest = largest_values(model, images, list(shapes))
    constants = _constants(model.graph)
    too_large = {name: value for name, value in largest.items() if not value * HEADROOM <= FLOAT16_MAX}
    kept = _small_divisors(model, images, shapes)
    for node in model.graph.node:
        values = [(name, too_large[name]) for name in (*node.input, *node.output) if name in too_large]
        weights = [
            name for i, name in enumerate(node.input) if name in constants and not _fits(constants[name], _scale(node, i, largest))
        ]
        if node.name in structure.preprocessing:
            kept[node.name] = "preprocessing: computes on raw pixels"
        elif reason := _operator_reason(node.op_type):
            kept[node.name] = reason
        elif values:
            kept[node.name] = f"values up to {values[0][1]:.3g} in {values[0][0]}: float16 ends at {FLOAT16_MAX:.0f}"
        elif weights:
            kept[node.name] = f"weights in {weights[0]} that float16 cannot hold"
        elif node.op_type in _SUMS and (reason := _sum_reason(node, shapes, largest, constants)):
            kept[node.name] = reason
    return kept


_QUOTIENTS: Final = {"Div": 1, "Reciprocal": 0}
_MOVES: Final = {
    "Expand",
    "Reshape",
    "Transpose",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Slice",
    "Gather",
    "Concat",
    "Split",
    "Tile",
    "Identity",
}


def _small_divisors(
    model: onnx.ModelProto, images: npt.NDArray[np.uint8], shapes: Mapping[str, tuple[int | None, ...] | None]
) -> dict[str, str]:
    """Divisions by what float16 would take for nothing, and the nodes that carry such a divisor to them, with the reason."""
    divisors = {node.name: node.input[_QUOTIENTS[node.op_type]] for node in model.graph.node if node.op_type in _QUOTIENTS}
    smallest = smallest_values(model, images, sorted({name for name in divisors.values() if name in shapes}))
    maker = {name: node for node in model.graph.node for name in node.output}
    kept = {}
    for node_name, divisor in divisors.items():
        if not smallest.get(divisor, np.inf) < SMALLEST_DIVISOR:
            continue
        reason = (
            f"divides by values down to {smallest[divisor]:.3g} in {divisor}: float16's precision ends at {SMALLEST_DIVISOR:.3g}"
        )
        kept[node_name] = reason
        carrier = maker.get(divisor)
        while carrier is not None:
            kept[carrier.name] = reason
            carrier = maker.get(carrier.input[0]) if carrier.op_type in _MOVES else None
    return kept


def _operator_reason(op_type: str) -> str:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    if op_type in _NUMERIC:
        return f"{op_type}: {_NUMERIC[op_type]}"
    if op_type in _CONTROL_FLOW:
        return f"{op_type}: its subgraphs were not measured"
    return f"{op_type}: ONNX Runtime has no float16 form of it" if op_type in DEFAULT_OP_BLOCK_LIST else ""


def _constants(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], numpy_helper.to_array(entry.t)) for entry in node.attribute if entry.name == "value")
    return found


_BIASES: Final = {
    ("Add", 0), ("Add", 1), ("Sub", 0), ("Sub", 1), ("Conv", 2), ("ConvTranspose", 2), ("Gemm", 2), ("BatchNormalization", 2),
    ("BatchNormalization", 3),
}  # fmt: skip
_DIVISORS: Final = {("Div", 1), ("Pow", 1), ("BatchNormalization", 4)}


def _scale(node: onnx.NodeProto, position: int, largest: dict[str, float]) -> float | None:
    """What the error of a constant is measured by, beside its own largest value; None where each element counts by its own size."""
    if (node.op_type, position) in _DIVISORS:
        return None
    # a bias is added to something: below float16's range it does no harm where that is large
    return largest.get(node.output[0], 0.0) if (node.op_type, position) in _BIASES else 0.0


def _fits(array: npt.NDArray[Any], scale: float | None) -> bool:
    """Whether float16 holds what is in ``array``, to ``MAX_WEIGHT_ERROR`` of its largest value, or ``scale``, or each value."""
    if array.dtype != np.float32 or array.size == 0:
        return True
    values = array[np.isfinite(array)].astype(np.float64)
    if values.size == 0:
        return True
    size = np.abs(values)
    if size.max() > FLOAT16_MAX:
        return False
    error = np.abs(values.astype(np.float16).astype(np.float64) - values)
    return bool((error <= MAX_WEIGHT_ERROR * (size if scale is None else max(size.max(), scale))).all())


def _sum_reason(
    node: onnx.NodeProto,
    shapes: dict[str, tuple[int | None, ...] | None],
    largest: dict[str, float],
    constants: dict[str, npt.NDArray[Any]],
) -> str:
    """Why a sum, or a mean, over so many elements cannot run in float16; empty where it can."""
    shape = shapes.get(node.input[0])
    if shape is None:
        return f"{node.op_type}: over nobody knows how many elements"
    axes: list[int] = list(range(2, len(shape)))
    if node.op_type != "GlobalAveragePool":
        attribute = next((list(entry.ints) for entry in node.attribute if entry.name == "axes"), None)
        given = constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        axes = [int(axis) for axis in given] if given is not None else attribute or list(range(len(shape)))
    lengths = [shape[axis] for axis in axes]
    if any(length is None for length in lengths):
        return f"{node.op_type}: over nobody knows how many elements"
    n = int(np.prod([length for length in lengths if length is not None]))
    if n > MAX_SUM_LENGTH:
        return f"{node.op_type}: a sum of {n} elements"
    total = n * largest[node.input[0]]
    return "" if total * HEADROOM <= FLOAT16_MAX else f"{node.op_type}: {n} elements could add up to {total:.3g}"


def _part_initializers(model: onnx.ModelProto, kept: set[str]) -> None:
    """Give nodes that stay in float32 their own copy of an initialiser that others need as float16."""
    users: dict[str, list[bool]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.name in kept)
    for tensor in list(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(set(users.get(tensor.name, []))) < 2:
            continue
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = f"{tensor.name}_float32"
        for node in model.graph.node:
            if node.name in kept:
                node.input[:] = [copy.name if name == tensor.name else name for name in node.input]


def _share_casts(graph: onnx.GraphProto) -> None:
    """Drop repeated casts: the converter adds one for each node that reads a tensor, all under one name."""
    seen: set[str] = set()
    nodes = []
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in seen:
            continue
        seen.update(node.output)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _bridge(graph: onnx.GraphProto) -> None:
    """Connect neighbours that both compute in float32 directly, not through float16."""
    maker = {name: node for node in graph.node for name in node.output}
    outputs = {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    for node in graph.node:
        narrow = maker.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if narrow is None or not _casts_to(narrow, TensorProto.FLOAT16) or not narrow.name.endswith("_cast_to_fp16_node"):
            continue
        before, after = narrow.input[0], node.output[0]
        if after in outputs:  # the border's name stays
            renamed[before] = after
            node.output[0] = f"{after}_unused"
        else:
            renamed[after] = before
    for node in graph.node:
        node.output[:] = [
            _last_name(name, renamed) if name in maker and renamed.get(name) in outputs else name for name in node.output
        ]
        node.input[:] = [_last_name(name, renamed) for name in node.input]


def _last_name(name: str, renamed: dict[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def _casts_to(node: onnx.NodeProto, datatype: int) -> bool:
    return node.op_type == "Cast" and any(entry.name == "to" and entry.i == datatype for entry in node.attribute)
