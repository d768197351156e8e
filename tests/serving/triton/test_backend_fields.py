"""Every field that NVIDIA's C++ backend or Triton's schema documents, and what becomes of it here: nothing is dropped in silence.

A field is honoured (its value arrives in the options), Triton's own (it acts before or after the backend, which sees none of it),
warned of, or refused. The tables below are complete: tests hold them against Triton's schema, the backend's tables and
``docs/backend.md``.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2

from convoy.contract.errors import UsageError
from convoy.serving.triton.backend.accelerator import CUDA_PARAMETERS, TENSORRT_PARAMETERS
from convoy.serving.triton.backend.options import SESSION_ENTRIES, Options

DOCS = Path(__file__).parents[3] / "docs" / "backend.md"

PARAMETERS: dict[str, list[tuple[str, Any]]] = {
    "intra_op_thread_count": [
        ("3", ("intra_op_threads", 3)),
        ("0", ("intra_op_threads", 0)),
        ("many", UsageError),
        ("", UsageError),
    ],
    "inter_op_thread_count": [("2", ("inter_op_threads", 2)), ("-1", UsageError)],
    "execution_mode": [("0", ("parallel", False)), ("1", ("parallel", True)), ("2", UsageError), ("parallel", UsageError)],
    "enable_mem_arena": [("0", ("mem_arena", False)), ("1", ("mem_arena", True)), ("maybe", UsageError)],
    "enable_mem_pattern": [("false", ("mem_pattern", False)), ("TRUE", ("mem_pattern", True)), ("2", UsageError)],
    "memory.enable_memory_arena_shrinkage": [
        ("cpu:0", ("run_entries", {"memory.enable_memory_arena_shrinkage": "cpu:0"})),
        ("cpu:0;gpu:0", "gpu:0 is left out, as the instance runs on a CPU"),
        ("yes", UsageError),
    ],
    "share_session_between_instances": [("1", "is not honoured: each instance is a process"), ("0", None), ("x", UsageError)],
    "FORCE_CPU_ONLY_INPUT_TENSORS": [("yes", None), ("no", UsageError)],
    "EXECUTION_ENV_PATH": [("/env.tar.gz", UsageError)],
    **{name: [("1", ("session_entries", {name: "1"})), ("2", UsageError)] for name in SESSION_ENTRIES},
    "session.intra_op_thread_affinities": [("1;2", "is unknown to this backend and has no effect")],
    "intra_op_threads": [("2", "is unknown to this backend and has no effect")],
    "convoy_interface": [("{}", None)],
}
"""Model parameters: value -> (attribute, value) where it is honoured, text of the warning, the error, or None: nothing to do."""

GPU_PARAMETERS: dict[str, list[tuple[str, Any]]] = {
    "cudnn_conv_algo_search": [
        ("0", "EXHAUSTIVE"),
        ("1", "HEURISTIC"),
        ("2", "DEFAULT"),
        ("3", UsageError),
        ("HEURISTIC", UsageError),
    ],
    "gpu_mem_limit": [("4294967200", "4294967200"), ("18446744073709551615", "18446744073709551615"), ("4GB", UsageError)],
    "arena_extend_strategy": [("0", "kNextPowerOfTwo"), ("1", "kSameAsRequested"), ("2", UsageError)],
    "do_copy_in_default_stream": [("0", "0"), ("true", "1"), ("2", UsageError)],
}
"""Model parameters that are CUDA's: value -> the option's value, or the error."""

CUDA: dict[str, list[tuple[str, Any]]] = {
    "cudnn_conv_algo_search": [("HEURISTIC", "HEURISTIC"), ("1", UsageError)],
    "arena_extend_strategy": [("kSameAsRequested", "kSameAsRequested"), ("1", UsageError)],
    "gpu_mem_limit": [("1024", "1024"), ("-1", UsageError)],
    "tunable_op_max_tuning_duration_ms": [("100", "100"), ("long", UsageError)],
    "sdpa_kernel": [("1", "1"), ("flash", UsageError)],
    **{
        name: [("0", "0"), ("true", "1"), ("2", UsageError)]
        for name in (
            "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_use_max_workspace", "do_copy_in_default_stream",
            "enable_skip_layer_norm_strict_mode", "fuse_conv_bias", "prefer_nhwc", "tunable_op_enable", "tunable_op_tuning_enable",
            "use_ep_level_unified_stream", "use_tf32",
        )
    },
    "enable_cuda_graph": [("1", UsageError), ("0", None)],
    "device_id": [("1", "instance_group { gpus } says which GPU")],
    "user_compute_stream": [("140", UsageError)],
    "has_user_compute_stream": [("1", UsageError)],
    "gpu_external_alloc": [("1", UsageError)],
    "gpu_external_free": [("1", UsageError)],
    "gpu_external_empty_cache": [("1", UsageError)],
    "default_memory_arena_cfg": [("1", UsageError)],
}  # fmt: skip
"""Parameters of the accelerator ``cuda``: value -> the option's value, the error, None where there is nothing to do, or (where the
text is no value of the table's own) the warning."""

