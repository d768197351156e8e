"""What a contained model is: checked, inferred, loaded and run once, in a process that may fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from convoy.contract.errors import ExportError
from convoy.export.adopt.bodies import bodies
from convoy.export.adopt.containment import check_model
from convoy.export.adopt.limits import Limits
from convoy.export.adopt.sandbox import run_contained

if TYPE_CHECKING:
    import onnxruntime

_DEFAULT: Final = Limits()
_TASK: Final = "convoy.export.adopt.inspection:inspect_task"
_MAX_WORDS: Final = 2000
_OPTIONAL_INPUTS_IR_VERSION: Final = 4
UNKNOWN_AXIS: Final = 224
"""What an axis of unknown length is taken for in the trial run, where nothing else is said; the batch axis is taken for 1."""

Dims = tuple["int | str | None", ...]


@dataclass(frozen=True)
class Value:
    """An input or output as the file declares it, completed by shape inference.

    Attributes:
        name: Its name.
        dtype: numpy's name of the element type (``float32``), or ``""`` where the value is no tensor.
        shape: One entry an axis: its length, the name of a dynamic one, or None for one without a name; None as a whole where
            the rank is not known.
    """

    name: str
    dtype: str
    shape: Dims | None


@dataclass(frozen=True)
class Trial:
    """One run on zeros, without and with graph optimisation.

    Attributes:
        shapes: Shape of each input as it was run.
        outputs: ``(name, dtype, shape)`` of each output, without optimisation.
        max_abs_diff: The largest difference between the two runs; None where an output is no number, or NaN meets a number.
        finite: Whether every output of both runs is finite.
        error: Why it could not be run, or empty; then the fields above are empty, None and False.
    """

    shapes: dict[str, tuple[int, ...]]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    max_abs_diff: float | None
    finite: bool
    error: str


@dataclass(frozen=True)
class Inspection:
    """Facts about a model that ONNX's checker accepts and ONNX Runtime loads, with and without graph optimisation.

    Attributes:
        inputs: What it takes; initialisers that the file also lists as inputs are left out.
        outputs: What it gives.
        op_types: How often each operator is used, subgraphs and local functions included; ``domain.Name`` outside ONNX's own.
        opset_imports: Version of each operator set; ONNX's own under ``""``.
        ir_version: The format's version.
        producer: Name and version of the program that wrote the file.
        n_parameters: Numbers in initialisers of a floating-point type, sparse ones counted as stored.
        n_nodes: Nodes, as ``op_types`` counts them.
        n_bytes: Size of the serialised model.
        inference_error: What strict shape inference with data propagation finds wrong, or empty.
        trial: The run on zeros.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    op_types: dict[str, int]
    opset_imports: dict[str, int]
    ir_version: int
    producer: str
    n_parameters: int
    n_nodes: int
    n_bytes: int
    inference_error: str
    trial: Trial


def inspect(model: bytes, *, shapes: Mapping[str, Sequence[int]] | None = None, limits: Limits = _DEFAULT) -> Inspection:
    """Check, infer, load and run a model in a limited process, with ONNX Runtime's CPU provider.

    Args:
        model: What :func:`convoy.export.adopt.containment.read_contained` returned.
        shapes: The shape to run an input with, by name. Without it, dynamic first axes are run with 1, and other dynamic axes
            with :data:`UNKNOWN_AXIS`.
        limits: Bounds for the process, and for the shapes that inference finds.

    Raises:
        ExportError: ONNX's checker refuses the model, ONNX Runtime cannot load it, inference finds a giant value, or the process
            crashes or exceeds ``limits``.
    """
    payload = {"model": model, "shapes": {name: list(shape) for name, shape in (shapes or {}).items()}, "limits": asdict(limits)}
    reply = run_contained(_TASK, payload, limits=limits)
    try:
        return _inspection(reply)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"expected facts about the model, found {type(error).__name__}: {error}. Do not trust the file."
        ) from error


