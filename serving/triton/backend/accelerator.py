"""``optimization { execution_accelerators }``: the providers that a configuration asks for, and their options.

The names are those of NVIDIA's C++ backend; TensorRT's are mapped to ONNX Runtime's, CUDA's are ONNX Runtime's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from convoy.contract.errors import UsageError
from convoy.serving.triton.backend.value import Reader, flag, read_flag, read_name, read_number, read_text

_INT: Final = read_number(-(2**31), 2**31 - 1)

CUDA_PARAMETERS: Final[dict[str, Reader]] = {
    "arena_extend_strategy": read_name("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv1d_pad_to_nc1d": read_flag,
    "cudnn_conv_algo_search": read_name("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "cudnn_conv_use_max_workspace": read_flag,
    "do_copy_in_default_stream": read_flag,
    "enable_skip_layer_norm_strict_mode": read_flag,
    "fuse_conv_bias": read_flag,
    "gpu_mem_limit": read_number(),
    "prefer_nhwc": read_flag,
    "sdpa_kernel": read_number(0, 2**31 - 1),
    "tunable_op_enable": read_flag,
    "tunable_op_max_tuning_duration_ms": read_number(0, 2**31 - 1),
    "tunable_op_tuning_enable": read_flag,
    "use_ep_level_unified_stream": read_flag,
    "use_tf32": read_flag,
}
"""Parameters of the accelerator ``cuda``: options of ONNX Runtime's CUDA provider under their own names."""

DEPRECATED_CUDA_PARAMETERS: Final[dict[str, Reader]] = {
    "cudnn_conv_algo_search": read_name(of={"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"}),
    "arena_extend_strategy": read_name(of={"0": "kNextPowerOfTwo", "1": "kSameAsRequested"}),
    "gpu_mem_limit": read_number(),
    "do_copy_in_default_stream": read_flag,
}
"""The four that may also stand among the model's ``parameters``; two of them are numbers there."""

_CUDA_ADDRESSES: Final = (
    "user_compute_stream", "has_user_compute_stream", "user_cudnn_handle", "user_cublas_handle",
    "gpu_external_alloc", "gpu_external_free", "gpu_external_empty_cache", "default_memory_arena_cfg",
)  # fmt: skip

_PRECISIONS: Final = {"FP32": None, "FP16": "trt_fp16_enable", "BF16": "trt_bf16_enable", "INT8": "trt_int8_enable"}

TENSORRT_PARAMETERS: Final[dict[str, tuple[str, Reader]]] = {
    "max_workspace_size_bytes": ("trt_max_workspace_size", read_number()),
    "int8_calibration_table_name": ("trt_int8_calibration_table_name", read_text),
    "int8_use_native_calibration_table": ("trt_int8_use_native_calibration_table", read_flag),
    **{name: (name, _INT) for name in (
        "trt_max_partition_iterations", "trt_min_subgraph_size", "trt_dla_core", "trt_builder_optimization_level",
        "trt_auxiliary_streams", "trt_ep_context_embed_mode",
    )},
    **{name: (name, read_flag) for name in (
        "trt_dla_enable", "trt_engine_cache_enable", "trt_dump_subgraphs", "trt_force_sequential_engine_build",
        "trt_context_memory_sharing_enable", "trt_layer_norm_fp32_fallback", "trt_timing_cache_enable", "trt_force_timing_cache",
        "trt_detailed_build_log", "trt_build_heuristics_enable", "trt_sparsity_enable", "trt_dump_ep_context_model",
    )},
    **{name: (name, read_text) for name in (
        "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_timing_cache_path", "trt_tactic_sources",
        "trt_extra_plugin_lib_paths", "trt_profile_min_shapes", "trt_profile_max_shapes", "trt_profile_opt_shapes",
        "trt_ep_context_file_path",
    )},
}  # fmt: skip
"""Parameters of the accelerator ``tensorrt`` -> ONNX Runtime's name of the option. ``precision_mode`` and
``trt_cuda_graph_enable`` are dealt with apart."""

_CACHES: Final = (("trt_engine_cache_enable", "trt_engine_cache_path"), ("trt_timing_cache_enable", "trt_timing_cache_path"))


