"""Triton's side of the backend, with a stand-in for Triton."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto


def rows(*values: float) -> Any:
    """Rows of two equal numbers."""
    return np.array([[value, value] for value in values], np.float32)


def tensor(name: str, dims: list[int], data_type: str = "TYPE_FP32") -> dict[str, Any]:
    return {"name": name, "data_type": data_type, "dims": dims}


def start(path: Path, **changes: Any) -> Any:
    from convoy.serving.triton.backend.model import TritonPythonModel

    config = {"max_batch_size": 8, "input": [tensor("x", [2])], "output": [tensor("y", [2])], **changes}
    model = TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(path.parents[1]),
            "model_version": path.parent.name,
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_instance_name": "model_0",
        }
    )
    return model


def ask(pb: Any, array: Any) -> Any:
    return pb.InferenceRequest([pb.Tensor("x", array)], ["y"])


def test_requests_are_answered_together_and_in_order(pb: Any, onnx_file: Any) -> None:
    model = start(onnx_file())

    first, second = model.execute([ask(pb, rows(1, 2)), ask(pb, rows(3))])

    assert first.output_tensors[0].array.tolist() == [[-1, -1], [-2, -2]]
    assert second.output_tensors[0].array.tolist() == [[-3, -3]]


def test_another_file_name_is_honoured(pb: Any, onnx_file: Any) -> None:
    model = start(onnx_file(name="net.onnx"), default_model_filename="net.onnx")

    assert model.execute([ask(pb, rows(1))])[0].error is None


def test_a_request_of_a_wrong_shape_fails_alone_as_invalid(pb: Any, onnx_file: Any) -> None:
    model = start(onnx_file())

    good, bad = model.execute([ask(pb, rows(1)), ask(pb, np.zeros((1, 3), np.float32))])

    assert good.error is None
    assert bad.error.kind == "INVALID_ARG"
    assert "Expected: 2" in bad.error.text
    assert "ONNXRuntimeError" not in bad.error.text


def test_a_tensor_that_cannot_be_read_fails_alone(pb: Any, onnx_file: Any) -> None:
    model = start(onnx_file())

    bad, good = model.execute([ask(pb, RuntimeError("damaged")), ask(pb, rows(1))])

    assert (bad.error.kind, bad.error.text) == ("INTERNAL", "damaged")
    assert good.output_tensors[0].array.tolist() == [[-1, -1]]


def test_strings_arrive_as_text_and_not_as_python_writes_bytes(pb: Any, onnx_file: Any) -> None:
    value = (TensorProto.STRING, ["n", 2])
    path = onnx_file("Identity", inputs={"x": value}, outputs={"y": value})
    model = start(path, input=[tensor("x", [2], "TYPE_STRING")], output=[tensor("y", [2], "TYPE_STRING")])

    good, bad = model.execute([ask(pb, np.array([["grün".encode(), b""]], object)), ask(pb, np.array([[b"\xff", b""]], object))])

    assert good.output_tensors[0].array.tolist() == [["grün", ""]]
    assert bad.error.kind == "INVALID_ARG"
    assert "UTF-8" in bad.error.text


def test_several_inputs_are_matched_by_name(pb: Any, onnx_file: Any) -> None:
    value = (TensorProto.FLOAT, ["n", 2])
    path = onnx_file("Sub", inputs={"a": value, "b": value}, outputs={"y": value})
    model = start(path, input=[tensor("b", [2]), tensor("a", [2])])

    (response,) = model.execute([pb.InferenceRequest([pb.Tensor("b", rows(1)), pb.Tensor("a", rows(3))], ["y"])])

    assert response.output_tensors[0].array.tolist() == [[2, 2]]


def test_warnings_are_logged_with_the_instance_name(pb: Any, onnx_file: Any) -> None:
    start(onnx_file(), parameters={"intra_op_threads": {"string_value": "2"}})

    assert any("model_0: parameter 'intra_op_threads' is unknown" in warning for warning in pb.Logger.warnings)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"input": [tensor("image", [2])]}, "missing"),
        ({"parameters": {"execution_mode": {"string_value": "9"}}}, "execution_mode"),
        ({"default_model_filename": "nothing.onnx"}, "nothing.onnx: no such file"),
    ],
)
def test_what_is_wrong_at_load_is_tritons_kind_of_error(pb: Any, onnx_file: Any, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(pb.TritonModelException, match=expected):
        start(onnx_file(), **changes)


def test_a_bare_file_is_completed(pb: Any, onnx_file: Any) -> None:
    from convoy.serving.triton.backend.model import TritonPythonModel

    pb.get_model_dir = lambda: str(onnx_file().parent)
    config = pb.ModelConfig(json.dumps({"name": "m", "max_batch_size": 0, "input": [], "output": []}))

    assert TritonPythonModel.auto_complete_config(config).as_dict()["max_batch_size"] == 4


def test_a_damaged_file_cannot_be_completed(pb: Any, onnx_file: Any) -> None:
    from convoy.serving.triton.backend.model import TritonPythonModel

    path = onnx_file()
    path.write_bytes(b"nonsense")
    pb.get_model_dir = lambda: str(path.parent)

    with pytest.raises(pb.TritonModelException, match=r"model.onnx .* cannot be loaded"):
        TritonPythonModel.auto_complete_config(
            pb.ModelConfig(json.dumps({"name": "m", "max_batch_size": 0, "input": [], "output": []}))
        )


def test_the_backends_process_loads_neither_grpc_nor_torch() -> None:
    program = (
        "import sys, types; sys.modules['triton_python_backend_utils'] = types.ModuleType('pb'); "
        "import convoy.serving.triton.backend.model; "
        "print([n for n in ('grpc', 'tritonclient', 'httpx', 'torch', 'pydantic', 'PIL', 'click') if n in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"


def test_the_file_that_triton_looks_for_is_a_re_export(pb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from convoy.serving import triton

    path = Path(triton.__file__).parent / "backends" / "onnxruntime" / "model.py"
    spec = importlib.util.spec_from_file_location("model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    from convoy.serving.triton.backend.model import TritonPythonModel

    assert module.TritonPythonModel is TritonPythonModel
