"""The file under test in ONNX Runtime: every execution provider of this machine, every optimisation level."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ExportError, MissingDependencyError

if TYPE_CHECKING:
    import onnxruntime

    from convoy.contract.goldens import Arrays

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
SERVED_ON: Final = (CPU, CUDA, "TensorrtExecutionProvider")
"""The execution providers that the target servers run models on."""

Level = Literal["disabled", "basic", "extended", "layout", "all"]
LEVELS: Final[tuple[Level, ...]] = ("disabled", "basic", "extended", "layout", "all")
"""ONNX Runtime's graph optimisation levels; the last one is what servers use unless they are told otherwise."""

_LEVEL_NAMES: Final = {
    "disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}  # fmt: skip
_SETTINGS: Final = {  # float32 stays float32
    CUDA: {"use_tf32": "0"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": "0", "trt_int8_enable": "0"},
}


def usable_providers() -> tuple[tuple[str, ...], dict[str, str]]:
    """Which of the servers' execution providers this machine has.

    Returns:
        The usable ones, and of each other one the reason why not.
    """
    ort = _onnxruntime()
    available = ort.get_available_providers()
    missing = {name: f"the installed ONNX Runtime {ort.__version__} lacks it" for name in SERVED_ON if name not in available}
    if CUDA in available and not _load_gpu_libraries():
        missing.update({name: "no GPU that torch can use on this machine" for name in SERVED_ON[1:] if name in available})
    for name in SERVED_ON[1:]:
        if name not in missing and (reason := _cannot_start(name)):
            missing[name] = reason
    return tuple(name for name in SERVED_ON if name not in missing), missing


def _load_gpu_libraries() -> bool:
    """Load CUDA's libraries for ONNX Runtime from where torch keeps them; whether there is a GPU."""
    import torch

    if not torch.cuda.is_available():
        return False
    ort = _onnxruntime()
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return True


@cache
def _cannot_start(provider: str) -> str:
    """Why an execution provider does not run even the smallest model here; empty where it does.

    ONNX Runtime's build for GPUs brings TensorRT's provider along, but not TensorRT.
    """
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "smallest", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        open_session(model.SerializeToString(), provider).run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no fault of the file under test
        return f"it does not start on this machine: {' '.join(str(error).split())[:300]}"
    return ""


def levels() -> tuple[Level, ...]:
    """The graph optimisation levels that the installed ONNX Runtime knows (``layout`` came with 1.23)."""
    known = _onnxruntime().GraphOptimizationLevel
    return tuple(level for level in LEVELS if hasattr(known, _LEVEL_NAMES[level]))


def open_session(model: Path | bytes, provider: str = CPU, level: Level = "all", threads: int = 0) -> onnxruntime.InferenceSession:
    """Load a model in ONNX Runtime.

    Args:
        model: A file, or its bytes.
        provider: Which execution provider runs it. On GPUs TF32 is off: float32 stays float32.
        level: How far ONNX Runtime rewrites the graph.
        threads: Threads within one operator; ONNX Runtime's choice where 0.

    Raises:
        ExportError: ONNX Runtime refuses the file, or falls back to another provider.
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it cannot do, it raises
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVEL_NAMES[level])
    options.intra_op_num_threads = threads
    wanted = [(provider, _SETTINGS.get(provider, {}))]
    try:
        session = ort.InferenceSession(str(model) if isinstance(model, Path) else model, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's exceptions have no public common base
        raise ExportError(f"ONNX Runtime {ort.__version__} cannot load the model on {provider}: {error}") from error
    if session.get_providers()[0] != provider:
        raise ExportError(f"expected ONNX Runtime to use {provider}, but it fell back to {session.get_providers()[0]}.")
    return session


def run_session(
    session: onnxruntime.InferenceSession, inputs: Arrays | npt.NDArray[np.uint8], batch_size: int
) -> dict[str, npt.NDArray[Any]]:
    """All outputs for some inputs, in batches.

    Args:
        session: The model.
        inputs: By name, a row for each image; or images alone, uint8 (n, H, W, C), for the first input.
        batch_size: Images a call.

    Raises:
        ExportError: ONNX Runtime fails on a batch (a batch axis that was baked in, say).
    """
    given = {session.get_inputs()[0].name: inputs} if isinstance(inputs, np.ndarray) else inputs
    names = [output.name for output in session.get_outputs()]
    n = len(next(iter(given.values())))
    parts: list[list[npt.NDArray[Any]]] = []
    for start in range(0, n, batch_size):
        batch = {name: values[start : start + batch_size] for name, values in given.items()}
        try:
            parts.append(session.run(names, batch))
        except Exception as error:
            raise ExportError(f"ONNX Runtime fails on a batch of {min(batch_size, n - start)}: {error}") from error
    try:
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
    except ValueError as error:
        raise ExportError(f"expected outputs with a row for each image, found shapes that do not fit together: {error}") from error


def _onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would report models to its maker; read when the library is loaded
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("validation needs ONNX Runtime: pip install '.[export]' in Convoy's folder.") from error
    return onnxruntime
