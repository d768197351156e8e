"""Break an export in every way that we know: the diagnosis names the node and says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convoy.export.diagnosis import allowed_difference, find_fault, trace_network
from convoy.export.graph.exporting import ExportedGraph


def node(model: onnx.ModelProto, op_type: str, place: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == op_type][place]


def edit(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy())), name))


def read_instead(model: onnx.ModelProto, value: str, other: str) -> None:
    for reader in model.graph.node:
        for i, name in enumerate(reader.input):
            if name == value:
                reader.input[i] = other


def insert_after(model: onnx.ModelProto, value: str, new: onnx.NodeProto) -> onnx.NodeProto:
    """``new`` reads ``value`` first; all that read ``value`` now read what ``new`` makes."""
    read_instead(model, value, "inserted")
    place = next(i for i, made in enumerate(model.graph.node) if value in made.output)
    new.name, new.input[0], new.output[0] = "inserted_node", value, "inserted"
    model.graph.node.insert(place + 1, new)
    del model.graph.value_info[:]
    return model.graph.node[place + 1]


def rename_all(model: onnx.ModelProto) -> None:
    """Every value and node under a name of its own, but for the file's inputs and outputs."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)} | {tensor.name for tensor in model.graph.initializer}
    names: dict[str, str] = {"": ""} | {name: name for name in kept}
    for i, member in enumerate(model.graph.node):
        member.name = f"n{i}"
        for values in (member.input, member.output):
            for place, name in enumerate(values):
                values[place] = names.setdefault(name, f"v{len(names)}")
    del model.graph.value_info[:]


def constant(model: onnx.ModelProto, name: str, array) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def attribute(model: onnx.ModelProto, op_type: str, place: int, name: str, value) -> str:
    changed = node(model, op_type, place)
    kept = [own for own in changed.attribute if own.name != name]
    del changed.attribute[:]
    changed.attribute.extend([*kept, helper.make_attribute(name, value)])
    return changed.name


def replace_operator(model: onnx.ModelProto, op_type: str, place: int, other: str) -> str:
    changed = node(model, op_type, place)
    changed.op_type = other
    return changed.name


def remove(model: onnx.ModelProto, op_type: str, place: int) -> str:
    gone = node(model, op_type, place)
    reader = next(other.name for other in model.graph.node if gone.output[0] in other.input)
    read_instead(model, gone.output[0], gone.input[0])
    model.graph.node.remove(gone)
    return reader


