"""What config.pbtxt asks for is honoured, refused, or warned of; never ignored in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convoy.contract.errors import UsageError
from convoy.serving.triton.backend.options import Options


def config(parameters: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    return {"parameters": {key: {"string_value": value} for key, value in (parameters or {}).items()}, **more}


def test_nothing_said_gives_the_defaults() -> None:
    assert Options.read(config()) == Options()


def test_the_cpp_backends_parameters_are_read() -> None:
    options = Options.read(
        config(
            {
                "intra_op_thread_count": "3",
                "inter_op_thread_count": "2",
                "execution_mode": "1",
                "enable_mem_arena": "0",
                "enable_mem_pattern": "false",
                "session.use_device_allocator_for_initializers": "1",
                "memory.enable_memory_arena_shrinkage": "cpu:0",
                "convoy_interface": "{}",
            }
        )
    )

    assert (options.intra_op_threads, options.inter_op_threads, options.parallel) == (3, 2, True)
    assert (options.mem_arena, options.mem_pattern) == (False, False)
    assert options.session_entries == {"session.use_device_allocator_for_initializers": "1"}
    assert options.run_entries == {"memory.enable_memory_arena_shrinkage": "cpu:0"}
    assert options.warnings == ()


@pytest.mark.parametrize(
    ("level", "expected"), [(-1, "ORT_ENABLE_BASIC"), (0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"), (2, "ORT_DISABLE_ALL")]
)
def test_graph_levels_mean_what_they_mean_in_the_cpp_backend(level: int, expected: str) -> None:
    assert Options.read(config(optimization={"graph": {"level": level}})).graph_level == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [("intra_op_thread_count", "many"), ("inter_op_thread_count", "-1"), ("execution_mode", "2"), ("enable_mem_arena", "maybe")],
)
def test_a_value_that_cannot_be_is_refused_with_its_name(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{key}.*found '{value}'"):
        Options.read(config({key: value}))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"batch_input": [{"kind": "BATCH_ELEMENT_COUNT"}]}, "batch_input"),
        ({"model_transaction_policy": {"decoupled": True}}, "decoupled"),
        ({"input": [{"name": "x", "allow_ragged_batch": True}]}, "allow_ragged_batch of tensor 'x'"),
        ({"output": [{"name": "y", "reshape": {"shape": [1]}}]}, "reshape of tensor 'y'"),
        ({"sequence_batching": {"state": [{"input_name": "s"}]}}, "state"),
    ],
)
def test_what_would_make_answers_wrong_is_refused(more: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        Options.read(config(**more))


@pytest.mark.parametrize(
    ("parameters", "more", "expected"),
    [
        ({"intra_op_threads": "2"}, {}, "parameter 'intra_op_threads' is unknown"),
        ({"share_session_between_instances": "true"}, {}, "not honoured"),
        ({}, {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}}, "openvino"),
        ({}, {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]}}}, "tensorrt"),
        ({}, {"optimization": {"cuda": {"graphs": True}}}, "graphs"),
        ({}, {"optimization": {"priority": "PRIORITY_MAX"}}, "priority"),
        ({}, {"optimization": {"graph": {"level": 7}}}, "7 counts as 0"),
    ],
)
def test_what_has_no_effect_is_warned_of(parameters: dict[str, str], more: dict[str, Any], expected: str) -> None:
    (warning,) = Options.read(config(parameters, **more)).warnings

    assert expected in warning


def test_cuda_options_come_from_both_places() -> None:
    accelerator = {"name": "cuda", "parameters": {"cudnn_conv_use_max_workspace": "0"}}
    options = Options.read(
        config(
            {"gpu_mem_limit": "1024", "arena_extend_strategy": "1", "cudnn_conv_algo_search": "2"},
            optimization={"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}},
        ),
        kind="GPU",
        device_id="1",
    )

    assert (options.kind, options.device_id, options.warnings) == ("GPU", 1, ())
    assert options.cuda == {
        "gpu_mem_limit": "1024",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "DEFAULT",
        "cudnn_conv_use_max_workspace": "0",
    }


@pytest.mark.parametrize("name", ["../other/model.onnx", "/etc/passwd"])
def test_a_file_name_may_not_leave_the_version_folder(name: str) -> None:
    with pytest.raises(UsageError, match="default_model_filename"):
        Options.read(config(default_model_filename=name))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("instance_group { kind: KIND_GPU }", True), ("instance_group { kind: KIND_AUTO } # not KIND_GPU", False), ("", False)],
)
def test_a_gpu_that_a_person_asked_for_is_told_from_one_that_triton_chose(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "config.pbtxt").write_text(text)

    assert Options.read(config(), kind="GPU", folder=tmp_path).gpu_was_asked_for is expected


def test_instances_of_all_groups_share_the_cores() -> None:
    assert Options.read(config(instance_group=[{"count": 2}, {"count": 3}])).n_instances == 5