def _inspection(reply: Mapping[str, Any]) -> Inspection:
    trial = reply["trial"]
    diff = trial["max_abs_diff"]
    return Inspection(
        inputs=tuple(_value(entry) for entry in reply["inputs"]),
        outputs=tuple(_value(entry) for entry in reply["outputs"]),
        op_types={str(name): int(count) for name, count in reply["op_types"].items()},
        opset_imports={str(name): int(version) for name, version in reply["opset_imports"].items()},
        ir_version=int(reply["ir_version"]),
        producer=str(reply["producer"]),
        n_parameters=int(reply["n_parameters"]),
        n_nodes=int(reply["n_nodes"]),
        n_bytes=int(reply["n_bytes"]),
        inference_error=str(reply["inference_error"]),
        trial=Trial(
            shapes={str(name): tuple(int(dim) for dim in shape) for name, shape in trial["shapes"].items()},
            outputs=tuple((str(name), str(dtype), tuple(int(dim) for dim in shape)) for name, dtype, shape in trial["outputs"]),
            max_abs_diff=None if diff is None else float(diff),
            finite=bool(trial["finite"]),
            error=str(trial["error"]),
        ),
    )


def _value(entry: Mapping[str, Any]) -> Value:
    shape = entry["shape"]
    return Value(str(entry["name"]), str(entry["dtype"]), None if shape is None else tuple(_dim(dim) for dim in shape))


def _dim(dim: object) -> int | str | None:
    if dim is None or isinstance(dim, str) or (isinstance(dim, int) and dim >= 0):
        return dim
    raise ValueError(f"an axis of length {dim!r}")


# What follows runs in the contained process.


def inspect_task(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Do :func:`inspect` for the process that it starts."""
    facts = _facts(payload["model"], Limits(**payload["limits"]))
    return {**facts, "trial": _trial(payload["model"], facts["inputs"], payload["shapes"])}


def _facts(serialised: bytes, limits: Limits) -> dict[str, Any]:
    model = onnx.ModelProto.FromString(serialised)
    check_model(model, limits)
    ir_version = model.ir_version
    inferred, inference_error = _inferred(model)
    _check(model)
    for value in _all_values(inferred.graph):
        _check_shape(value, limits)
    names = {tensor.name for tensor in model.graph.initializer}
    op_types = _op_types(model, limits)
    return {
        "inputs": [_described(value) for value in model.graph.input if value.name not in names],
        "outputs": [_described(value) for value in inferred.graph.output],
        "op_types": op_types,
        "opset_imports": {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import},
        "ir_version": ir_version,
        "producer": _plain(f"{model.producer_name} {model.producer_version}".strip()),
        "n_parameters": _n_parameters(model, limits),
        "n_nodes": sum(op_types.values()),
        "n_bytes": len(serialised),
        "inference_error": inference_error,
    }


def _plain(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())[:_MAX_WORDS]


def _check(model: onnx.ModelProto) -> None:
    """Have ONNX's checker look at ``model``, after it is completed as ONNX Runtime completes it."""
    if model.ir_version < _OPTIONAL_INPUTS_IR_VERSION:
        # In these versions each initialiser was to be listed as an input too. Not all exporters did, and no runtime minds.
        model.ir_version = _OPTIONAL_INPUTS_IR_VERSION
    for value in model.graph.output:
        # The checker wants a shape in the file; ONNX Runtime, and files in the field, leave it to inference.
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model, full_check=False)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(f"expected a file that ONNX's own checker accepts, found: {error!s:.{_MAX_WORDS}}") from error


def _inferred(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True), ""
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        found = _plain(str(error)) or type(error).__name__
    return onnx.shape_inference.infer_shapes(model, data_prop=True), found


