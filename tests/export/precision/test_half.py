from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from convoy.contract.errors import ExportError
from convoy.export.gate.runtime import open_session, run_session
from convoy.export.graph.targets import check_targets
from convoy.export.precision import emulate_float16, to_fp16
from convoy.export.precision.structure import drop_unused

from .conftest import Gain


def run(model: bytes, images: np.ndarray, batch_size: int = 32, level="all") -> dict[str, np.ndarray]:
    return run_session(open_session(model, level=level), images, batch_size)


def initializer_types(model: bytes) -> Counter[int]:
    return Counter(tensor.data_type for tensor in onnx.load_model_from_string(model).graph.initializer)


def test_fp16_decides_as_float32_in_half_the_bytes(lenet5, digits):
    converted = to_fp16(lenet5.model, digits.train[:64])
    images = digits.evaluation.images
    expected, actual = run(lenet5.model, images), run(converted.model, images)
    assert (expected["logits"].argmax(1) == actual["logits"].argmax(1)).all()
    difference = np.abs(expected["logits"] - actual["logits"]).max()
    assert 0 < difference < 0.02  # 0 would mean that nothing was converted
    assert len(converted.model) < 0.56 * len(lenet5.model)
    assert initializer_types(converted.model)[TensorProto.FLOAT16] == 10  # a weight and a bias of each layer


def test_the_border_keeps_its_types_and_its_dynamic_batch(lenet5, digits):
    converted = to_fp16(lenet5.model, digits.train[:64])
    proto = onnx.load_model_from_string(converted.model)
    check_targets(proto)
    source = onnx.load_model_from_string(lenet5.model)
    assert (proto.graph.input, proto.graph.output) == (source.graph.input, source.graph.output)
    assert (proto.producer_name, proto.ir_version, list(proto.opset_import)) == (
        "convoy",
        source.ir_version,
        list(source.opset_import),
    )
    outputs = [run(converted.model, digits.train[:21], batch_size) for batch_size in (1, 7, 21)]
    for other in outputs[1:]:
        np.testing.assert_allclose(other["logits"], outputs[0]["logits"], atol=0.02)


def test_preprocessing_and_softmax_stay_in_float32(lenet5, digits):
    converted = to_fp16(lenet5.model, digits.train[:64])
    assert {reason.split(":")[0] for reason in converted.kept_float32.values()} == {"preprocessing", "Softmax"}
    proto = onnx.load_model_from_string(converted.model)
    inferred = onnx.shape_inference.infer_shapes(proto)
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)}
    first = next(node for node in proto.graph.node if node.op_type == "Conv")
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    assert types[first.input[0]] == types[first.output[0]] == TensorProto.FLOAT16
    assert types[softmax.output[0]] == types[softmax.input[0]] == TensorProto.FLOAT


def test_only_what_touches_values_beyond_float16_stays_in_float32(residual, digits):
    network = residual(Gain(6e4))
    images = digits.evaluation.images
    converted = to_fp16(network.model, digits.train[:64])
    because_of_values = {name for name, reason in converted.kept_float32.items() if reason.startswith("values up to")}
    nodes = {node.name: node for node in onnx.load_model_from_string(network.model).graph.node}
    assert len(because_of_values) == 2  # the convolution that makes them and the one that takes them
    assert {name for node in because_of_values for name in nodes[node].input if "weight" in name} == {
        "classifier.between.up.weight",
        "classifier.between.down.weight",
    }
    expected = run(network.model, images)["logits"]
    rounded = run(emulate_float16(converted.model), images, level="disabled")["logits"]
    assert np.isfinite(rounded).all()
    assert (rounded.argmax(1) == expected.argmax(1)).mean() > 0.99
    assert initializer_types(converted.model)[TensorProto.FLOAT16] >= 8


def test_the_emulation_overflows_where_float16_does_and_onnx_runtime_on_a_cpu_does_not(residual, digits):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    network = residual(Gain(6e4))
    images = digits.evaluation.images
    naive = convert_float_to_float16(onnx.load_model_from_string(network.model), keep_io_types=True)
    drop_unused(naive.graph)  # sorts
    serialized = naive.SerializeToString()
    assert not np.isfinite(run(emulate_float16(serialized), images, level="disabled")["logits"]).all()
    assert np.isfinite(run(serialized, images, level="disabled")["logits"]).all()  # why the emulation is there


def test_the_emulation_rounds_what_every_operator_gives(lenet5, digits):
    converted = to_fp16(lenet5.model, digits.train[:64]).model
    emulated = onnx.load_model_from_string(emulate_float16(converted))
    exact = next(node.output[0] for node in emulated.graph.node if node.op_type == "Conv")
    rounded = next(node.output[0] for node in emulated.graph.node if list(node.input) == [exact])
    widened = next(node.output[0] for node in emulated.graph.node if list(node.input) == [rounded])
    for name in (exact, widened):
        emulated.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    before, after = open_session(emulated.SerializeToString(), level="disabled").run([exact, widened], {"image": digits.train[:4]})
    np.testing.assert_array_equal(after, before.astype(np.float16).astype(np.float32))
    assert (after != before).any()


