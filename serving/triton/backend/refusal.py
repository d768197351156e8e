"""What a configuration may not ask of this backend, since the answers would be wrong; each with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from convoy.contract.errors import UsageError

_RAGGED: Final = (
    "Triton hands its Python backend each request's tensors apart, and this backend joins them along the batch axis only"
)
_SHAPE_TENSOR: Final = "shape tensors are TensorRT's"

_TENSOR_REASONS: Final = {"allow_ragged_batch": _RAGGED, "is_shape_tensor": _SHAPE_TENSOR, "is_non_linear_format_io": _SHAPE_TENSOR}


def refuse(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that asks for what this backend does not have.

    Args:
        config: ``ModelConfig`` in its JSON form.

    Raises:
        UsageError: It does; the message names everything, with reasons.
    """
    found = [f"{what} ({why})" for what, why in _found(config)]
    if found:
        raise UsageError(
            f"config.pbtxt asks for {'; '.join(found)}, which this Python-based onnxruntime backend does not have. "
            "Remove it, or serve the model with NVIDIA's container."
        )


def _found(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("batch_input", "batch_output"):
        if config.get(name):
            yield name, _RAGGED
    for tensor in (*config.get("input", []), *config.get("output", [])):
        for name, why in _TENSOR_REASONS.items():
            if tensor.get(name):
                yield f"{name} of tensor '{tensor.get('name', '')}'", why
    if config.get("model_transaction_policy", {}).get("decoupled"):
        yield "model_transaction_policy { decoupled: true }", "an ONNX model answers each request once"
    if config.get("sequence_batching", {}).get("state"):
        yield "sequence_batching { state }", "Triton gives its Python backend no implicit state"
    for key, why in (
        ("EXECUTION_ENV_PATH", "the model runs in the environment that Convoy was started from"),
        ("FORCE_CPU_ONLY_INPUT_TENSORS", "tensors come to it in the memory of the CPU only"),
    ):
        value = config.get("parameters", {}).get(key, {}).get("string_value")
        if value is not None and not (key == "FORCE_CPU_ONLY_INPUT_TENSORS" and value.lower() in ("yes", "1", "true")):
            yield f"parameter '{key}' as '{value}'", why