def _all_values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def _check_shape(value: onnx.ValueInfoProto, limits: Limits) -> None:
    shape = _described(value)["shape"] or []
    claimed = 4 * prod(dim for dim in shape if isinstance(dim, int))
    if claimed > limits.max_tensor_bytes:
        raise ExportError(
            f"expected values of at most {limits.max_tensor_bytes:,} bytes for one image, found {value.name!r} of shape {shape}: "
            "no server could hold it."
        )


def _described(value: onnx.ValueInfoProto) -> dict[str, Any]:
    if not value.type.HasField("tensor_type"):
        return {"name": value.name, "dtype": "", "shape": None}
    tensor = value.type.tensor_type
    shape = [_axis(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else None
    return {"name": value.name, "dtype": onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, "shape": shape}


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _op_types(model: onnx.ModelProto, limits: Limits) -> dict[str, int]:
    counts: dict[str, int] = {}
    for body in bodies(model, limits):
        for node in body.nodes:
            name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _n_parameters(model: onnx.ModelProto, limits: Limits) -> int:
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    total = 0
    for body in bodies(model, limits):
        if isinstance(body.source, onnx.GraphProto):
            total += sum(prod(tensor.dims) for tensor in body.source.initializer if tensor.data_type in floats)
            total += sum(prod(sparse.values.dims) for sparse in body.source.sparse_initializer)
    return total


def _trial(model: bytes, inputs: list[dict[str, Any]], shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    import onnxruntime as ort

    arrays: dict[str, Any] = {}
    runs: list[list[Any]] = []
    names: list[str] = []
    error = ""
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        session = _session(model, level)  # one at a time, since each keeps the weights
        names = [output.name for output in session.get_outputs()]
        try:
            arrays = {value["name"]: np.zeros(_run_shape(value, shapes), dtype=value["dtype"]) for value in inputs}
            runs.append(session.run(None, arrays))
        except Exception as failure:  # noqa: BLE001 ONNX Runtime has no common error; what it says is the fact
            _check_memory(failure)
            error = error or _plain(f"{type(failure).__name__}: {failure}")
        del session
    if error:
        return {"shapes": {}, "outputs": [], "max_abs_diff": None, "finite": False, "error": error}
    first, second = runs
    return {
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "outputs": [
            [name, array.dtype.name, list(array.shape)] if isinstance(array, np.ndarray) else [name, "", []]
            for name, array in zip(names, first, strict=True)
        ],
        "max_abs_diff": _max_abs_diff(first, second),
        "finite": all(_is_finite(array) for array in [*first, *second]),
        "error": "",
    }


def _session(model: bytes, level: Any) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        _check_memory(error)
        raise ExportError(f"expected a file that ONNX Runtime loads, found: {_plain(str(error))}") from error


def _check_memory(error: Exception) -> None:
    words = _plain(str(error))
    if isinstance(error, MemoryError) or "bad_alloc" in words or "allocate memory" in words:
        raise ExportError(
            f"expected a model that fits the memory of its process, found that it asks for more: {words[:500]}"
        ) from error


def _run_shape(value: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> tuple[int, ...]:
    if value["name"] in shapes:
        return tuple(shapes[value["name"]])
    dims = value["shape"] or []
    return tuple(dim if isinstance(dim, int) else (1 if axis == 0 else UNKNOWN_AXIS) for axis, dim in enumerate(dims))


def _is_finite(array: Any) -> bool:
    return not isinstance(array, np.ndarray) or array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _max_abs_diff(first: list[Any], second: list[Any]) -> float | None:
    largest = 0.0
    for left, right in zip(first, second, strict=True):
        if not isinstance(left, np.ndarray) or left.dtype.kind not in "biuf" or left.shape != right.shape:
            return None
        with np.errstate(invalid="ignore"):
            apart = np.abs(left.astype(np.float64) - right.astype(np.float64))
        apart = np.where(left == right, 0.0, apart)  # infinities of one sign
        largest = max(largest, float(apart.max(initial=0.0)))
    return largest if np.isfinite(largest) else None
