"""An ONNX file opened by ONNX Runtime: where it runs, and with how many threads."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from convoy.contract.errors import ContractError, MissingDependencyError
from convoy.serving.triton.backend.border import TRITON_TYPES
from convoy.serving.triton.backend.options import Options

CUDA: Final = "CUDAExecutionProvider"
CPU: Final = "CPUExecutionProvider"

ONE_THREAD_BELOW_S: Final = 1e-3
"""Below this time for one row on one thread, more threads cost more than they bring (on 2 cores, LeNet5, 0.03 ms: 9,300 answers a
second with 2 threads, 15,900 with 1; ResNet18, 20 ms: twice as fast with 2)."""

_DTYPES: Final[dict[str, Any]] = {
    "tensor(bool)": np.bool_, "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64,
    **{f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """An open session.

    Attributes:
        session: ONNX Runtime's ``InferenceSession``.
        provider: The execution provider that it runs on.
        intra_op_threads: How many threads an operator may use; 0 for ONNX Runtime's own choice.
        warnings: What is not as it was asked for.
    """

    session: Any
    provider: str
    intra_op_threads: int
    warnings: tuple[str, ...] = ()


def model_path(version_folder: Path, filename: str) -> Path:
    """The ONNX file of a version; where the name is a folder's, the ``model.onnx`` in it.

    Raises:
        ContractError: There is none.
    """
    path = version_folder / filename
    if path.is_dir():
        path /= "model.onnx"
    if not path.is_file():
        raise ContractError(f"{path}: no such file. Each version of the model needs it (default_model_filename names it).")
    return path


def open_session(path: Path, options: Options) -> Opened:
    """Open an ONNX file.

    The number of threads is the configuration's ``intra_op_thread_count``. Where it is not set, one row is run on one thread: if
    that takes less than a millisecond the model keeps one thread, else it gets its share of the cores. Waiting threads sleep:
    spinning ones would take the server's cores.

    Args:
        path: The file.
        options: What the configuration asks for.

    Raises:
        ContractError: The file is not a model that ONNX Runtime can load; the message has its name and the reason.
        MissingDependencyError: ``config.pbtxt`` asks for a GPU and there is none that can be used.
    """
    warnings: list[str] = []
    provider = _choose_provider(options, warnings)
    if provider == CUDA:
        opened = _open(path, options, 1, provider)
        if CUDA in opened.get_providers():
            return Opened(opened, CUDA, 1, tuple(warnings))
        _no_gpu(options, "ONNX Runtime could not start its CUDA provider (the log above says why)", warnings)
    if options.intra_op_threads is not None:
        return Opened(_open(path, options, options.intra_op_threads, CPU), CPU, options.intra_op_threads, tuple(warnings))
    opened, share = _open(path, options, 1, CPU), max(1, available_cores() // options.n_instances)
    if share == 1 or _seconds_a_row(opened) < ONE_THREAD_BELOW_S:
        return Opened(opened, CPU, 1, tuple(warnings))
    return Opened(_open(path, options, share, CPU), CPU, share, tuple(warnings))


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose_provider(options: Options, warnings: list[str]) -> str:
    if options.kind == "CPU":
        return CPU
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        _no_gpu(options, f"this onnxruntime {onnxruntime.__version__} was built without CUDA (install onnxruntime-gpu)", warnings)
        return CPU
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels, where they are installed
    return CUDA


def _no_gpu(options: Options, reason: str, warnings: list[str]) -> None:
    if options.gpu_was_asked_for:
        raise MissingDependencyError(f"config.pbtxt asks for KIND_GPU, but {reason}. Mend that, or say KIND_CPU or KIND_AUTO.")
    warnings.append(f"RUNS ON THE CPU although this machine has a GPU: {reason}")


def _open(path: Path, options: Options, threads: int, provider: str) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = options.inter_op_threads if options.parallel else 1
    mode = onnxruntime.ExecutionMode
    settings.execution_mode = mode.ORT_PARALLEL if options.parallel else mode.ORT_SEQUENTIAL
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, options.graph_level)
    settings.enable_cpu_mem_arena = options.mem_arena
    settings.enable_mem_pattern = options.mem_pattern
    entries = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0", **options.session_entries}
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    providers: list[Any] = [CPU]
    if provider == CUDA:
        # Without TF32 float32 is computed in float32: what is served is what was validated. Who wants it sets use_tf32 himself.
        providers = [(CUDA, {"device_id": str(options.device_id), "use_tf32": "0", **options.cuda}), CPU]
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        damaged = type(error).__name__ == "InvalidProtobuf"
        hint = f" Its {path.stat().st_size} bytes are no ONNX file, or one that was cut short." if damaged else ""
        raise ContractError(f"{path.name} (version {path.parent.name}) cannot be loaded: {reason_of(error)}{hint}") from error


def reason_of(error: Exception) -> str:
    """What ONNX Runtime says, without its codes and paths to its sources."""
    text = str(error).strip()
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return " ".join(text.split())


def _seconds_a_row(session: Any) -> float:
    """How long one row of zeros takes, the best of three; 0 where the model does not take zeros (and one thread has to do)."""
    inputs = {}
    for node in session.get_inputs():
        if node.type not in TRITON_TYPES:
            return 0.0
        shape = [extent if isinstance(extent, int) and extent > 0 else 1 for extent in node.shape]
        inputs[node.name] = np.full(shape, "", np.object_) if node.type == "tensor(string)" else np.zeros(shape, _DTYPES[node.type])
    best = float("inf")
    try:
        for _ in range(3):
            start = time.perf_counter()
            session.run(None, inputs)
            best = min(best, time.perf_counter() - start)
    except Exception:  # noqa: BLE001 - a model may refuse zeros; that is no reason not to serve it
        return 0.0
    return best
