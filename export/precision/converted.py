"""A file in reduced precision, brought into the form in which every target server loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from convoy.export.graph.targets import check_targets
from convoy.export.precision.structure import drop_unused


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Attributes:
        model: The file; the same conversion gives the same bytes.
        kept_float32: By name, the nodes that still compute in float32, with the reason.
        calibration: Which images fixed the quantisation ranges, and how; empty for float16.
        remarks: What a person should know about the conversion.
    """

    model: bytes
    kept_float32: Mapping[str, str] = field(default_factory=dict)
    calibration: str = ""
    remarks: tuple[str, ...] = ()


def serialize(proto: onnx.ModelProto, like: onnx.ModelProto) -> bytes:
    """The bytes of a converted model: sorted, without what nothing uses, checked against the target servers.

    Args:
        proto: The converted model; changed in place.
        like: The model that it was made from: format, producer and metadata are taken from there.

    Raises:
        ExportError: Some target server could not load it.
    """
    del proto.graph.value_info[:]  # of the types before the conversion
    drop_unused(proto.graph)
    initializers = sorted(proto.graph.initializer, key=lambda tensor: str(tensor.name))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(initializers)
    used = {node.domain for node in proto.graph.node}
    imports = [entry for entry in proto.opset_import if entry.domain in used or entry.domain in ("", "ai.onnx")]
    del proto.opset_import[:]
    proto.opset_import.extend(imports)
    proto.ir_version = like.ir_version
    proto.producer_name, proto.producer_version, proto.domain = like.producer_name, like.producer_version, like.domain
    proto.model_version, proto.doc_string = like.model_version, like.doc_string
    del proto.metadata_props[:]
    proto.metadata_props.extend(like.metadata_props)
    proto.graph.name, proto.graph.doc_string = like.graph.name, like.graph.doc_string
    check_targets(proto)
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized
