"""What ``config.pbtxt`` asks of ONNX Runtime: parsed, checked, and what cannot be honoured said aloud."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from convoy.contract.errors import UsageError
from convoy.serving.triton.backend.accelerator import DEPRECATED_CUDA_PARAMETERS, Accelerators
from convoy.serving.triton.backend.refusal import refuse
from convoy.serving.triton.backend.value import flag, read_flag, whole_number

DEFAULT_MODEL_FILENAME: Final = "model.onnx"
GRAPH_LEVELS: Final = {-1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}
"""``optimization.graph.level`` as the C++ backend reads it."""

SESSION_ENTRIES: Final = (
    "session.use_device_allocator_for_initializers",
    "session.intra_op.allow_spinning",
    "session.inter_op.allow_spinning",
    "session.set_denormal_as_zero",
    "session.disable_prepacking",
)
"""Of these the C++ backend reads the first; the others are ONNX Runtime's own names, each 0 or 1."""

_READ_ELSEWHERE: Final = (
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
    "FORCE_CPU_ONLY_INPUT_TENSORS",
)
GPU_BATCH_SIZES: Final = "convoy_gpu_batch_sizes"
"""The parameter that says which batch sizes get a session of their own on a GPU: numbers with commas, or "any" for none."""

_SHRINKAGE: Final = "memory.enable_memory_arena_shrinkage"
_SHARED_SESSION: Final = "share_session_between_instances"
_NOT_OURS: Final = ("convoy_", "TRITON_")
"""Prefixes of parameters that are for others."""
_MOST_THREADS: Final = 4096

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
        tensorrt: Options of the TensorRT execution provider; None where it is not asked for.
        openvino: Whether the OpenVINO execution provider is asked for.
        op_libraries: Libraries of custom operators.
        n_instances: How many instances share this machine's cores.
        max_batch_size: The most rows in a run; 0 where the model does not batch.
        batch_sizes: On a GPU where a change of the batch's size is dear, batches are filled up to one of these, rising up to
            ``max_batch_size``; empty for never.
        dims: By input, its dims without the batch axis as the configuration has them (warm-up samples before dims, as they leave
            nothing open); -1 where any extent will do.
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
    tensorrt: Mapping[str, str] | None = None
    openvino: bool = False
    op_libraries: tuple[str, ...] = ()
    n_instances: int = 1
    max_batch_size: int = 0
    batch_sizes: tuple[int, ...] = ()
    dims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
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
        refuse(config)
        parameters = {key: str(value.get("string_value", "")) for key, value in config.get("parameters", {}).items()}
        on_gpu = kind == "GPU"
        accelerators = Accelerators.read(config, parameters, on_gpu=on_gpu)
        mem_arena = _said(parameters, "enable_mem_arena", flag, True)
        run_entries, unrunnable = _run_entries(parameters, on_gpu=on_gpu, has_arena=mem_arena)
        warnings = [
            *_unknown_parameters(parameters),
            *_unsupported_optimizations(config.get("optimization", {})),
            *_unsupported_instances(config, kind),
            *accelerators.warnings,
            *unrunnable,
        ]
        return cls(
            kind="GPU" if on_gpu else "CPU",
            device_id=int(device_id),
            gpu_was_asked_for=_says_kind_gpu(folder),
            model_filename=_model_filename(config),
            intra_op_threads=_said(parameters, "intra_op_thread_count", _threads, None),
            inter_op_threads=_said(parameters, "inter_op_thread_count", _threads, 0),
            parallel=_said(parameters, "execution_mode", _execution_mode, False),
            graph_level=GRAPH_LEVELS.get(_graph_level(config.get("optimization", {})), GRAPH_LEVELS[0]),
            mem_arena=mem_arena,
            mem_pattern=_said(parameters, "enable_mem_pattern", flag, True),
            session_entries={key: read_flag(_called(key), parameters[key]) for key in SESSION_ENTRIES if key in parameters},
            run_entries=run_entries,
            cuda=accelerators.cuda,
            tensorrt=accelerators.tensorrt,
            openvino=accelerators.openvino,
            op_libraries=tuple(config.get("model_operations", {}).get("op_library_filename", [])),
            n_instances=sum(int(group.get("count", 1)) for group in config.get("instance_group", [])) or 1,
            max_batch_size=int(config.get("max_batch_size", 0)),
            batch_sizes=_batch_sizes(config, parameters, accelerators.cuda) if on_gpu else (),
            dims=_dims(config),
            warnings=tuple(warnings),
        )


def _called(key: str) -> str:
    return f"parameter '{key}'"


def _said(parameters: Mapping[str, str], key: str, read: Callable[[str, str], Any], default: Any) -> Any:
    return read(_called(key), parameters[key]) if key in parameters else default


def _threads(what: str, text: str) -> int:
    return whole_number(what, text, most=_MOST_THREADS)


def _execution_mode(what: str, text: str) -> bool:
    return whole_number(what, text, most=1) == 1


