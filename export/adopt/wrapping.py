"""From a foreign graph to one with Convoy's border: raw pixels in, logits and probabilities out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME
from convoy.export.adopt.border import InputBorder
from convoy.export.adopt.decision import TINY, OutputBorder
from convoy.export.adopt.names import bodies, every_name, graphs, prune, real_inputs, rename
from convoy.export.adopt.preprocess import Preprocess

MIN_IR_VERSION: Final = 4
"""The first format in which initialisers are constants, not defaults of inputs."""
MAX_IR_VERSION: Final = 10

_PREFIX: Final = "convoy/"
_KEPT_METADATA: Final = {
    "author", "authors", "copyright", "licence", "license", "license_url", "model_author", "model_license",
}  # fmt: skip
_KEPT_NODE_METADATA: Final = {"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"}
_BATCH: Final = "batch"


def take_core(model: onnx.ModelProto, source: InputBorder, output: OutputBorder) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The part of a foreign model that makes the logits, without what does not belong in a file that one hands on.

    Args:
        model: Left as it is.
        source: Its input.
        output: Its decision.

    Returns:
        The part, with the input and the one value as border, and what was dropped, for people.
    """
    core = onnx.ModelProto()
    core.CopyFrom(model)
    graph = core.graph
    value = next(entry for entry in real_inputs(graph) if entry.name == source.name)
    batch = [source.batch or _BATCH] if source.has_batch_axis else []
    bare = helper.make_tensor_value_info(source.name, value.type.tensor_type.elem_type, [*batch, *source.dims])
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(output.dtype))
    remarks = _strip(core)
    del graph.input[:]
    graph.input.append(bare)
    del graph.output[:]
    graph.output.append(onnx.ValueInfoProto(name=output.value))
    graph.output[0].type.tensor_type.elem_type = elem_type
    n_dropped = prune(graph, [output.value])
    _name_nodes(graph)
    core.ir_version = min(max(model.ir_version, MIN_IR_VERSION), MAX_IR_VERSION)
    if core.ir_version != model.ir_version:
        remarks.append(f"IR version {model.ir_version} became {core.ir_version}")
    if n_dropped:
        remarks.append(f"nodes dropped that the logits do not need: {n_dropped}")
    return core, tuple(remarks)


def _strip(model: onnx.ModelProto) -> list[str]:
    """Drop documentation, metadata but for licence and author, and declared shapes that may be stale."""
    dropped = sorted({entry.key for entry in model.metadata_props if entry.key.lower() not in _KEPT_METADATA})
    _keep(model.metadata_props, _KEPT_METADATA)
    model.doc_string = ""
    model.ClearField("training_info")
    for graph in graphs(model.graph):
        graph.doc_string = ""
        del graph.value_info[:]
        del graph.metadata_props[:]
        graph.ClearField("quantization_annotation")
        for tensor in graph.initializer:
            tensor.doc_string = ""
            del tensor.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            _keep(node.metadata_props, _KEPT_NODE_METADATA)
            for body in bodies(node):
                for value in (*body.input, *body.output):
                    value.doc_string = ""
                    for dim in value.type.tensor_type.shape.dim:  # the rank stays: Loop wants to know its scalars
                        dim.Clear()
    return [f"metadata left out: {', '.join(dropped[:10])}{', ...' if len(dropped) > 10 else ''}"] if dropped else []


def _keep(entries: Any, keys: set[str]) -> None:
    kept = [(entry.key, entry.value) for entry in entries if entry.key.lower() in keys]
    del entries[:]
    for key, value in sorted(kept):
        entries.add(key=key, value=value)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node of the main graph a name of its own, so that reports can point at it."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            name = f"{node.name or node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


@dataclass
class _Writer:
    """Writes nodes one after the other, each on what the last one made."""

    value: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op_type: str, what: str, *constants: np.ndarray[Any, Any], **attributes: Any) -> None:
        names = [f"{_PREFIX}{what}/constant{i or ''}" for i in range(len(constants))]
        self.constants.extend(numpy_helper.from_array(array, name) for array, name in zip(constants, names, strict=True))
        made = _PREFIX + what
        self.nodes.append(helper.make_node(op_type, [self.value, *names], [made], name=made, **attributes))
        self.value = made


