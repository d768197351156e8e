"""A stand-in for ``triton_python_backend_utils``, which exists in Triton's backend process only, and small ONNX files."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper, save

from convoy.serving.triton.installation import Installation


@dataclass
class FakeTensor:
    """``pb_utils.Tensor``."""

    tensor_name: str
    array: Any

    def name(self) -> str:
        return self.tensor_name

    def as_numpy(self) -> Any:
        if isinstance(self.array, Exception):
            raise self.array
        return self.array


@dataclass
class FakeRequest:
    """``pb_utils.InferenceRequest``."""

    tensors: list[FakeTensor]
    wanted: list[str]

    def inputs(self) -> list[FakeTensor]:
        return self.tensors

    def requested_output_names(self) -> list[str]:
        return self.wanted


@dataclass
class FakeError:
    """``pb_utils.TritonError``."""

    text: str
    kind: str = "INTERNAL"
    INTERNAL = "INTERNAL"
    INVALID_ARG = "INVALID_ARG"


@dataclass
class FakeResponse:
    """``pb_utils.InferenceResponse``."""

    output_tensors: list[FakeTensor]
    error: FakeError | None = None


@dataclass
class FakeLogger:
    """``pb_utils.Logger``."""

    warnings: list[str] = field(default_factory=list)
    infos: list[str] = field(default_factory=list)

    def log_warn(self, text: str) -> None:
        self.warnings.append(text)

    def log_info(self, text: str) -> None:
        self.infos.append(text)


class FakeModelError(Exception):
    """``pb_utils.TritonModelException``."""


@pytest.fixture
def pb(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The module as the backend's process has it: the wheel's Python half, and stand-ins for the half that is the stub's."""
    path = Installation.find().python_backend / "triton_python_backend_utils.py"
    spec = importlib.util.spec_from_file_location("triton_python_backend_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {
        "Tensor": FakeTensor,
        "InferenceRequest": FakeRequest,
        "InferenceResponse": FakeResponse,
        "TritonError": FakeError,
        "TritonModelException": FakeModelError,
        "Logger": FakeLogger(),
    }.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    for name in [name for name in sys.modules if name == "convoy.serving.triton.backend.model"]:
        monkeypatch.delitem(sys.modules, name)
    yield module
    sys.modules.pop("convoy.serving.triton.backend.model", None)


OnnxFile = Callable[..., Path]


@pytest.fixture
def onnx_file(tmp_path: Path) -> OnnxFile:
    """Writes ``model.onnx`` of one operator into a version folder of ``tmp_path / "model"``; returns its path."""

    def write(
        op: str = "Neg",
        *,
        inputs: dict[str, tuple[int, list[Any]]] | None = None,
        outputs: dict[str, tuple[int, list[Any]]] | None = None,
        nodes: list[Any] | None = None,
        version: str = "1",
        name: str = "model.onnx",
        constants: Sequence[Any] = (),
        **attributes: Any,
    ) -> Path:
        inputs = inputs or {"x": (TensorProto.FLOAT, ["n", 2])}
        outputs = outputs or {"y": (TensorProto.FLOAT, ["n", 2])}
        nodes = nodes or [helper.make_node(op, list(inputs), list(outputs), **attributes)]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info(key, *value) for key, value in inputs.items()],
            [helper.make_tensor_value_info(key, *value) for key, value in outputs.items()],
            constants,
        )
        folder = tmp_path / "model" / version
        folder.mkdir(parents=True, exist_ok=True)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / name)
        return folder / name

    return write
