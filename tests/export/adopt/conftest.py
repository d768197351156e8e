"""Small foreign networks, written by hand in the forms that exporters and converters of several years write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH, CLASSES = 8, 9, 5
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE, "uint8": TensorProto.UINT8}


@dataclass
class Net:
    """A graph under construction; the last value made is ``value``."""

    opset: int = 17
    value: str = "data"
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, array: Any, name: str | None = None, dtype: Any = np.float32) -> str:
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype=dtype), name))
        return name

    def weights(self, *shape: int, dtype: Any = np.float32) -> str:
        rng = np.random.default_rng(self.seed + len(self.constants))
        return self.constant(rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), dtype=dtype)

    def add(
        self,
        op_type: str,
        *inputs: str,
        out: str | None = None,
        name: str = "",
        reads: Sequence[str] | None = None,
        **attributes: Any,
    ) -> str:
        made = out or f"v{len(self.nodes)}"
        given = [self.value, *inputs] if reads is None else list(reads)
        self.nodes.append(helper.make_node(op_type, given, [made], name=name, **attributes))
        self.value = made
        return made

    def squeeze(self, axes: list[int] | None, **kwargs: Any) -> str:
        if axes is None:
            return self.add("Squeeze", **kwargs)
        if self.opset < 13:
            return self.add("Squeeze", axes=axes, **kwargs)
        return self.add("Squeeze", self.constant(axes, dtype=np.int64), **kwargs)

    def unsqueeze(self, axes: list[int], reads: str | None = None) -> str:
        given = self.value if reads is None else reads
        if self.opset < 13:
            return self.add("Unsqueeze", reads=[given], axes=axes)
        return self.add("Unsqueeze", reads=[given, self.constant(axes, dtype=np.int64)])

    def reshape(self, *dims: int, name: str = "") -> str:
        return self.add("Reshape", self.constant(dims, dtype=np.int64), name=name)

    def features(self, channels: int = 3, dtype: Any = np.float32) -> Net:
        """Convolution, batch norm, ReLU: (N, 4, 3, 4)."""
        self.add("Conv", self.weights(4, channels, 3, 3, dtype=dtype), name="conv", kernel_shape=[3, 3], strides=[2, 2])
        rng = np.random.default_rng(self.seed)
        scale, bias, mean, var = (self.constant(rng.uniform(0.5, 1.5, 4), dtype=dtype) for _ in range(4))
        self.add("BatchNormalization", scale, bias, mean, var, name="bn")
        self.add("Relu", name="relu")
        return self

    def head(
        self, n_inputs: int = 48, classes: int = CLASSES, dtype: Any = np.float32, out: str | None = None, name: str = "fc"
    ) -> Net:
        """A dense layer on (N, n_inputs): logits."""
        self.add(
            "Gemm", self.weights(classes, n_inputs, dtype=dtype), self.weights(classes, dtype=dtype), name=name, transB=1, out=out
        )
        return self

    def model(
        self,
        shape: Sequence[int | str],
        outputs: dict[str, Sequence[int | str]] | None = None,
        *,
        dtype: str = "float32",
        out_dtype: str | None = None,
        ir: int | None = None,
        constants_as_inputs: bool = False,
        **fields: Any,
    ) -> onnx.ModelProto:
        outputs = outputs or {self.value: [shape[0], CLASSES]}
        inputs = [helper.make_tensor_value_info("data", _TYPES[dtype], shape)]
        if constants_as_inputs:
            inputs += [helper.make_tensor_value_info(c.name, c.data_type, list(c.dims)) for c in self.constants]
        elem = _TYPES[out_dtype or ("float32" if dtype == "uint8" else dtype)]
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            inputs,
            [helper.make_tensor_value_info(name, elem, dims) for name, dims in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], producer_name="somebody", **fields)
        model.ir_version = ir or {7: 3, 8: 3, 9: 4}.get(self.opset, 8)
        return model


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (9, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def run() -> Callable[..., dict[str, np.ndarray]]:
    """ONNX Runtime on an ONNX file as it is, all outputs by name."""

    def run(model: onnx.ModelProto | bytes, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        data = model if isinstance(model, bytes) else model.SerializeToString()
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run