TENSORRT: dict[str, list[tuple[str, Any]]] = {
    "precision_mode": [
        ("FP32", {}),
        ("FP16", {"trt_fp16_enable": "1"}),
        ("BF16", {"trt_bf16_enable": "1"}),
        ("INT8", {"trt_int8_enable": "1"}),
        ("fp16", UsageError),
    ],
    "max_workspace_size_bytes": [("1073741824", {"trt_max_workspace_size": "1073741824"}), ("1GB", UsageError)],
    "int8_calibration_table_name": [("table", {"trt_int8_calibration_table_name": "table"}), ("", UsageError)],
    "int8_use_native_calibration_table": [("true", {"trt_int8_use_native_calibration_table": "1"}), ("2", UsageError)],
    **{
        name: [("-1", {name: "-1"}), ("x", UsageError)]
        for name in (
            "trt_max_partition_iterations", "trt_min_subgraph_size", "trt_dla_core", "trt_builder_optimization_level",
            "trt_auxiliary_streams", "trt_ep_context_embed_mode",
        )
    },
    **{
        name: [("true", {name: "1"}), ("0", {name: "0"}), ("2", UsageError)]
        for name in (
            "trt_dla_enable", "trt_engine_cache_enable", "trt_dump_subgraphs", "trt_force_sequential_engine_build",
            "trt_context_memory_sharing_enable", "trt_layer_norm_fp32_fallback", "trt_timing_cache_enable",
            "trt_force_timing_cache", "trt_detailed_build_log", "trt_build_heuristics_enable", "trt_sparsity_enable",
            "trt_dump_ep_context_model",
        )
    },
    **{
        name: [("/a", {name: "/a"}), (" ", UsageError)]
        for name in (
            "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_timing_cache_path", "trt_tactic_sources",
            "trt_extra_plugin_lib_paths", "trt_profile_min_shapes", "trt_profile_max_shapes", "trt_profile_opt_shapes",
            "trt_ep_context_file_path",
        )
    },
    "trt_cuda_graph_enable": [("1", UsageError), ("0", {})],
    "max_workspace": [("1", UsageError)],
}  # fmt: skip
"""Parameters of the accelerator ``tensorrt``: value -> ONNX Runtime's options, or the error."""

TRITONS = None
"""Triton's own: it acts outside the backend, whose options do not change."""

