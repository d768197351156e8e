"""What a file must be to load on every target server, and the check that it is."""

from __future__ import annotations

from typing import Final

import onnx

from convoy.contract.errors import ExportError

OPSET_VERSION: Final = 18
"""What is exported: torch's dynamo exporter writes this operator set natively, without a conversion that could fail."""
MAX_OPSET_VERSION: Final = 21
"""ONNX Runtime 1.19 (Triton's 24.10 generation, the one in the wheel) knows no later operator set."""
MAX_IR_VERSION: Final = 10
"""ONNX Runtime 1.19 refuses files of a later format."""


def check_targets(model: onnx.ModelProto) -> None:
    """Check that ``model`` is well-formed and loads on every target server.

    Raises:
        ExportError: The operator set or the format is too new, an operator is not standard ONNX, or ONNX's own full check
            (shape inference included) finds a fault.
    """
    domains = {entry.domain: entry.version for entry in model.opset_import}
    used = {node.domain for node in model.graph.node}
    if strangers := sorted((used | domains.keys()) - {"", "ai.onnx"}):
        raise ExportError(f"expected standard ONNX operators alone, found {strangers}: target servers may not have them.")
    opset = domains.get("", domains.get("ai.onnx", 0))
    if not 1 <= opset <= MAX_OPSET_VERSION:
        raise ExportError(f"expected opset {MAX_OPSET_VERSION} at most, found {opset}: target servers could not load it.")
    if model.ir_version > MAX_IR_VERSION:
        raise ExportError(
            f"expected IR version {MAX_IR_VERSION} at most, found {model.ir_version}: target servers could not load it."
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's own check refuses the exported file: {error}") from error
