"""The file under test in ONNX Runtime, on every execution provider of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ExportError, MissingDependencyError

if TYPE_CHECKING:
    import onnxruntime


def usable_providers() -> tuple[str, ...]:
    """The CPU, and CUDA where both torch and ONNX Runtime can use it."""
    import torch

    ort = _onnxruntime()
    if torch.cuda.is_available() and "CUDAExecutionProvider" in ort.get_available_providers():
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        return ("CPUExecutionProvider", "CUDAExecutionProvider")
    return ("CPUExecutionProvider",)


def open_session(model: Path | bytes, provider: str = "CPUExecutionProvider") -> onnxruntime.InferenceSession:
    """Load a model in ONNX Runtime.

    Args:
        model: A file, or its bytes.
        provider: Which execution provider runs it. On CUDA, TF32 is off: float32 stays float32.

    Raises:
        ExportError: ONNX Runtime refuses the file, or falls back to another provider.
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    settings: dict[str, Any] = {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {}
    try:
        session = ort.InferenceSession(str(model) if isinstance(model, Path) else model, options, providers=[(provider, settings)])
    except Exception as error:  # ONNX Runtime's exceptions have no public common base
        raise ExportError(f"ONNX Runtime {ort.__version__} cannot load the model on {provider}: {error}") from error
    if session.get_providers()[0] != provider:
        raise ExportError(f"expected ONNX Runtime to use {provider}, but it fell back to {session.get_providers()[0]}.")
    return session


def run_session(
    session: onnxruntime.InferenceSession, images: npt.NDArray[np.uint8], batch_size: int
) -> dict[str, npt.NDArray[np.float32]]:
    """All outputs for ``images``, in batches.

    Args:
        session: The model.
        images: uint8, shape (n, H, W, C).
        batch_size: Images a call.

    Raises:
        ExportError: ONNX Runtime fails on a batch (a batch axis that was baked in, say).
    """
    input_name = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    parts: list[list[npt.NDArray[np.float32]]] = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        try:
            parts.append(session.run(names, {input_name: batch}))
        except Exception as error:
            raise ExportError(f"ONNX Runtime fails on a batch of {len(batch)}: {error}") from error
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def _onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would report models to its maker; read when the library is loaded
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("validation needs ONNX Runtime: pip install '.[export]' in Convoy's folder.") from error
    return onnxruntime