@dataclass(frozen=True)
class Accelerators:
    """What is asked for beside ONNX Runtime's plain providers.

    Attributes:
        cuda: Options of the CUDA provider.
        tensorrt: Options of the TensorRT provider; None where it is not asked for.
        openvino: Whether OpenVINO is asked for on the CPU.
        warnings: What has no effect.
    """

    cuda: Mapping[str, str] = field(default_factory=dict)
    tensorrt: Mapping[str, str] | None = None
    openvino: bool = False
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: Mapping[str, Any], parameters: Mapping[str, str], *, on_gpu: bool) -> Accelerators:
        """Read what a configuration asks for.

        On a CPU the GPU's accelerators have no effect, with the C++ backend too; what is wrong with them is a warning there.

        Args:
            config: ``ModelConfig`` in its JSON form.
            parameters: Its ``parameters``, of which four are CUDA's.
            on_gpu: Whether the instance runs on a GPU.

        Raises:
            UsageError: An accelerator or a parameter does not exist, a value cannot be, or answers could be wrong.
        """
        asked = config.get("optimization", {}).get("execution_accelerators", {})
        gpu, cpu = asked.get("gpu_execution_accelerator", []), asked.get("cpu_execution_accelerator", [])
        warnings: list[str] = []
        try:
            cuda, tensorrt = _read_gpu(gpu, parameters, warnings)
        except UsageError as error:
            if on_gpu:
                raise
            cuda, tensorrt = {}, None
            warnings = [f"on a GPU this model would not load: {error}"]
        if not on_gpu and gpu:
            names = ", ".join(f"'{accelerator.get('name')}'" for accelerator in gpu)
            warnings.append(f"gpu_execution_accelerator {names} has no effect on an instance on a CPU")
        return cls(cuda, tensorrt, _read_cpu(cpu, warnings), tuple(warnings))


def _read_gpu(
    accelerators: Sequence[Mapping[str, Any]], parameters: Mapping[str, str], warnings: list[str]
) -> tuple[dict[str, str], dict[str, str] | None]:
    cuda: dict[str, str] = {}
    tensorrt: dict[str, str] | None = None
    for accelerator in accelerators:
        said = {key: str(value) for key, value in accelerator.get("parameters", {}).items()}
        match accelerator.get("name"):
            case "cuda":
                cuda.update(_read_cuda(said, warnings))
            case "tensorrt":
                tensorrt = {**(tensorrt or {}), **_read_tensorrt(said, warnings)}
            case name:
                raise UsageError(f"execution_accelerators: expected cuda or tensorrt as gpu_execution_accelerator, found '{name}'.")
    for key, read in DEPRECATED_CUDA_PARAMETERS.items():
        if key in parameters:
            value = read(f"parameter '{key}'", parameters[key])
            if cuda.get(key, value) != value:
                warnings.append(f"'{key}' is set twice: the model's parameter ({value}) has precedence over the accelerator's")
            cuda[key] = value
    return cuda, tensorrt


def _read_cuda(said: Mapping[str, str], warnings: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, text in said.items():
        what = f"gpu_execution_accelerator 'cuda', parameter '{key}'"
        if key in CUDA_PARAMETERS:
            options[key] = CUDA_PARAMETERS[key](what, text)
        elif key == "enable_cuda_graph":
            _refuse_graphs(what, text)
        elif key in _CUDA_ADDRESSES:
            raise UsageError(f"{what}: expected none: it is an address in a process that has yet to start. Remove it.")
        elif key == "device_id":
            warnings.append(f"{what} is not honoured: instance_group {{ gpus }} says which GPU")
        else:
            warnings.append(f"{what} is unknown to this backend: ONNX Runtime is to judge it")
            options[key] = text
    return options


def _read_tensorrt(said: Mapping[str, str], warnings: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, text in said.items():
        what = f"gpu_execution_accelerator 'tensorrt', parameter '{key}'"
        if key in TENSORRT_PARAMETERS:
            name, read = TENSORRT_PARAMETERS[key]
            options[name] = read(what, text)
        elif key == "precision_mode":
            if text not in _PRECISIONS:
                raise UsageError(f"{what}: expected {' or '.join(_PRECISIONS)}, found '{text}'.")
            option = _PRECISIONS[text]
            options.update({option: "1"} if option else {})
        elif key == "trt_cuda_graph_enable":
            _refuse_graphs(what, text)
        else:
            raise UsageError(f"{what}: there is no such parameter. Known: {', '.join(sorted(TENSORRT_PARAMETERS))}.")
    for enable, path in _CACHES:
        if options.get(enable) == "1" and not options.get(path, "").startswith("/"):
            warnings.append(
                f"{enable}: {path} is {options.get(path) or 'not set'}; what is not an absolute path lies in the server's "
                "temporary folder and goes away with it"
            )
    return options


def _refuse_graphs(what: str, text: str) -> None:
    if flag(what, text):
        raise UsageError(
            f"{what}: this Python-based backend cannot replay CUDA graphs: they read the addresses of the first request's tensors, "
            "and each request has its own. Set it to 0."
        )


def _read_cpu(accelerators: Sequence[Mapping[str, Any]], warnings: list[str]) -> bool:
    for accelerator in accelerators:
        if accelerator.get("name") != "openvino":
            raise UsageError(
                f"execution_accelerators: expected openvino as cpu_execution_accelerator, found '{accelerator.get('name')}'."
            )
        warnings.extend(
            f"cpu_execution_accelerator 'openvino', parameter '{key}' has no effect" for key in accelerator.get("parameters", {})
        )
    return bool(accelerators)
