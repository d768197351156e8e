"""ONNX Runtime alone: what it is asked, and how failures are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from convoy.contract.errors import RepositoryError, UsageError
from convoy.serving.load import in_process_limit
from convoy.serving.load.limit import doubles, n_cores


def write_model(path: Path, dims: list[int | str]) -> Path:
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(("most", "sizes"), [(0, [0]), (1, [1]), (8, [1, 2, 4, 8]), (48, [1, 2, 4, 8, 16, 32, 48])])
def test_batches_are_doubled_up_to_the_largest(most: int, sizes: list[int]) -> None:
    assert doubles(most) == sizes


def test_every_point_is_measured(tmp_path: Path) -> None:
    limit = in_process_limit(write_model(tmp_path / "m.onnx", ["n", 3]), max_batch_size=4, seconds=0.02)
    threads = sorted({1, n_cores()})
    assert [(point.threads, point.batch_size) for point in limit.points] == [(t, b) for t in threads for b in (1, 2, 4)]
    for point in limit.points:
        assert point.images_per_s == pytest.approx(point.batch_size / point.ms_per_call * 1e3)
    assert limit.best.images_per_s == max(point.images_per_s for point in limit.points)
    assert limit.as_dict()["best"]["batch_size"] == limit.best.batch_size


def test_a_model_without_a_batch_axis_is_measured_as_it_is(tmp_path: Path) -> None:
    limit = in_process_limit(write_model(tmp_path / "m.onnx", [5, 3]), max_batch_size=0, threads=[1], seconds=0.02)
    assert [point.batch_size for point in limit.points] == [1]


def test_an_open_extent_needs_a_shape(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", ["n", 3, "w"])
    with pytest.raises(UsageError, match="--shape x=3,N"):
        in_process_limit(path, seconds=0.02)
    assert in_process_limit(path, shapes={"x": (3, 7)}, threads=[1], seconds=0.02).points


def test_files_that_cannot_be_run_are_told(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no such file"):
        in_process_limit(tmp_path / "none.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    with pytest.raises(RepositoryError, match=r"damaged.onnx: .*[Pp]rotobuf"):
        in_process_limit(damaged)


@pytest.mark.parametrize("options", [{"max_batch_size": -1}, {"seconds": 0.0}])
def test_impossible_numbers_are_refused(options: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected max_batch_size from 0"):
        in_process_limit(write_model(tmp_path / "m.onnx", ["n", 3]), **options)  # type: ignore[arg-type]


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_a_gpu_that_cannot_be_had_is_an_error_and_not_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="could not start its CUDAExecutionProvider"):
        in_process_limit(write_model(tmp_path / "m.onnx", ["n", 3]), providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