FIELDS: dict[str, list[tuple[Any, Any]]] = {
    "name": [("m", TRITONS)],
    "platform": [("onnxruntime_onnx", TRITONS)],
    "backend": [("onnxruntime", TRITONS)],
    "runtime": [("", TRITONS)],
    "version_policy": [({"latest": {"num_versions": 1}}, TRITONS)],
    "max_batch_size": [(8, ("max_batch_size", 8))],
    "input": [([{"name": "x", "dims": [2]}], ("dims", {"x": (2,)}))],
    "input.format": [("FORMAT_NCHW", TRITONS)],
    "input.reshape": [({"shape": [4]}, TRITONS)],
    "input.optional": [(True, TRITONS)],
    "input.is_shape_tensor": [(True, UsageError)],
    "input.allow_ragged_batch": [(True, UsageError)],
    "input.is_non_linear_format_io": [(True, UsageError)],
    "output": [([{"name": "y", "dims": [2]}], TRITONS)],
    "output.reshape": [({"shape": [4]}, TRITONS)],
    "output.label_filename": [("labels.txt", TRITONS)],
    "output.is_shape_tensor": [(True, UsageError)],
    "output.is_non_linear_format_io": [(True, UsageError)],
    "batch_input": [([{"kind": "BATCH_ELEMENT_COUNT"}], UsageError)],
    "batch_output": [([{"kind": "BATCH_SCATTER_WITH_INPUT_SHAPE"}], UsageError)],
    "optimization": [({}, TRITONS)],
    "optimization.graph": [({"level": 1}, ("graph_level", "ORT_ENABLE_EXTENDED")), ({"level": 7}, "7 counts as 0")],
    "optimization.priority": [("PRIORITY_MAX", "priority } is not honoured"), ("PRIORITY_DEFAULT", TRITONS)],
    "optimization.cuda": [
        ({"graphs": True}, "cuda { graphs } } has no effect"),
        ({"busy_wait_events": True}, "busy_wait_events } } has no effect"),
        ({"graph_spec": [{}]}, "graph_spec } } has no effect"),
        ({"output_copy_stream": True}, "output_copy_stream } } has no effect"),
    ],
    "optimization.execution_accelerators": [
        ({"cpu_execution_accelerator": [{"name": "openvino"}]}, ("openvino", True)),
        ({"cpu_execution_accelerator": [{"name": "openvino", "parameters": {"a": "b"}}]}, "parameter 'a' has no effect"),
        ({"cpu_execution_accelerator": [{"name": "tensorrt"}]}, UsageError),
        ({"gpu_execution_accelerator": [{"name": "tensorrt"}]}, "has no effect on an instance on a CPU"),
    ],
    "optimization.input_pinned_memory": [({"enable": True}, TRITONS)],
    "optimization.output_pinned_memory": [({"enable": True}, TRITONS)],
    "optimization.gather_kernel_buffer_threshold": [(4, "is not honoured")],
    "optimization.eager_batching": [(True, TRITONS)],
    "dynamic_batching": [({"max_queue_delay_microseconds": 100}, TRITONS)],
    "sequence_batching": [({"control_input": [{"name": "START"}]}, TRITONS), ({"state": [{"input_name": "s"}]}, UsageError)],
    "ensemble_scheduling": [({}, TRITONS)],
    "instance_group": [([{"count": 2}, {"count": 3}], ("n_instances", 5))],
    "instance_group.name": [("g", TRITONS)],
    "instance_group.kind": [("KIND_CPU", TRITONS)],
    "instance_group.count": [(4, ("n_instances", 4))],
    "instance_group.rate_limiter": [({"resources": []}, TRITONS)],
    "instance_group.gpus": [([0], TRITONS)],
    "instance_group.secondary_devices": [([{"kind": "KIND_NVDLA"}], "secondary_devices } has no effect")],
    "instance_group.profile": [(["0"], "profile } has no effect")],
    "instance_group.passive": [(True, TRITONS)],
    "instance_group.host_policy": [("policy", TRITONS)],
    "default_model_filename": [
        ("net.onnx", ("model_filename", "net.onnx")),
        ("../net.onnx", UsageError),
        ("/net.onnx", UsageError),
    ],
    "cc_model_filenames": [({"8.0": "a.onnx"}, TRITONS)],
    "metric_tags": [({"a": "b"}, TRITONS)],
    "parameters": [({}, TRITONS)],
    "model_warmup": [([{"name": "one", "inputs": {}}], TRITONS)],
    "model_operations": [({"op_library_filename": ["libops.so"]}, ("op_libraries", ("libops.so",)))],
    "model_transaction_policy": [({"decoupled": True}, UsageError), ({"decoupled": False}, TRITONS)],
    "model_repository_agents": [({"agents": []}, TRITONS)],
    "response_cache": [({"enable": True}, TRITONS)],
    "model_metrics": [({}, TRITONS)],
}
"""Fields of ``ModelConfig`` and of its parts, on a CPU."""


def rows(table: dict[str, list[tuple[Any, Any]]]) -> list[Any]:
    return [pytest.param(name, value, verdict, id=f"{name}={value}") for name, cases in table.items() for value, verdict in cases]


def with_parameter(name: str, value: str) -> dict[str, Any]:
    return {"parameters": {name: {"string_value": value}}}


def with_accelerator(accelerator: str, **parameters: str) -> dict[str, Any]:
    listed = {"gpu_execution_accelerator": [{"name": accelerator, "parameters": parameters}]}
    return {"optimization": {"execution_accelerators": listed}}


def with_field(name: str, value: Any) -> dict[str, Any]:
    part, _, field = name.partition(".")
    if not field:
        return {part: value}
    if part == "optimization":
        return {part: {field: value}}
    return {part: [{"name": "x", "dims": [4], field: value}]}


def judge(name: str, config: dict[str, Any], verdict: Any, *, baseline: Options | None = None, kind: str = "CPU") -> None:
    """Hold what becomes of a configuration against the table."""
    if verdict is UsageError:
        with pytest.raises(UsageError, match=re.escape(name.rpartition(".")[2])):
            Options.read(config, kind=kind)
        return
    options = Options.read(config, kind=kind)
    if isinstance(verdict, str):
        assert any(verdict in warning for warning in options.warnings), options.warnings
        return
    assert options.warnings == ()
    if verdict is None:
        assert options == (baseline or Options.read({}, kind=kind))
    else:
        attribute, value = verdict
        assert getattr(options, attribute) == value


