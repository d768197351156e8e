"""The truth itself: right, complete, the same with little memory, and honest about what it does not cover."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from convoy.contract.errors import ExportError
from convoy.export.diagnosis import find_fault, measure_layers, trace_network, trace_onnx
from convoy.export.diagnosis.difference import find_permutation, max_abs_diff
from convoy.export.diagnosis.values import Values
from convoy.export.gate.runtime import open_session


def test_every_value_of_the_export_has_a_truth_and_none_departs(exported):
    trace = exported.trace
    assert {name for made in exported.graph.proto.graph.node for name in made.output} <= set(trace.values)
    assert not trace.departing
    assert not trace.uncovered
    assert {"getitem", "relu", "add", "logits", "probabilities"} <= trace.proven


def test_the_truth_is_float64_and_the_programs_own(exported):
    weights = {name: tensor.detach().double() for name, tensor in exported.graph.program.state_dict.items()}
    pixels = torch.from_numpy(exported.images).permute(0, 3, 1, 2).double() / 255 - weights["classifier.mean"]
    expected = torch.nn.functional.conv2d(pixels, weights["classifier.stem.0.weight"], weights["classifier.stem.0.bias"], padding=1)
    actual = exported.trace.values["conv2d"]
    assert actual.dtype == np.float64
    assert max_abs_diff(expected.numpy(), actual) < 1e-14


def test_allowed_differences_are_float32s_and_no_more(exported):
    trace = exported.trace
    for name in ("getitem", "conv2d_2", "layer_norm", "logits"):
        scale = np.abs(trace.values[name]).max()
        assert 16 * 2**-23 * scale <= trace.allowed[name] < 1e-3 * scale
    assert trace.allowed[exported.graph.proto.graph.node[0].output[0]] == 0  # pixels are whole numbers


def test_little_memory_gives_the_same_truth_and_the_same_fault(exported):
    tight = trace_network(exported.graph, exported.images, memory_bytes=1000)
    assert tight.values.n_on_disk > 10
    assert set(tight.values) == set(exported.trace.values)
    assert all(np.array_equal(tight.values[name], value) for name, value in exported.trace.values.items())
    model = exported.copy()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1), bias.name))
    data = model.SerializeToString()
    faults = [find_fault(data, trace, exported.images, ("a", "b")) for trace in (tight, exported.trace)]
    assert faults[0] == faults[1]
    assert faults[0].node == "node_linear"


def test_values_beyond_the_limit_lie_on_disk_until_they_are_dropped():
    values = Values(memory_bytes=100)
    arrays = {"small": np.arange(10, dtype=np.int64), "large": np.ones((30, 3)), "scalar": np.array(3.5), "empty": np.zeros((0, 2))}
    for name, array in arrays.items():
        values.add(name, array)
    assert values.n_on_disk == 1
    assert all(np.array_equal(values[name], array) for name, array in arrays.items())
    values.drop("small")
    values.add("large", np.zeros(2))
    assert values.n_on_disk == 0
    assert sorted(values) == ["empty", "large", "scalar"]
    with pytest.raises(KeyError):
        values["small"]


def test_layers_are_measured_in_order_and_grow_where_a_weight_is_off(exported):
    layers = measure_layers(exported.copy().SerializeToString(), exported.trace)
    made = [name for member in exported.graph.proto.graph.node for name in member.output]
    assert [layer.output for layer in layers] == [name for name in made if name in {layer.output for layer in layers}]
    assert all(layer.max_abs_diff < 1e-4 for layer in layers)
    assert {layer.module for layer in layers} >= {"stem.1", "stem.2", "body.1", "pool", "norm", "head"}
    model = exported.copy()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.body.0.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
    broken = {layer.output: layer.max_abs_diff for layer in measure_layers(model.SerializeToString(), exported.trace)}
    assert broken["getitem_3"] == pytest.approx(0.5, rel=1e-3)
    assert broken["relu"] < 1e-4
    assert broken["logits"] > 1e-3


def test_layers_that_are_not_finite_are_left_out(exported):
    model = exported.copy()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.body.0.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), np.nan), bias.name))
    outputs = {layer.output for layer in measure_layers(model.SerializeToString(), exported.trace)}
    assert "relu" in outputs
    assert not {"getitem_3", "logits"} & outputs


def foreign(
    *nodes: onnx.NodeProto, weights: dict[str, np.ndarray], opset: int = 13, domains: tuple[str, ...] = ()
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "foreign", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def images(n: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 3, 6, 6)).astype(np.float32)


def convolution() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["a"], ["c"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["k"], name="constant", value=numpy_helper.from_array(np.float32(0.1))),
        helper.make_node("Mul", ["c", "k"], ["d"], name="mul"),
        helper.make_node("Softmax", ["d"], ["y"], name="softmax", axis=1),
    ]
    weights = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
    return nodes, weights


def test_a_foreign_file_has_its_truth_from_the_reference_evaluator_in_float64():
    nodes, weights = convolution()
    data = foreign(*nodes, weights=weights).SerializeToString()
    trace = trace_onnx(data, images())
    assert not trace.uncovered
    assert not trace.departing
    assert set(trace.values) == {"a", "c", "k", "d", "y"}
    pixels, kernel, bias = (torch.from_numpy(array).double() for array in (images(), weights["w"], weights["b"]))
    expected = torch.nn.functional.conv2d(pixels, kernel, bias, padding=1)
    assert all(trace.values[name].dtype == np.float64 for name in "acdy")
    assert max_abs_diff(expected.numpy(), trace.values["a"]) < 1e-13
    assert max_abs_diff((0.1 * expected).softmax(dim=1).numpy(), trace.values["y"]) < 1e-7  # 0.1 is a float32 in the file
    assert find_fault(data, trace, images(), ("a", "b"), failing_batch_size=5) is None


def test_a_fault_in_a_copy_of_a_foreign_file_is_located():
    nodes, weights = convolution()
    trace = trace_onnx(foreign(*nodes, weights=weights).SerializeToString(), images())
    broken = foreign(*nodes, weights=weights | {"b": weights["b"] * np.float32(2)}).SerializeToString()
    fault = find_fault(broken, trace, images(), ("a", "b"))
    assert fault.node == "conv"
    assert "The bias 'b' differ: 4 of 4 elements are 2 times the export's" in fault.cause


def test_an_operator_that_the_reference_lacks_is_uncovered_and_never_agrees():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        helper.make_node("FusedConv", ["a", "w"], ["b"], name="fused", domain="com.microsoft", activation="Relu"),
        helper.make_node("Neg", ["b"], ["y"], name="neg"),
    ]
    weights = {"w": np.ones((2, 3, 1, 1), dtype=np.float32)}
    data = foreign(*nodes, weights=weights, domains=("com.microsoft",)).SerializeToString()
    trace = trace_onnx(data, images())
    assert "b" not in trace.values
    assert "b" not in trace.proven
    assert [entry.split(":")[0] for entry in trace.uncovered] == ["fused (com.microsoft"]
    assert set(trace.values) == {"a", "y"}  # what follows is proven on what ONNX Runtime makes there
    assert find_fault(data, trace, images(), ("a", "b")) is None


def test_what_neither_runs_leaves_all_that_follows_uncovered():
    nodes = [
        helper.make_node("Unheard", ["x"], ["a"], name="unheard", domain="strange"),
        helper.make_node("Neg", ["a"], ["y"], name="neg"),
    ]
    trace = trace_onnx(foreign(*nodes, weights={}, domains=("strange",)).SerializeToString(), images())
    assert not trace.values
    assert len(trace.uncovered) == 2
    assert "ONNX Runtime cannot run it either" in trace.uncovered[0]
    assert "what it reads is uncovered" in trace.uncovered[1]


def test_random_operators_have_no_truth():
    node = helper.make_node("RandomNormalLike", ["x"], ["y"], name="random")
    trace = trace_onnx(foreign(node, weights={}).SerializeToString(), images())
    assert "random operators have no truth" in trace.uncovered[0]


def test_a_branch_reads_values_and_weights_from_outside():
    weights = {"w": np.full((1, 1, 1, 1), 2, dtype=np.float32), "zero": np.zeros((), dtype=np.float32)}
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["a", "w"], [op])], op, [], [helper.make_tensor_value_info(op, TensorProto.FLOAT, None)]
        )
        for op in ("Mul", "Add")
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        helper.make_node("ReduceMax", ["a"], ["m"], name="max", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["positive"], name="greater"),
        helper.make_node("If", ["positive"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1]),
    ]
    data = foreign(*nodes, weights=weights).SerializeToString()
    trace = trace_onnx(data, images())
    assert not trace.uncovered
    assert max_abs_diff(2 * np.maximum(images().astype(np.float64), 0), trace.values["y"]) == 0
    broken = foreign(*nodes, weights=weights | {"w": weights["w"] + 1}).SerializeToString()
    assert find_fault(broken, trace, images(), ("a", "b")).node == "if"


def test_bytes_that_are_no_model_are_refused():
    with pytest.raises(ExportError, match="expected an ONNX model"):
        trace_onnx(b"\xff\xff", images())


def test_infinities_that_both_sides_have_are_no_difference():
    inf, nan = np.inf, np.nan
    assert max_abs_diff(np.array([-inf, nan, 1.0]), np.array([-inf, nan, 1.5])) == 0.5
    assert max_abs_diff(np.array([1.0]), np.array([nan])) == inf
    assert max_abs_diff(np.array([inf]), np.array([-inf])) == inf
    assert max_abs_diff(np.zeros(0), np.zeros(0)) == 0
    assert max_abs_diff(np.array([True]), np.array([False])) == 1


def test_a_permutation_of_axes_is_found_and_none_is_made_up():
    array = np.random.default_rng(0).normal(size=(2, 3, 3))
    assert find_permutation(array, array.transpose(0, 2, 1), 0.0) == (0, 2, 1)
    assert find_permutation(array, array, 0.0) is None
    assert find_permutation(array, np.sort(array, axis=None).reshape(array.shape), 0.0) is None


def test_the_whole_file_agrees_with_the_truth(exported):
    session = open_session(exported.graph.proto.SerializeToString())
    logits, _ = session.run(["logits", "probabilities"], {"image": exported.images})
    trace = exported.trace
    assert max_abs_diff(trace.values["logits"], logits) <= 16 * max(trace.errors["logits"], 1e-7)
