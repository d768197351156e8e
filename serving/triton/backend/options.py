"""What ``config.pbtxt`` asks of ONNX Runtime: parsed, checked, and what cannot be honoured said aloud."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from convoy.contract.errors import UsageError

DEFAULT_MODEL_FILENAME: Final = "model.onnx"
GRAPH_LEVELS: Final = {-1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}
"""``optimization.graph.level`` as the C++ backend reads it."""

_CUDA_PARAMETERS: Final = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "gpu_mem_limit": None,
    "do_copy_in_default_stream": None,
}
_READ_ELSEWHERE: Final = (
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
)
_SESSION_ENTRIES: Final = ("session.use_device_allocator_for_initializers",)
_SHRINKAGE: Final = "memory.enable_memory_arena_shrinkage"
_NOT_OURS: Final = ("convoy_", "TRITON_")
"""Prefixes of parameters that are for others."""

Kind = Literal["CPU", "GPU"]


@dataclass(frozen=True)
class Options:
    """What a model's configuration asks of one instance.

    Attributes:
        kind: Where the instance runs.
        device_id: The GPU, where it runs on one.
        gpu_was_asked_for: ``config.pbtxt`` itself says ``KIND_GPU`` (as opposed to a ``KIND_AUTO`` that Triton resolved).
        model_filename: The ONNX file's name in the version folder.
        intra_op_threads: Threads within an operator: 0 for ONNX Runtime's own choice; None where nothing was said.
        inter_op_threads: Threads across operators, in parallel execution; 0 for ONNX Runtime's own choice.
        parallel: Whether operators run in parallel.
        graph_level: The name of ONNX Runtime's ``GraphOptimizationLevel``.
        mem_arena: Whether the CPU allocator keeps an arena.
        mem_pattern: Whether memory is planned ahead.
        session_entries: ONNX Runtime session configuration entries.
        run_entries: ONNX Runtime run configuration entries.
        cuda: Options of the CUDA execution provider.
        n_instances: How many instances share this machine's cores.
        warnings: What was asked for and is not honoured.
    """

    kind: Kind = "CPU"
    device_id: int = 0
    gpu_was_asked_for: bool = False
    model_filename: str = DEFAULT_MODEL_FILENAME
    intra_op_threads: int | None = None
    inter_op_threads: int = 0
    parallel: bool = False
    graph_level: str = "ORT_ENABLE_ALL"
    mem_arena: bool = True
    mem_pattern: bool = True
    session_entries: Mapping[str, str] = field(default_factory=dict)
    run_entries: Mapping[str, str] = field(default_factory=dict)
    cuda: Mapping[str, str] = field(default_factory=dict)
    n_instances: int = 1
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: Mapping[str, Any], *, kind: str = "CPU", device_id: str = "0", folder: Path | None = None) -> Options:
        """Read a model's configuration.

        Args:
            config: ``ModelConfig`` in its JSON form, as Triton passes it.
            kind: ``model_instance_kind``.
            device_id: ``model_instance_device_id``.
            folder: The model's folder, whose ``config.pbtxt`` tells ``KIND_GPU`` from ``KIND_AUTO``.

        Raises:
            UsageError: A value cannot be, or something was asked for without which the model would answer wrongly.
        """
        _refuse_unsupported(config)
        parameters = {key: str(value.get("string_value", "")) for key, value in config.get("parameters", {}).items()}
        warnings = [*_unknown_parameters(parameters), *_unsupported_optimizations(config.get("optimization", {}), kind)]
        if kind not in ("CPU", "GPU"):
            warnings.append(f"instance kind KIND_{kind}: runs as KIND_CPU")
        return cls(
            kind="GPU" if kind == "GPU" else "CPU",
            device_id=int(device_id),
            gpu_was_asked_for=_says_kind_gpu(folder),
            model_filename=_model_filename(config),
            intra_op_threads=_number(parameters, "intra_op_thread_count", None),
            inter_op_threads=_number(parameters, "inter_op_thread_count", 0) or 0,
            parallel=_flag(parameters, "execution_mode", False),
            graph_level=_graph_level(config.get("optimization", {})),
            mem_arena=_flag(parameters, "enable_mem_arena", True),
            mem_pattern=_flag(parameters, "enable_mem_pattern", True),
            session_entries={key: parameters[key] for key in _SESSION_ENTRIES if key in parameters},
            run_entries={_SHRINKAGE: parameters[_SHRINKAGE]} if _SHRINKAGE in parameters else {},
            cuda=_cuda_options(parameters, config.get("optimization", {})),
            n_instances=sum(int(group.get("count", 1)) for group in config.get("instance_group", [])) or 1,
            warnings=tuple(warnings),
        )


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    """What would make the model answer wrongly is an error, not a warning."""
    unsupported = {
        "batch_input": bool(config.get("batch_input")),
        "batch_output": bool(config.get("batch_output")),
        "model_transaction_policy { decoupled: true }": bool(config.get("model_transaction_policy", {}).get("decoupled")),
        "sequence_batching { state }": bool(config.get("sequence_batching", {}).get("state")),
        "model_operations { op_library_filename }": bool(config.get("model_operations", {}).get("op_library_filename")),
    }
    for tensor in (*config.get("input", []), *config.get("output", [])):
        for name in ("reshape", "allow_ragged_batch", "is_shape_tensor", "optional"):
            unsupported[f"{name} of tensor '{tensor.get('name', '')}'"] = bool(tensor.get(name))
    found = [name for name, is_there in unsupported.items() if is_there]
    if found:
        raise UsageError(
            f"config.pbtxt asks for {', '.join(found)}, which this Python-based onnxruntime backend does not have. "
            "Remove it, or serve the model with NVIDIA's container, whose backend has it."
        )


def _unknown_parameters(parameters: Mapping[str, str]) -> list[str]:
    known = {*_READ_ELSEWHERE, *_SESSION_ENTRIES, _SHRINKAGE, *_CUDA_PARAMETERS}
    warnings = []
    for key, value in parameters.items():
        if key == "share_session_between_instances":
            if value.lower() in ("1", "true"):
                warnings.append(f"parameter '{key}' is not honoured: each instance is a process with a session of its own")
        elif key == "FORCE_CPU_ONLY_INPUT_TENSORS":
            if value.lower() not in ("yes", "1", "true"):
                raise UsageError(
                    f"parameter '{key}': expected 'yes', found '{value}': this backend takes tensors in CPU memory only."
                )
        elif key not in known and not key.startswith(_NOT_OURS):
            warnings.append(f"parameter '{key}' is unknown to this backend and has no effect")
    return warnings


def _unsupported_optimizations(optimization: Mapping[str, Any], kind: str) -> list[str]:
    accelerators = optimization.get("execution_accelerators", {})
    warnings = [
        f"cpu_execution_accelerator '{accelerator.get('name')}' is not honoured: the model runs on ONNX Runtime's CPU provider"
        for accelerator in accelerators.get("cpu_execution_accelerator", [])
    ]
    for accelerator in accelerators.get("gpu_execution_accelerator", []):
        if accelerator.get("name") != "cuda":
            warnings.append(
                f"gpu_execution_accelerator '{accelerator.get('name')}' is not honoured: the model runs on the CUDA provider"
            )
        elif kind != "GPU":
            warnings.append("gpu_execution_accelerator 'cuda' has no effect on an instance on a CPU")
    if optimization.get("cuda", {}).get("graphs"):
        warnings.append("optimization { cuda { graphs } } is not honoured")
    if optimization.get("priority", "PRIORITY_DEFAULT") != "PRIORITY_DEFAULT":
        warnings.append("optimization { priority } is not honoured")
    if int(optimization.get("graph", {}).get("level", 0)) not in GRAPH_LEVELS:
        warnings.append(
            f"optimization {{ graph {{ level }} }}: expected -1, 0, 1 or 2; {optimization['graph']['level']} counts as 0"
        )
    return warnings


def _model_filename(config: Mapping[str, Any]) -> str:
    name = str(config.get("default_model_filename") or DEFAULT_MODEL_FILENAME)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"default_model_filename: expected a file in the version's folder, found '{name}'.")
    return name


def _graph_level(optimization: Mapping[str, Any]) -> str:
    return GRAPH_LEVELS.get(int(optimization.get("graph", {}).get("level", 0)), GRAPH_LEVELS[0])


def _cuda_options(parameters: Mapping[str, str], optimization: Mapping[str, Any]) -> dict[str, str]:
    options = {
        key: (names or {}).get(parameters[key], parameters[key]) for key, names in _CUDA_PARAMETERS.items() if key in parameters
    }
    for accelerator in optimization.get("execution_accelerators", {}).get("gpu_execution_accelerator", []):
        if accelerator.get("name") == "cuda":
            options.update({key: str(value) for key, value in accelerator.get("parameters", {}).items()})
    return options


def _number(parameters: Mapping[str, str], key: str, default: int | None) -> int | None:
    if key not in parameters:
        return default
    text = parameters[key].strip()
    if not text.isdecimal() or int(text) > 4096:
        raise UsageError(f"parameter '{key}': expected a whole number from 0 to 4096, found '{parameters[key]}'.")
    return int(text)


def _flag(parameters: Mapping[str, str], key: str, default: bool) -> bool:
    if key not in parameters:
        return default
    value = parameters[key].strip().lower()
    if value not in ("0", "1", "false", "true"):
        raise UsageError(f"parameter '{key}': expected 0 or 1, found '{parameters[key]}'.")
    return value in ("1", "true")


def _says_kind_gpu(folder: Path | None) -> bool:
    """Whether ``config.pbtxt`` itself names KIND_GPU; comments do not count."""
    if folder is None:
        return False
    try:
        text = (folder / "config.pbtxt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # a model without a configuration file, or one loaded with a configuration of its own: Triton chose the kind
    return re.search(r"\bKIND_GPU\b", re.sub(r"#.*", "", text)) is not None