def swap(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weight: np.take(weight, [1, 0, *range(2, weight.shape[axis])], axis=axis)


def one_element(weight: np.ndarray) -> np.ndarray:
    weight.flat[7] += 0.5
    return weight


def with_nan(bias: np.ndarray) -> np.ndarray:
    bias[1] = np.nan
    return bias


def batch_norm(model: onnx.ModelProto, value: str, **options) -> str:
    ones, zeros = np.ones(6, dtype=np.float32), np.zeros(6, dtype=np.float32)
    names = [constant(model, f"bn{i}", array) for i, array in enumerate((ones, zeros, zeros, ones))]
    outputs = ["", "m", "v"] if options.get("training_mode") else [""]
    return insert_after(model, value, helper.make_node("BatchNormalization", ["", *names], outputs, **options)).name


def dropout(model: onnx.ModelProto) -> str:
    names = [constant(model, "ratio", np.float32(0.5)), constant(model, "training", np.array(True))]
    return insert_after(model, "relu_1", helper.make_node("Dropout", ["", *names], [""])).name


def overflow(model: onnx.ModelProto) -> str:
    scale = constant(model, "scale", np.float32(1e6))
    insert_after(model, "relu_1", helper.make_node("Mul", ["", scale], [""])).name = "scaled"
    read_instead(model, "inserted", "whole")
    place = [member.name for member in model.graph.node].index("scaled")
    half = helper.make_node("Cast", ["inserted"], ["half"], to=TensorProto.FLOAT16, name="half")
    whole = helper.make_node("Cast", ["half"], ["whole"], to=TensorProto.FLOAT, name="whole")
    model.graph.node.insert(place + 1, half)
    model.graph.node.insert(place + 2, whole)
    return "half"


def preprocess_twice(model: onnx.ModelProto) -> str:
    return insert_after(model, "div", helper.make_node("Div", ["", node(model, "Div").input[1]], [""])).name


def swap_outputs(model: onnx.ModelProto) -> str:
    names = {"logits": "probabilities", "probabilities": "logits"}
    for member in model.graph.node:
        for values in (member.input, member.output):
            for i, name in enumerate(values):
                values[i] = names.get(name, name)
    return node(model, "Gemm").name


def remove_softmax(model: onnx.ModelProto) -> str:
    """``probabilities`` made from ``logits`` by nothing: the value is there twice, under both names."""
    softmax = node(model, "Softmax")
    softmax.op_type = "Identity"
    del softmax.attribute[:]
    return softmax.name


def freeze_reshape(model: onnx.ModelProto) -> str:
    node(model, "Reshape").input[1] = constant(model, "frozen", np.array([4, 96]))
    return node(model, "Reshape").name


def transpose(model: onnx.ModelProto) -> str:
    return insert_after(model, "relu", helper.make_node("Transpose", [""], [""], perm=[0, 1, 3, 2])).name


def rewire(model: onnx.ModelProto) -> str:
    node(model, "Add").input[0] = "relu_1"
    return node(model, "Add").name


def weight(op_type: str, place: int, position: int, change: Callable[[np.ndarray], np.ndarray]):
    def apply(model: onnx.ModelProto) -> str:
        changed = node(model, op_type, place)
        edit(model, changed.input[position], change)
        return changed.name

    return apply


FAULTS = {
    "one weight": (weight("Conv", 1, 1, one_element), "element [0, 0, 2, 1] is"),
    "weights scaled": (weight("Gemm", 0, 1, lambda w: w * np.float32(1.5)), "1.5 times the export's"),
    "output channels": (weight("Conv", 1, 1, swap(0)), "2 of 6 channels of axis 0 stand in another place"),
    "input channels": (weight("Conv", 2, 1, swap(1)), "2 of 6 channels of axis 1 stand in another place"),
    "axes of weights": (weight("Conv", 1, 1, lambda w: w.transpose(0, 1, 3, 2)), "axes permuted by [0, 1, 3, 2]"),
    "bias": (weight("Gemm", 0, 2, lambda b: b + np.float32(0.1)), "The bias 'classifier.head.bias' differ"),
    "NaN": (weight("Conv", 1, 2, with_nan), "1 of 6 elements are NaN or infinite"),
    "pads": (lambda m: attribute(m, "Conv", 1, "pads", [2, 0, 0, 2]), "pads is [2, 0, 0, 2] where the export has [1, 1, 1, 1]"),
    "pads lost": (lambda m: attribute(m, "Conv", 1, "pads", [0, 0, 0, 0]), "pads is [0, 0, 0, 0]"),
    "strides": (lambda m: attribute(m, "Conv", 2, "strides", [2, 2]), "strides is [2, 2] where the export has [1, 1]"),
    "epsilon": (lambda m: attribute(m, "LayerNormalization", 0, "epsilon", 0.1), "epsilon is 0.1"),
    "axis": (lambda m: attribute(m, "Softmax", 0, "axis", 0), "axis is 0 where the export has 1"),
    "perm": (lambda m: attribute(m, "Transpose", 0, "perm", [0, 3, 2, 1]), "Axes swapped: perm is [0, 3, 2, 1]"),
    "transpose": (transpose, "Axes swapped: this Transpose (perm [0, 1, 3, 2]) is not in the export"),
    "pooling": (lambda m: replace_operator(m, "MaxPool", 0, "LpPool"), "a LpPool stands where the export has a MaxPool"),
    "activation": (lambda m: replace_operator(m, "Relu", 1, "Sigmoid"), "a Sigmoid stands where the export has a Relu"),
    "activation gone": (lambda m: remove(m, "Relu", 1), "node_relu_1 (Relu) is missing before this node"),
    "residual": (rewire, "Rewired: it reads 'relu_1' where the export reads 'relu'"),
    "training mode": (lambda m: batch_norm(m, "getitem_3", training_mode=1), "Batch normalisation in training mode"),
    "batch norm": (lambda m: batch_norm(m, "getitem_3", epsilon=0.5), "This BatchNormalization is not in the export"),
    "dropout": (dropout, "Dropout in training mode"),
    "preprocessing twice": (preprocess_twice, "Preprocessing is applied twice"),
    "preprocessing gone": (lambda m: remove(m, "Div", 0), "Preprocessing is missing: the export has node_div (Div)"),
    "float16": (overflow, "float16 overflows here"),
    "outputs": (swap_outputs, "Outputs swapped: what is called probabilities holds logits, and logits holds probabilities"),
    "softmax": (remove_softmax, "probabilities holds what logits should; the export has a Softmax between them"),
    "frozen": (freeze_reshape, "The batch axis is fixed: this Reshape makes shape [4, 96]"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_located_at_its_node_with_its_cause(exported, name):
    break_it, cause = FAULTS[name]
    model = exported.copy()
    guilty = break_it(model)
    fault = exported.find(model)
    assert fault is not None
    assert (fault.node, True) == (guilty, cause in fault.cause), fault
    assert fault.image in ("image 0", "image 1")
    assert fault.max_abs_diff is None or fault.allowed is None or fault.max_abs_diff > fault.allowed


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "activation gone"])
def test_a_fault_is_located_in_a_file_whose_values_all_have_other_names(exported, name):
    break_it, _ = FAULTS[name]
    model = exported.copy()
    guilty = break_it(model)
    place = [member.name for member in model.graph.node].index(guilty)
    rename_all(model)
    fault = exported.find(model)
    assert fault is not None
    assert fault.node == f"n{place}", fault


def test_an_export_agrees_with_itself_and_so_does_a_renamed_one(exported):
    assert exported.find(exported.copy(), failing_batch_size=5) is None
    model = exported.copy()
    rename_all(model)
    assert exported.find(model, failing_batch_size=5) is None


def test_what_changes_no_answer_is_no_fault(exported):
    model = exported.copy()
    insert_after(model, "relu", helper.make_node("Identity", [""], [""]))
    insert_after(model, "add", helper.make_node("Transpose", [""], [""], perm=[0, 3, 1, 2], name="back")).name = "back"
    place = [member.name for member in model.graph.node].index("back")
    model.graph.node[place].input[0] = "laid_out"
    model.graph.node[place].output[0] = "laid_back"
    read_instead(model, "inserted", "laid_back")
    node(model, "Identity").output[0] = "same"
    for reader in ("node_conv2d_1", "node_add"):
        member = next(member for member in model.graph.node if member.name == reader)
        member.input[0] = "same"
    node(model, "Relu", 2).input[0] = "laid_back"
    model.graph.node.insert(place, helper.make_node("Transpose", ["add"], ["laid_out"], perm=[0, 2, 3, 1], name="there"))
    assert exported.find(model) is None


def test_the_fault_maps_to_the_module_and_the_worst_image(exported):
    model = exported.copy()
    edit(model, node(model, "Conv", 1).input[1], one_element)
    fault = exported.find(model)
    assert fault.module == "body.1"
    assert fault.output == "getitem_3"
    assert fault.max_abs_diff > 1000 * fault.allowed > 0


def test_a_batch_axis_frozen_to_what_is_traced_is_found_in_other_batches(exported):
    model = exported.copy()
    node(model, "Reshape").input[1] = constant(model, "frozen", np.array([2, 96]))
    assert exported.find(model) is None
    fault = exported.find(model, failing_batch_size=7)
    assert fault.node == node(model, "Reshape").name
    assert "The batch axis is fixed" in fault.cause
    assert "in batches of 3, not of 2" in fault.cause


def test_a_batch_axis_frozen_at_the_border_is_named(exported):
    model = exported.copy()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    fault = exported.find(model)
    assert (fault.node, fault.op_type, fault.cause) == ("image", "graph input", "The batch axis of image is fixed to 2.")


def test_outputs_in_another_order_are_named(exported):
    model = exported.copy()
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(reversed(outputs))
    assert "stand in another order: probabilities, logits" in exported.find(model).cause


def test_of_two_faults_the_first_in_the_graph_is_named(exported):
    model = exported.copy()
    edit(model, node(model, "Gemm").input[1], lambda w: w * np.float32(2))
    edit(model, node(model, "Conv", 1).input[1], one_element)
    assert exported.find(model).node == node(model, "Conv", 1).name


def test_a_value_that_nothing_makes_and_an_unknown_operator_are_located(exported):
    model = exported.copy()
    node(model, "Relu", 1).input[0] = "nowhere"
    fault = exported.find(model)
    assert fault.node == node(model, "Relu", 1).name
    assert "'nowhere', which nothing makes" in fault.cause
    model = exported.copy()
    guilty = replace_operator(model, "Relu", 1, "Rrelu")
    assert exported.find(model).node == guilty


def test_a_cycle_is_located_within_it(exported):
    model = exported.copy()
    node(model, "Relu", 1).input[0] = "relu_2"
    fault = exported.find(model)
    assert fault is not None
    assert fault.node in {member.name for member in model.graph.node}


def test_bytes_that_are_no_model_are_said_to_be_none(exported):
    fault = find_fault(b"\xff\xff\xff", exported.trace, exported.images, ("image 0", "image 1"))
    assert "expected an ONNX model" in fault.cause


def test_the_exporters_own_fault_is_found_in_the_fresh_export(exported):
    wrong = exported.copy()
    guilty = attribute(wrong, "LayerNormalization", 0, "epsilon", 0.1)
    graph = ExportedGraph(wrong, exported.graph.program)
    trace = trace_network(graph, exported.images)
    assert trace.departing == {"layer_norm"}
    fault = find_fault(wrong.SerializeToString(), trace, exported.images, ("a", "b"))
    assert fault.node == guilty
    assert "the exporter's own" in fault.cause


def test_an_exporters_fault_between_two_known_values_names_the_suspects(exported):
    wrong = exported.copy()
    gone = node(wrong, "Relu", 1)
    place = [member.name for member in wrong.graph.node].index(gone.name)
    half = helper.make_node("Mul", [gone.input[0], constant(wrong, "half", np.float32(0.5))], ["val_900"], name="halved")
    wrong.graph.node.insert(place, half)
    gone.input[0] = "val_900"
    trace = trace_network(ExportedGraph(wrong, exported.graph.program), exported.images)
    assert trace.departing == {"relu_1"}
    assert "val_900" not in trace.values
    fault = find_fault(wrong.SerializeToString(), trace, exported.images, ("a", "b"))
    assert {fault.node, *fault.suspects} == {gone.name, "halved"}
    assert "What it makes is 0.5 times what is right" in fault.cause


def test_a_fault_below_every_nodes_rounding_is_put_where_the_file_differs(exported):
    model = exported.copy()
    guilty = node(model, "LayerNormalization")
    step = 0.9 * exported.trace.allowed["layer_norm"]
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.head.weight")
    edit(model, guilty.input[2], lambda bias: bias + np.float32(step) * np.sign(numpy_helper.to_array(head)[0]))
    errors = {name: (0.0 if name in ("logits", "probabilities") else error) for name, error in exported.trace.errors.items()}
    fault = find_fault(model.SerializeToString(), replace(exported.trace, errors=errors), exported.images, ("a", "b"))
    assert fault.node == guilty.name
    assert "no node departs by itself" in fault.cause


def test_a_little_of_the_exporters_own_does_not_hide_a_real_fault_further_down(exported):
    trace = replace(
        exported.trace,
        departing=frozenset({"getitem"}),
        allowed=dict(exported.trace.allowed) | {"getitem": 1e-8},  # less than what float32 needs there
    )
    images, names = exported.images, ("a", "b")
    assert find_fault(exported.copy().SerializeToString(), trace, images, names) is None
    model = exported.copy()
    edit(model, node(model, "Gemm").input[1], lambda w: w * np.float32(2))
    assert find_fault(model.SerializeToString(), trace, images, names).node == node(model, "Gemm").name


def test_means_of_many_terms_may_round_more():
    value = np.ones(4)
    assert allowed_difference(value, 0.0) == 16 * 2**-23
    assert allowed_difference(value, 0.0, n_terms=1024) == 64 * 2**-23
    assert allowed_difference(value, 1.0, n_terms=1024) == 16
    assert allowed_difference(np.arange(3), 1.0) == 0
