"""The ONNX file opened: threads, providers, and what is said of a file that is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnx import TensorProto

from convoy.contract.errors import ContractError, MissingDependencyError
from convoy.serving.triton.backend import session as module
from convoy.serving.triton.backend.options import Options
from convoy.serving.triton.backend.session import CPU, CUDA, OPENVINO, TENSORRT, model_path, open_session
from convoy.serving.triton.backend.threads import Choice


def choosing(monkeypatch: pytest.MonkeyPatch, *, several: bool) -> None:
    """Let the choice be made without measuring."""

    def choose(open_with: Any, share: int, max_batch_size: int, dims: Any) -> Choice:
        threads = share if several else 1
        return Choice(open_with(threads), threads, f"{max_batch_size} rows of {dims}")

    monkeypatch.setattr(module, "available_cores", lambda: 4)
    monkeypatch.setattr(module, "choose", choose)


@pytest.mark.parametrize(("several", "n_instances", "expected"), [(True, 1, 4), (True, 2, 2), (True, 3, 1), (False, 1, 1)])
def test_an_instance_gets_the_threads_that_were_chosen_of_its_share_of_the_cores(
    onnx_file: Any, monkeypatch: pytest.MonkeyPatch, several: bool, n_instances: int, expected: int
) -> None:
    choosing(monkeypatch, several=several)

    opened = open_session(onnx_file(), Options(n_instances=n_instances, max_batch_size=8, dims={"x": (2,)}))

    assert opened.intra_op_threads == expected
    assert opened.session.get_session_options().intra_op_num_threads == expected
    assert opened.notes == ("intra-op threads: 8 rows of {'x': (2,)}",)


def test_a_real_model_is_measured(onnx_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 2)

    opened = open_session(onnx_file(), Options(max_batch_size=8))

    assert opened.intra_op_threads == 1
    assert re.search(r"1 row in [0-9.e-]+ ms on 1 thread and [0-9.e-]+ ms on 2, 8 rows in", opened.notes[0])


def test_the_configuration_has_the_last_word_on_threads(onnx_file: Any) -> None:
    opened = open_session(onnx_file(), Options(intra_op_threads=3, graph_level="ORT_DISABLE_ALL", mem_arena=False))

    options = opened.session.get_session_options()
    assert (opened.intra_op_threads, options.intra_op_num_threads) == (3, 3)
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.enable_cpu_mem_arena is False


def test_idle_threads_do_not_spin(onnx_file: Any) -> None:
    options = open_session(onnx_file(), Options()).session.get_session_options()

    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_truncated_file_is_named_with_the_reason(onnx_file: Any) -> None:
    path = onnx_file()
    path.write_bytes(path.read_bytes()[:20])

    with pytest.raises(
        ContractError, match=r"model.onnx \(version 1\) cannot be loaded: .*Protobuf parsing failed.*20 bytes.*cut short"
    ):
        open_session(path, Options())


def test_a_file_of_an_operator_that_does_not_exist_is_named_with_the_reason(onnx_file: Any) -> None:
    with pytest.raises(ContractError, match=r"model.onnx .*NoSuchOperator"):
        open_session(onnx_file("NoSuchOperator"), Options())


def test_a_missing_file_is_named(tmp_path: Any) -> None:
    with pytest.raises(ContractError, match=r"other\.onnx: no such file"):
        model_path(tmp_path, "other.onnx")


def test_a_folder_stands_for_the_file_in_it(onnx_file: Any) -> None:
    path = onnx_file()

    assert model_path(path.parents[1], "1") == path


def gpu(monkeypatch: pytest.MonkeyPatch, available: list[str], started: list[str] | None = None) -> list[list[Any]]:
    """Let ONNX Runtime have these providers, and start those (none: the file is opened on the CPU); returns what was asked for."""
    asked: list[list[Any]] = []
    real = onnxruntime.InferenceSession

    def open_on(path: str, settings: Any, *, providers: list[Any], enable_fallback: int) -> Any:
        asked.append(providers)
        names = [provider[0] if isinstance(provider, tuple) else provider for provider in providers]
        session = real(path, settings, providers=[CPU])
        monkeypatch.setattr(session, "get_providers", lambda: [name for name in names if name in (started or [CPU])])
        return session

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_on)
    return asked


@pytest.mark.parametrize(
    ("available", "expected"),
    [([CPU], f"was built without {CUDA}"), ([CUDA, CPU], f"could not start its {CUDA}")],
    ids=["not built", "not started"],
)
def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error(
    onnx_file: Any, monkeypatch: pytest.MonkeyPatch, available: list[str], expected: str
) -> None:
    gpu(monkeypatch, available)

    with pytest.raises(MissingDependencyError, match=f"KIND_GPU, but .*{expected}"):
        open_session(onnx_file(), Options(kind="GPU", gpu_was_asked_for=True))


def test_a_gpu_that_triton_chose_and_that_cannot_be_used_is_a_loud_warning(onnx_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, [CPU])

    opened = open_session(onnx_file(), Options(kind="GPU", run_entries={"memory.enable_memory_arena_shrinkage": "gpu:0"}))

    assert (opened.provider, opened.run_entries) == (CPU, {})
    assert "RUNS ON THE CPU" in opened.warnings[0]


def test_the_instances_gpu_and_the_options_reach_the_providers(onnx_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = gpu(monkeypatch, [TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU])
    options = Options(kind="GPU", device_id=3, cuda={"prefer_nhwc": "1"}, tensorrt={"trt_fp16_enable": "1"})

    opened = open_session(onnx_file(), options)

    assert (opened.provider, opened.warnings) == (TENSORRT, ())
    assert asked == [
        [
            (TENSORRT, {"trt_fp16_enable": "1", "device_id": "3"}),
            (CUDA, {"use_tf32": "0", "prefer_nhwc": "1", "device_id": "3"}),
            CPU,
        ]
    ]


@pytest.mark.parametrize("available", [[CUDA, CPU], [TENSORRT, CUDA, CPU]], ids=["not built", "not started"])
def test_without_tensorrt_a_model_runs_on_cuda_and_a_loud_warning_says_so(
    onnx_file: Any, monkeypatch: pytest.MonkeyPatch, available: list[str]
) -> None:
    gpu(monkeypatch, available, [CUDA, CPU])

    opened = open_session(onnx_file(), Options(kind="GPU", tensorrt={}))

    assert opened.provider == CUDA
    assert len(opened.warnings) == 1
    assert "RUNS WITHOUT TENSORRT" in opened.warnings[0]


def test_tensorrt_on_a_gpu_that_was_asked_for_is_an_error_where_it_is_missing(
    onnx_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(monkeypatch, [CUDA, CPU], [CUDA, CPU])

    with pytest.raises(MissingDependencyError, match=f"accelerator 'tensorrt', but .* without {TENSORRT}"):
        open_session(onnx_file(), Options(kind="GPU", gpu_was_asked_for=True, tensorrt={}))


@pytest.mark.skipif(TENSORRT not in onnxruntime.get_available_providers(), reason="this onnxruntime has no TensorRT to fail with")
def test_what_the_real_library_says_of_a_missing_tensorrt_is_passed_on(onnx_file: Any) -> None:
    if onnxruntime.InferenceSession(str(onnx_file()), providers=[CPU]) and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")

    with pytest.raises(MissingDependencyError, match="TensorRT libraries"):
        open_session(onnx_file(), Options(kind="GPU", gpu_was_asked_for=True, tensorrt={}))


@pytest.mark.parametrize("asked_for", [True, False])
def test_a_damaged_file_on_a_gpu_is_named_as_such(onnx_file: Any, monkeypatch: pytest.MonkeyPatch, asked_for: bool) -> None:
    gpu(monkeypatch, [CUDA, CPU], [CUDA, CPU])
    path = onnx_file()
    path.write_bytes(b"nonsense")

    with pytest.raises(ContractError, match=r"model.onnx .* cannot be loaded"):
        open_session(path, Options(kind="GPU", gpu_was_asked_for=asked_for))


def test_openvino_is_used_where_it_is(onnx_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = gpu(monkeypatch, [OPENVINO, CPU], [OPENVINO, CPU])

    opened = open_session(onnx_file(), Options(openvino=True, intra_op_threads=1))

    assert (opened.provider, opened.warnings) == (OPENVINO, ())
    assert asked == [[(OPENVINO, {"device_type": "CPU"}), CPU]]


def test_openvino_is_warned_of_where_it_is_not(onnx_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, [CPU])

    opened = open_session(onnx_file(), Options(openvino=True, intra_op_threads=1))

    assert opened.provider == CPU
    assert "'openvino' is not honoured" in opened.warnings[0]


def test_a_library_of_operators_that_cannot_be_loaded_is_named(onnx_file: Any) -> None:
    with pytest.raises(ContractError, match=r"libmissing\.so"):
        open_session(onnx_file(), Options(op_libraries=("libmissing.so",)))


def test_a_model_that_refuses_zeros_is_opened_all_the_same(onnx_file: Any) -> None:
    path = onnx_file(
        "Reshape",
        inputs={"x": (TensorProto.FLOAT, ["n", 2]), "shape": (TensorProto.INT64, [2])},
        outputs={"y": (TensorProto.FLOAT, None)},
    )

    assert open_session(path, Options()).session is not None


def test_run_entries_hold_where_the_instance_runs_as_configured(onnx_file: Any) -> None:
    assert open_session(onnx_file(), Options(intra_op_threads=1, run_entries={"a": "b"})).run_entries == {"a": "b"}
