"""An ONNX file opened by ONNX Runtime: where it runs, and with how many threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from convoy.contract.errors import ContractError, MissingDependencyError
from convoy.serving.triton.backend.ladder import climb
from convoy.serving.triton.backend.options import Options
from convoy.serving.triton.backend.threads import available_cores, choose

TENSORRT: Final = "TensorrtExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
OPENVINO: Final = "OpenVINOExecutionProvider"
CPU: Final = "CPUExecutionProvider"


@dataclass(frozen=True)
class Opened:
    """An open session.

    Attributes:
        session: ONNX Runtime's ``InferenceSession``, or a ``Ladder`` of several.
        provider: The execution provider that it runs on; what that cannot do runs on those behind it.
        intra_op_threads: How many threads an operator may use; 0 for ONNX Runtime's own choice.
        warnings: What is not as it was asked for.
        notes: How what was not asked for was chosen.
        run_entries: The run configuration entries that hold where it runs.
    """

    session: Any
    provider: str
    intra_op_threads: int
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    run_entries: dict[str, str] = field(default_factory=dict)


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

    The number of threads is the configuration's ``intra_op_thread_count``; where it is not set it is found by measuring. Waiting
    threads sleep: spinning ones would take the server's cores.

    Args:
        path: The file.
        options: What the configuration asks for.

    Raises:
        ContractError: The file is not a model that ONNX Runtime can load; the message has its name and the reason.
        MissingDependencyError: ``config.pbtxt`` asks for a GPU, or for TensorRT on one, and it cannot be used.
    """
    warnings: list[str] = []
    if options.kind == "GPU":
        opened = _open_on_gpu(path, options, warnings)
        if opened is not None:
            return opened
    providers = _cpu_providers(options, warnings)
    run_entries = dict(options.run_entries) if options.kind == "CPU" else {}
    if options.intra_op_threads is not None:
        session = _open(path, options, options.intra_op_threads, providers)
        return Opened(session, _first(session), options.intra_op_threads, tuple(warnings), (), run_entries)
    choice = choose(
        lambda threads: _open(path, options, threads, providers),
        available_cores() // options.n_instances,
        options.max_batch_size,
        options.dims,
    )
    notes = (f"intra-op threads: {choice.evidence}",)
    return Opened(choice.session, _first(choice.session), choice.threads, tuple(warnings), notes, run_entries)


def _open_on_gpu(path: Path, options: Options, warnings: list[str]) -> Opened | None:
    """A session on the GPU; None, and a warning, where there is none to be had and none was asked for."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels, where they are installed
    # Without TF32 float32 is computed in float32: what is served is what was validated. Who wants it sets use_tf32 himself.
    cuda = (CUDA, {"use_tf32": "0", **options.cuda, "device_id": str(options.device_id)})
    if options.tensorrt is not None:
        tensorrt = (TENSORRT, {**options.tensorrt, "device_id": str(options.device_id)})
        session, reason = _try_on_gpu(path, options, [tensorrt, cuda, CPU], available)
        if session is not None:
            return Opened(session, TENSORRT, 1, tuple(warnings), (), dict(options.run_entries))
        if options.gpu_was_asked_for:
            raise MissingDependencyError(
                f"config.pbtxt asks for KIND_GPU and accelerator 'tensorrt', but {reason}. Mend that, or remove the accelerator."
            )
        warnings.append(f"RUNS WITHOUT TENSORRT: {reason}")
    session, reason = _try_on_gpu(path, options, [cuda, CPU], available)
    if session is not None:
        climbed = climb(session, lambda: _open(path, options, 1, [cuda, CPU]), options.batch_sizes, options.dims)
        return Opened(climbed.session, CUDA, 1, (*warnings, *climbed.warnings), climbed.notes, dict(options.run_entries))
    if options.gpu_was_asked_for:
        if isinstance(reason, ContractError):
            raise reason
        raise MissingDependencyError(f"config.pbtxt asks for KIND_GPU, but {reason}. Mend that, or say KIND_CPU or KIND_AUTO.")
    warnings.append(f"RUNS ON THE CPU although this machine has a GPU: {reason}")
    return None


def _try_on_gpu(
    path: Path, options: Options, providers: list[Any], available: Sequence[str]
) -> tuple[Any | None, str | ContractError]:
    """A session whose first provider is the one that was wanted; or None, and why."""
    import onnxruntime

    name = providers[0][0]
    if name not in available:
        return None, f"this onnxruntime {onnxruntime.__version__} was built without {name} (install onnxruntime-gpu)"
    try:
        session = _open(path, options, 1, providers)
    except ContractError as error:
        return None, error
    if _first(session) != name:
        return None, f"ONNX Runtime could not start its {name} (the log above says why)"
    return session, ""


def _first(session: Any) -> str:
    return str(session.get_providers()[0])


def _cpu_providers(options: Options, warnings: list[str]) -> list[Any]:
    if not options.openvino:
        return [CPU]
    import onnxruntime

    if OPENVINO in onnxruntime.get_available_providers():
        return [(OPENVINO, {"device_type": "CPU"}), CPU]
    warnings.append(
        f"cpu_execution_accelerator 'openvino' is not honoured: this onnxruntime {onnxruntime.__version__} was built without it "
        "(onnxruntime-openvino has it); the model runs on ONNX Runtime's CPU provider"
    )
    return [CPU]


def _open(path: Path, options: Options, threads: int, providers: list[Any]) -> Any:
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
    try:
        for library in options.op_libraries:
            settings.register_custom_ops_library(library)
        # Without its own fallback ONNX Runtime says what is wrong with a provider instead of quietly running on the CPU.
        return onnxruntime.InferenceSession(str(path), settings, providers=providers, enable_fallback=0)
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