def wrap(
    core: onnx.ModelProto,
    source: InputBorder,
    output: OutputBorder,
    preprocess: Preprocess,
    image: ImageSpec,
    n_classes: int,
    *,
    one_by_one: bool = False,
) -> onnx.ModelProto:
    """Put preprocessing before a graph and softmax behind it, in operators that mean the same from opset 7 to 21.

    Args:
        core: From ``take_core``, the batch free unless ``one_by_one``; changed in place.
        source: Its input.
        output: Its decision.
        preprocess: What it expects of its pixels.
        image: What the served model takes.
        n_classes: K.
        one_by_one: The file keeps its own batch; one image is put in, and its row taken out.

    Returns:
        The model with the input ``image``, uint8 (N, H, W, C), and the outputs ``logits`` and ``probabilities``, float32 (N, K).
    """
    graph = core.graph
    value = _clear_names(graph, output.value)
    fed = graph.input[0].name
    before = _preprocessing(source, preprocess, image, one_by_one=one_by_one)
    if before.nodes:
        before.nodes[-1].output[0] = fed
    else:
        rename(graph, {fed: INPUT_NAME})
    after = _decision(value, source, output, n_classes, one_by_one=one_by_one)
    if after.nodes:
        after.nodes[-1].output[0] = LOGITS_NAME
    else:
        rename(graph, {value: LOGITS_NAME})
    softmax = helper.make_node("Softmax", [LOGITS_NAME], [PROBABILITIES_NAME], name=f"{_PREFIX}softmax", axis=1)
    nodes = [*before.nodes, *graph.node, *after.nodes, softmax]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, [_BATCH, *image.dims]))
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [_BATCH, n_classes]) for name in (LOGITS_NAME, PROBABILITIES_NAME)
    )
    return core


def _clear_names(graph: onnx.GraphProto, value: str) -> str:
    """Give foreign values other names where theirs are ours; the new name of ``value``."""
    taken = every_name(graph)
    ours = [name for name in sorted(taken) if name in (INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME) or name.startswith(_PREFIX)]
    new_names: dict[str, str] = {}
    for name in ours:
        new = f"original/{name}"
        while new in taken:
            new += "_"
        taken.add(new)
        new_names[name] = new
    rename(graph, new_names)
    return new_names.get(value, value)


def _preprocessing(source: InputBorder, preprocess: Preprocess, image: ImageSpec, *, one_by_one: bool) -> _Writer:
    writer = _Writer(INPUT_NAME)
    if source.channels != image.channels:
        writer.add("Gather", "grey_to_channels", np.zeros(source.channels, dtype=np.int64), axis=3)
    elif preprocess.color == "bgr":
        writer.add("Gather", "rgb_to_bgr", np.array([2, 1, 0], dtype=np.int64), axis=3)
    if source.channels_first and source.channels > 1:
        writer.add("Transpose", "channels_first", perm=[0, 3, 1, 2])
    _normalise(writer, source, preprocess)
    dims = list(source.dims)
    as_stands = ["nchw", "chw"] if source.channels > 1 else []
    if one_by_one and (source.batch or not source.has_batch_axis):
        writer.add("Reshape", "one_image", np.array([1] * source.has_batch_axis + dims, dtype=np.int64))
        if source.batch and source.batch > 1:
            writer.add("Expand", "filled_up", np.array([source.batch, *[1] * len(dims)], dtype=np.int64))
    elif source.layout not in ("nhwc", *as_stands):
        writer.add("Reshape", "network_layout", np.array([0, *dims], dtype=np.int64))
    return writer


def _normalise(writer: _Writer, source: InputBorder, preprocess: Preprocess) -> None:
    """``(scale * pixel - mean) / std`` as one product and one sum, in float32, or in float64 where the network computes in it."""
    if source.dtype == "uint8":
        return
    whole = source.dtype.startswith("int")
    dtype = np.dtype(source.dtype if whole or source.dtype == "float64" else "float32")
    writer.add("Cast", "pixels", to=helper.np_dtype_to_tensor_dtype(dtype))
    if whole:
        return
    per_channel = preprocess.per_channel(1 if preprocess.color == "grey" else source.channels)
    mean, std = (np.asarray(values, dtype=np.float64) for values in per_channel)
    factor, offset = preprocess.scale / std, -mean / std
    for op_type, what, values, neutral in (("Mul", "scaled", factor, 1.0), ("Add", "normalised", offset, 0.0)):
        if (values == neutral).all():
            continue
        same = (values == values[0]).all()
        constant = values[:1].reshape(()) if same else values.reshape((-1, 1, 1)) if source.channels_first else values
        writer.add(op_type, what, constant.astype(dtype))
    if source.dtype == "float16":
        writer.add("Cast", "half", to=TensorProto.FLOAT16)


def _decision(value: str, source: InputBorder, output: OutputBorder, n_classes: int, *, one_by_one: bool) -> _Writer:
    writer = _Writer(value)
    batch = source.batch or 1
    if output.dtype != "float32":
        writer.add("Cast", "float32", to=TensorProto.FLOAT)
    if output.shape != (batch, n_classes):
        writer.add("Reshape", "rows", np.array([-1, n_classes], dtype=np.int64))
    if one_by_one and batch > 1:
        writer.add("Gather", "first_row", np.array([0], dtype=np.int64), axis=0)
    if output.form == "probabilities":
        writer.add("Add", "above_zero", np.array(TINY, dtype=np.float32))
        writer.add("Log", "logarithm")
    return writer