def _run_entries(parameters: Mapping[str, str], *, on_gpu: bool, has_arena: bool) -> tuple[dict[str, str], list[str]]:
    """ONNX Runtime fails each run that shall shrink an arena which is not there: such devices are left out."""
    if _SHRINKAGE not in parameters:
        return {}, []
    text, kept, warnings = parameters[_SHRINKAGE].strip(), [], []
    if not re.fullmatch(r"(cpu|gpu):\d+(;(cpu|gpu):\d+)*;?", text):
        raise UsageError(f"{_called(_SHRINKAGE)}: expected devices such as cpu:0 or cpu:0;gpu:0, found '{parameters[_SHRINKAGE]}'.")
    for device in text.rstrip(";").split(";"):
        if device.startswith("gpu") and not on_gpu:
            warnings.append(f"{_called(_SHRINKAGE)}: {device} is left out, as the instance runs on a CPU")
        elif device.startswith("cpu") and not has_arena:
            warnings.append(f"{_called(_SHRINKAGE)}: {device} is left out, as enable_mem_arena is 0")
        else:
            kept.append(device)
    return ({_SHRINKAGE: ";".join(kept)} if kept else {}), warnings


def _unknown_parameters(parameters: Mapping[str, str]) -> Iterable[str]:
    known = {*_READ_ELSEWHERE, *SESSION_ENTRIES, _SHRINKAGE, *DEPRECATED_CUDA_PARAMETERS, _SHARED_SESSION}
    if _said(parameters, _SHARED_SESSION, flag, False):
        yield f"{_called(_SHARED_SESSION)} is not honoured: each instance is a process with a session of its own"
    for key in parameters:
        if key not in known and not key.startswith(_NOT_OURS):
            yield f"{_called(key)} is unknown to this backend and has no effect"


def _unsupported_optimizations(optimization: Mapping[str, Any]) -> Iterable[str]:
    cuda = optimization.get("cuda", {})
    for name in ("graphs", "busy_wait_events", "graph_spec", "output_copy_stream"):
        if cuda.get(name):
            yield f"optimization {{ cuda {{ {name} }} }} has no effect: it is TensorRT's own backend's"
    if optimization.get("priority", "PRIORITY_DEFAULT") != "PRIORITY_DEFAULT":
        yield "optimization { priority } is not honoured"
    if int(optimization.get("gather_kernel_buffer_threshold", 0)):
        yield "optimization { gather_kernel_buffer_threshold } is not honoured: requests are joined in the memory of the CPU"
    if _graph_level(optimization) not in GRAPH_LEVELS:
        yield f"optimization {{ graph {{ level }} }}: expected -1, 0, 1 or 2; {_graph_level(optimization)} counts as 0"


def _unsupported_instances(config: Mapping[str, Any], kind: str) -> Iterable[str]:
    if kind not in ("CPU", "GPU"):
        yield f"instance kind KIND_{kind}: runs as KIND_CPU"
    if kind == "GPU" and config.get("cc_model_filenames"):
        yield "cc_model_filenames is not honoured: every GPU gets the file that default_model_filename names"
    for name in ("secondary_devices", "profile"):
        if any(group.get(name) for group in config.get("instance_group", [])):
            yield f"instance_group {{ {name} }} has no effect: it is for other backends"


def _graph_level(optimization: Mapping[str, Any]) -> int:
    return int(optimization.get("graph", {}).get("level", 0))


def _model_filename(config: Mapping[str, Any]) -> str:
    name = str(config.get("default_model_filename") or DEFAULT_MODEL_FILENAME)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"default_model_filename: expected a file in the version's folder, found '{name}'.")
    return name


def _batch_sizes(config: Mapping[str, Any], parameters: Mapping[str, str], cuda: Mapping[str, str]) -> tuple[int, ...]:
    """1 and its doubles, the preferred sizes and the largest, unless the configuration says otherwise.

    A limit on the GPU's memory is one for each session, so that where there is one nothing but ``convoy_gpu_batch_sizes`` brings
    further sessions.
    """
    most = int(config.get("max_batch_size", 0))
    if most < 1:
        return ()
    if GPU_BATCH_SIZES in parameters:
        text = parameters[GPU_BATCH_SIZES].strip()
        named = [] if text == "any" else [whole_number(_called(GPU_BATCH_SIZES), n, least=1, most=most) for n in text.split(",")]
        return tuple(sorted({*named, most})) if named else ()
    if "gpu_mem_limit" in cuda:
        return ()
    preferred = [int(size) for size in config.get("dynamic_batching", {}).get("preferred_batch_size", [])]
    doubles = (1 << power for power in range(most.bit_length()))
    return tuple(sorted({size for size in (*doubles, *preferred, most) if size <= most}))


def _dims(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    dims = {}
    for tensor in config.get("input", []):
        seen = tensor["reshape"].get("shape", []) if "reshape" in tensor else tensor.get("dims", [])
        dims[tensor["name"]] = tuple(int(extent) for extent in seen)
    reshaped = {tensor["name"] for tensor in config.get("input", []) if "reshape" in tensor}
    for warmup in config.get("model_warmup", [])[:1]:
        for name, sample in warmup.get("inputs", {}).items():
            if name in dims and name not in reshaped:
                dims[name] = tuple(int(extent) for extent in sample.get("dims", []))
    return dims


def _says_kind_gpu(folder: Path | None) -> bool:
    """Whether ``config.pbtxt`` itself names KIND_GPU; comments do not count."""
    if folder is None:
        return False
    try:
        text = (folder / "config.pbtxt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # a model without a configuration file, or one loaded with a configuration of its own: Triton chose the kind
    return re.search(r"\bKIND_GPU\b", re.sub(r"#.*", "", text)) is not None
