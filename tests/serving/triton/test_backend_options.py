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


def test_a_refusal_names_everything_at_once_with_reasons() -> None:
    bad = config(input=[{"name": "x", "allow_ragged_batch": True}], sequence_batching={"state": [{}]}, batch_input=[{}])

    with pytest.raises(
        UsageError, match=r"batch_input \(.*along the batch axis only\); allow_ragged_batch of tensor 'x' .*; .* state"
    ):
        Options.read(bad)


def test_what_is_wrong_for_a_gpu_is_an_error_on_one_and_a_warning_on_a_cpu() -> None:
    accelerator = {"name": "cuda", "parameters": {"gpu_mem_limit": "4GB"}}
    bad = config(optimization={"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}})

    with pytest.raises(UsageError, match=r"'cuda', parameter 'gpu_mem_limit': expected a whole number .* found '4GB'"):
        Options.read(bad, kind="GPU")
    wrong, idle = Options.read(bad).warnings
    assert "on a GPU this model would not load" in wrong
    assert "'cuda' has no effect on an instance on a CPU" in idle


def test_an_accelerator_that_does_not_exist_is_named() -> None:
    bad = config(optimization={"execution_accelerators": {"gpu_execution_accelerator": [{"name": "gpu_io"}]}})

    with pytest.raises(UsageError, match="expected cuda or tensorrt as gpu_execution_accelerator, found 'gpu_io'"):
        Options.read(bad, kind="GPU")


@pytest.mark.parametrize(("path", "n_warnings"), [("", 1), ("engines", 1), ("/engines", 0)])
def test_an_engine_cache_that_would_go_away_with_the_server_is_warned_of(path: str, n_warnings: int) -> None:
    said = {"trt_engine_cache_enable": "1", **({"trt_engine_cache_path": path} if path else {})}
    accelerator = {"name": "tensorrt", "parameters": said}

    options = Options.read(
        config(optimization={"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}), kind="GPU"
    )

    assert len(options.warnings) == n_warnings
    assert all("goes away with it" in warning for warning in options.warnings)


def test_an_arena_that_is_not_there_is_not_shrunk() -> None:
    options = Options.read(config({"enable_mem_arena": "0", "memory.enable_memory_arena_shrinkage": "cpu:0;gpu:1"}), kind="GPU")

    assert options.run_entries == {"memory.enable_memory_arena_shrinkage": "gpu:1"}
    assert "cpu:0 is left out, as enable_mem_arena is 0" in options.warnings[0]


def test_a_warm_up_sample_says_what_the_dims_leave_open() -> None:
    options = Options.read(
        config(
            input=[{"name": "x", "dims": [-1, -1, 3]}, {"name": "z", "dims": [1], "reshape": {"shape": []}}],
            model_warmup=[{"name": "one", "inputs": {"x": {"dims": [224, 224, 3]}, "z": {"dims": [1]}}}],
        )
    )

    assert options.dims == {"x": (224, 224, 3), "z": ()}


def test_cuda_options_come_from_both_places_and_the_models_parameters_have_precedence() -> None:
    accelerator = {"name": "cuda", "parameters": {"cudnn_conv_use_max_workspace": "0", "arena_extend_strategy": "kNextPowerOfTwo"}}
    options = Options.read(
        config(
            {"gpu_mem_limit": "1024", "arena_extend_strategy": "1", "cudnn_conv_algo_search": "2"},
            optimization={"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}},
        ),
        kind="GPU",
        device_id="1",
    )

    assert (options.kind, options.device_id) == ("GPU", 1)
    assert options.cuda == {
        "gpu_mem_limit": "1024",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "DEFAULT",
        "cudnn_conv_use_max_workspace": "0",
    }
    assert "'arena_extend_strategy' is set twice" in options.warnings[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("instance_group { kind: KIND_GPU }", True), ("instance_group { kind: KIND_AUTO } # not KIND_GPU", False), ("", False)],
)
def test_a_gpu_that_a_person_asked_for_is_told_from_one_that_triton_chose(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "config.pbtxt").write_text(text)

    assert Options.read(config(), kind="GPU", folder=tmp_path).gpu_was_asked_for is expected