def edit(model: bytes, like: str, change) -> bytes:
    proto = onnx.load_model_from_string(model)
    tensor = next(tensor for tensor in proto.graph.initializer if like in tensor.name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto.SerializeToString(deterministic=True)


def test_weights_that_float16_cannot_hold_stay(lenet5, digits):
    tiny = edit(lenet5.model, "f6.weight", lambda array: array.__imul__(1e-6))
    kept = to_fp16(tiny, digits.train[:32]).kept_float32
    assert [reason for reason in kept.values() if reason.startswith("weights in") and "f6.weight" in reason]
    huge = edit(lenet5.model, "c5.weight", lambda array: array.__setitem__((0, 0), 1e5))
    converted = to_fp16(huge, digits.train[:32])
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load_model_from_string(converted.model).graph.initializer]
    assert any(array.dtype == np.float32 and array.size > 100 and array.max() == np.float32(1e5) for array in weights)


def test_a_tiny_bias_beside_large_values_does_not_matter(lenet5, digits):
    tiny = edit(lenet5.model, "f6.bias", lambda array: array.__imul__(1e-6))
    assert not [reason for reason in to_fp16(tiny, digits.train[:32]).kept_float32.values() if "f6.bias" in reason]


def test_a_long_sum_stays_in_float32_and_a_short_one_does_not(digits):
    def kept(height: int) -> list[str]:
        weight = numpy_helper.from_array(np.full((4, 1, 1, 1), 0.01, dtype=np.float32), "w")
        nodes = [
            helper.make_node("Cast", ["image"], ["pixels"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["pixels"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "w"], ["features"], "conv"),
            helper.make_node("GlobalAveragePool", ["features"], ["pooled"], "pool"),
            helper.make_node("Flatten", ["pooled"], ["logits"], "flatten"),
        ]
        graph = helper.make_graph(
            nodes,
            "sums",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", height, 64, 1])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        images = np.full((4, height, 64, 1), 100, dtype=np.uint8)
        converted = to_fp16(model.SerializeToString(), images)
        np.testing.assert_allclose(run(converted.model, images)["logits"], 1.0, rtol=2e-3)
        return [converted.kept_float32[name] for name in converted.kept_float32 if name == "pool"]

    assert kept(64) == ["GlobalAveragePool: a sum of 4096 elements"]
    assert kept(16) == []


def test_the_same_conversion_gives_the_same_bytes(residual, digits):
    network = residual(nn.Identity())
    assert to_fp16(network.model, digits.train[:32]).model == to_fp16(network.model, digits.train[:32]).model


def test_what_is_no_onnx_file_is_refused(digits):
    with pytest.raises(ExportError, match="expected an ONNX file"):
        to_fp16(b"\xff not a model", digits.train[:4])


def test_a_division_by_what_float16_takes_for_nothing_stays_in_float32_with_what_carries_it():
    """A vector over its length, as Swin v2's attention has it: of a vector of zeros that is 0 / 1e-12, in float16 0 / 0."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"], "scaling"),
        helper.make_node("Reshape", ["scaled", "flat"], ["row"], "flattening"),
        helper.make_node("MatMul", ["row", "weight"], ["vector"], "layer"),
        helper.make_node("ReduceL2", ["vector", "axis"], ["length"], "length", keepdims=1),
        helper.make_node("Max", ["length", "least"], ["positive"], "clamp"),
        helper.make_node("Expand", ["positive", "four"], ["spread"], "spread"),
        helper.make_node("Div", ["vector", "spread"], ["logits"], "quotient"),
    ]
    graph = helper.make_graph(
        nodes,
        "unit vectors",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 2, 2, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"),
            numpy_helper.from_array(np.array([-1, 4]), "flat"),
            numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight"),
            numpy_helper.from_array(np.array([1]), "axis"),
            numpy_helper.from_array(np.array([1, 4]), "four"),
            numpy_helper.from_array(np.array(1e-12, np.float32), "least"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    images = np.zeros((2, 2, 2, 1), np.uint8)
    images[1] = 100
    converted = to_fp16(model.SerializeToString(), images)
    np.testing.assert_allclose(run(converted.model, images)["logits"], [[0] * 4, [0.5] * 4], rtol=2e-3)
    assert converted.kept_float32["quotient"].startswith("divides by values down to 1e-12")
    assert converted.kept_float32["spread"] == converted.kept_float32["quotient"]

    bright = to_fp16(model.SerializeToString(), images[1:])
    assert "quotient" not in bright.kept_float32
