"""int8: static quantisation with QuantizeLinear and DequantizeLinear, weights per channel, activations by measured ranges."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.errors import ExportError
from convoy.export.precision.calibration import (
    METHODS,
    QUANTISED_OPERATORS,
    CalibrationImages,
    affordable_images,
    measure_ranges,
    quiet,
)
from convoy.export.precision.converted import Converted, serialize
from convoy.export.precision.extremes import float_tensors
from convoy.export.precision.fidelity import Fidelity, HeldOut
from convoy.export.precision.search import search_sensitive
from convoy.export.precision.structure import Structure, prepare

_MIN_OPSET: Final = 13
"""The first operator set whose quantisation knows channels."""
MAX_DISAGREEMENT: Final = 0.005


def to_int8(
    model: bytes,
    calibration: npt.NDArray[np.uint8],
    *,
    max_disagreement: float = MAX_DISAGREEMENT,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Quantise an exported float32 file: activations and weights of 8 bits, weights per channel.

    Two thirds of the calibration images fix the ranges, one third is held out. By the held-out ones the calibration method is
    chosen (min and max, percentile, entropy: the fewest changed answers, then the least noise in the logits). Where even the best
    changes more than ``max_disagreement`` of the answers, the layers that add the most noise are kept in float32
    (``search_sensitive``). No other image is looked at. In float32 stay preprocessing (on raw pixels), the head with its softmax,
    the logits, and operators that have no 8-bit form.

    Args:
        model: The float32 file.
        calibration: Training images, uint8, shape (n, H, W, C); never those that the result is judged by.
        max_disagreement: The share of held-out images that may be answered in another way than in float32.
        on_progress: Told what is being done.

    Raises:
        UsageError: There are too few images, or they are no raw pixels.
        ExportError: The model cannot be quantised, or no target server could load the result.
    """
    images = CalibrationImages.split(calibration)
    source = prepare(model)
    prepared = preprocess(model)
    held_out = HeldOut.of(model, images.held_out)
    structure = Structure.of(prepared)
    values = sum(int(np.prod([dim or 1 for dim in shape])) for shape in float_tensors(prepared).values() if shape is not None)

    trials: list[tuple[Fidelity, str, int, Any, bytes]] = []
    for method in METHODS:
        count = affordable_images(method, values, len(images.ranges))
        if not count:
            continue
        on_progress(f"int8: ranges by {method} on {count} training images")
        ranges = measure_ranges(prepared, images.ranges[:: max(1, len(images.ranges) // count)][:count], method)
        quantised = quantise(prepared, ranges, (), source)
        trials.append((held_out.measure(quantised), method, count, ranges, quantised))
    fidelity, method_name, count, ranges, quantised = min(trials, key=lambda trial: trial[0].badness)

    in_float32: dict[str, str] = {}
    agreed = f"all layers in int8: {fidelity.disagreement:.2%} of the answers change on {len(held_out)} held-out training images"
    remarks = [agreed]
    if fidelity.disagreement > max_disagreement:
        found = search_sensitive(
            structure.layers,
            lambda kept: quantise(prepared, ranges, kept, source),
            held_out,
            max_disagreement,
            on_progress=on_progress,
        )
        in_float32, quantised = found.in_float32, found.model
        changed = found.fidelity.disagreement
        remarks.append(
            f"{found.n_layers} of {len(structure.layers)} layers stay in float32: {changed:.2%} of them change"
            f"{'' if changed <= max_disagreement else f', more than the {max_disagreement:.2%} sought'}"
            f" (found with {found.n_trials} conversions)"
        )
    return Converted(
        quantised,
        {**_never_quantised(prepared, structure), **in_float32},
        f"{count} training images ({method_name}; chosen, with the layers in float32, by {len(held_out)} further ones)",
        tuple(remarks),
    )


def _never_quantised(prepared: onnx.ModelProto, structure: Structure) -> dict[str, str]:
    """By node, why it is not quantised; nodes without float values are not listed."""
    tensors = float_tensors(prepared).keys()
    kept = {}
    for node in prepared.graph.node:
        if not tensors & {*node.input, *node.output}:
            continue
        if node.name in structure.preprocessing:
            kept[node.name] = "preprocessing: computes on raw pixels"
        elif node.name in structure.head:
            kept[node.name] = "head: 256 steps would make ties of different classes"
        elif node.op_type not in QUANTISED_OPERATORS:
            kept[node.name] = f"{node.op_type}: ONNX Runtime has no 8-bit form of it"
    return kept


def preprocess(model: bytes) -> onnx.ModelProto:
    """ONNX Runtime's preparation for quantisation: constants and batch norm folded, shapes known.

    Args:
        model: The float32 file.

    Raises:
        ExportError: ONNX Runtime cannot prepare this model.
    """
    source = prepare(model)
    opset = next((entry.version for entry in source.opset_import if entry.domain in ("", "ai.onnx")), 0)
    from onnxruntime.quantization import quant_pre_process

    if opset < _MIN_OPSET:
        raise ExportError(
            f"int8: expected opset {_MIN_OPSET} or later, which can quantise weights by channel, found opset {opset}: export the "
            "network again, or stay with fp32 or fp16."
        )
    try:
        with tempfile.TemporaryDirectory(prefix="convoy-quantisation-") as folder, quiet():
            path, prepared_path = Path(folder) / "model.onnx", Path(folder) / "prepared.onnx"
            onnx.save_model(source, str(path))
            quant_pre_process(str(path), str(prepared_path), skip_symbolic_shape=True)
            prepared = prepared_path.read_bytes()
    except Exception as error:  # whatever the preparation raises for a graph that it does not foresee
        raise ExportError(f"ONNX Runtime cannot prepare this model for quantisation: {error}") from error
    return prepare(prepared)


def quantise(prepared: onnx.ModelProto, ranges: Any, in_float32: Iterable[str], source: onnx.ModelProto) -> bytes:
    """Quantise all layers but some.

    Preprocessing (on raw pixels), the head (softmax) and the logits themselves stay in float32: 256 steps for all logits would make
    ties of classes that float32 tells apart.

    Args:
        prepared: What ``preprocess`` gave; not changed.
        ranges: What ``measure_ranges`` gave.
        in_float32: Names of further nodes that stay in float32.
        source: The float32 model, for its metadata.

    Returns:
        The file.

    Raises:
        ExportError: ONNX Runtime cannot quantise this model, or no target server could load the result.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType

    structure = Structure.of(prepared)
    excluded = sorted({*structure.preprocessing, *structure.head, *in_float32})
    proto = onnx.ModelProto()
    proto.CopyFrom(prepared)
    try:
        with quiet():
            quantizer = QDQQuantizer(
                proto,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=excluded,
                op_types_to_quantize=list(QUANTISED_OPERATORS),
                extra_options={},
            )
            quantizer.quantize_model()
        quantised = quantizer.model.model
    except Exception as error:  # whatever the quantiser raises for a graph that it does not foresee
        raise ExportError(f"ONNX Runtime cannot quantise this model: {error}") from error
    _release(quantised.graph, structure.last)
    return serialize(quantised, source)


def _release(graph: onnx.GraphProto, tensors: frozenset[str]) -> None:
    """Take the quantisation off some tensors: what reads them gets the float32 values."""
    maker = {name: node for node in graph.node for name in node.output}
    outputs = {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    for node in graph.node:
        quantize = maker.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        before, after = quantize.input[0], node.output[0]
        if after in tensors and after in outputs:  # the quantiser renamed what stands before it
            maker[before].output[:] = [after if name == before else name for name in maker[before].output]
            node.output[0] = f"{after}_released"
            renamed[before] = after
        elif before in tensors:
            renamed[after] = before
    for node in graph.node:
        if node.op_type != "QuantizeLinear":
            node.input[:] = [renamed.get(name, name) for name in node.input]
