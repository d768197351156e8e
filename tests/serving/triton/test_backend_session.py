"""The ONNX file opened: threads, providers, and what is said of a file that is none."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest
from onnx import TensorProto

from convoy.contract.errors import ContractError, MissingDependencyError
from convoy.serving.triton.backend import session as module
from convoy.serving.triton.backend.options import Options
from convoy.serving.triton.backend.session import CPU, CUDA, model_path, open_session


def test_a_small_model_gets_one_thread(onnx_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 4)
    monkeypatch.setattr(module, "_seconds_a_row", lambda session: 0.0005)

    assert open_session(onnx_file(), Options()).intra_op_threads == 1


@pytest.mark.parametrize(("n_instances", "expected"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_a_large_model_gets_its_share_of_the_cores(
    onnx_file: Any, monkeypatch: pytest.MonkeyPatch, n_instances: int, expected: int
) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 4)
    monkeypatch.setattr(module, "_seconds_a_row", lambda session: 0.02)

    opened = open_session(onnx_file(), Options(n_instances=n_instances))

    assert opened.intra_op_threads == expected
    assert opened.session.get_session_options().intra_op_num_threads == expected


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


def gpu(monkeypatch: pytest.MonkeyPatch, available: list[str]) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


@pytest.mark.parametrize("available", [[CPU], [CUDA, CPU]])
def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error(
    onnx_file: Any, monkeypatch: pytest.MonkeyPatch, available: list[str]
) -> None:
    gpu(monkeypatch, available)
    real = module._open
    monkeypatch.setattr(module, "_open", lambda path, options, threads, provider: real(path, options, threads, CPU))

    with pytest.raises(MissingDependencyError, match="KIND_GPU"):
        open_session(onnx_file(), Options(kind="GPU", gpu_was_asked_for=True))


def test_a_gpu_that_triton_chose_and_that_cannot_be_used_is_a_loud_warning(onnx_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, [CPU])

    opened = open_session(onnx_file(), Options(kind="GPU"))

    assert opened.provider == CPU
    assert "RUNS ON THE CPU" in opened.warnings[0]


def test_strings_are_timed_too(onnx_file: Any) -> None:
    tensor = (TensorProto.STRING, ["n", 2])
    opened = open_session(onnx_file("Identity", inputs={"x": tensor}, outputs={"y": tensor}), Options(intra_op_threads=1))

    assert module._seconds_a_row(opened.session) > 0


def test_a_model_that_refuses_zeros_is_opened_all_the_same(onnx_file: Any) -> None:
    path = onnx_file(
        "Reshape",
        inputs={"x": (TensorProto.FLOAT, ["n", 2]), "shape": (TensorProto.INT64, [2])},
        outputs={"y": (TensorProto.FLOAT, None)},
    )

    assert open_session(path, Options()).session is not None