@pytest.mark.parametrize(("name", "value", "verdict"), rows(PARAMETERS))
def test_a_parameter_of_the_model(name: str, value: str, verdict: Any) -> None:
    judge(name, with_parameter(name, value), verdict)


@pytest.mark.parametrize(("name", "value", "verdict"), rows(GPU_PARAMETERS))
def test_a_parameter_of_the_model_that_is_cudas(name: str, value: str, verdict: Any) -> None:
    judge(name, with_parameter(name, value), verdict if verdict is UsageError else ("cuda", {name: verdict}), kind="GPU")


@pytest.mark.parametrize(("name", "value", "verdict"), rows(CUDA))
def test_a_parameter_of_the_accelerator_cuda(name: str, value: str, verdict: Any) -> None:
    honoured = isinstance(verdict, str) and " " not in verdict

    judge(name, with_accelerator("cuda", **{name: value}), ("cuda", {name: verdict}) if honoured else verdict, kind="GPU")


@pytest.mark.parametrize(("name", "value", "verdict"), rows(TENSORRT))
def test_a_parameter_of_the_accelerator_tensorrt(name: str, value: str, verdict: Any) -> None:
    config = with_accelerator("tensorrt", **{name: value})
    if verdict is UsageError:
        judge(name, config, verdict, kind="GPU")
    else:
        assert Options.read(config, kind="GPU").tensorrt == verdict


@pytest.mark.parametrize(("name", "value", "verdict"), rows(FIELDS))
def test_a_field_of_the_configuration(name: str, value: Any, verdict: Any) -> None:
    part, _, field = name.partition(".")
    # Of a tensor or an instance group the options hold something by itself: the field may not change that.
    baseline = with_field(name, value)
    if field and part != "optimization":
        del baseline[part][0][field]
    else:
        baseline = {}
    if field == "reshape":
        judge(name, with_field(name, value), ("dims", {"x": (4,)} if part == "input" else {}))
    else:
        judge(name, with_field(name, value), verdict, baseline=Options.read(baseline))


def test_the_file_for_a_compute_capability_is_warned_of_on_a_gpu() -> None:
    judge("cc_model_filenames", {"cc_model_filenames": {"8.0": "a.onnx"}}, "cc_model_filenames is not honoured", kind="GPU")


def test_the_tables_have_every_field_of_tritons_schema() -> None:
    def names(message: Any) -> set[str]:
        return {field.name for field in message.DESCRIPTOR.fields}

    assert {name for name in FIELDS if "." not in name} == names(model_config_pb2.ModelConfig)
    for part, message in {
        "input": model_config_pb2.ModelInput,
        "output": model_config_pb2.ModelOutput,
        "optimization": model_config_pb2.ModelOptimizationPolicy,
        "instance_group": model_config_pb2.ModelInstanceGroup,
    }.items():
        checked_at_the_border = {"name", "data_type", "dims"} if part in ("input", "output") else set()
        assert {name.split(".")[1] for name in FIELDS if name.startswith(f"{part}.")} == names(message) - checked_at_the_border, (
            part
        )


def test_the_tables_have_every_parameter_that_the_backend_knows() -> None:
    assert set(CUDA_PARAMETERS) <= set(CUDA)
    assert set(TENSORRT_PARAMETERS) <= set(TENSORRT)


def test_every_option_comes_from_a_field_of_the_tables() -> None:
    honoured = {
        verdict[0] for table in (PARAMETERS, FIELDS) for cases in table.values() for _, verdict in cases if type(verdict) is tuple
    }
    from_the_instance = {"kind", "device_id", "gpu_was_asked_for", "batch_sizes", "warnings"}

    assert {field.name for field in fields(Options)} == honoured | from_the_instance | {"cuda", "tensorrt"}


def test_the_document_has_every_field() -> None:
    text = DOCS.read_text(encoding="utf-8")
    of_nobody = {"max_workspace", "intra_op_threads", "session.intra_op_thread_affinities", "convoy_interface"}
    documented = {*PARAMETERS, *GPU_PARAMETERS, *CUDA, *TENSORRT, *FIELDS} - of_nobody

    assert [name for name in sorted(documented) if f"`{name.rpartition('.')[2]}`" not in text and f"`{name}`" not in text] == []
