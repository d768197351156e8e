"""The foreign file as the source of expected answers: float32 at its own border, float64 by the reference evaluator."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import helper

from convoy.contract.errors import ExportError
from convoy.export.adopt.adoption import take_up
from convoy.export.adopt.border import InputBorder
from convoy.export.adopt.preprocess import Preprocess, parse_preprocess
from convoy.export.adopt.source import OnnxSource, prepare, truth_task
from convoy.export.adopt.widening import first_disagreement, run_wide, widen


def source_of(model: onnx.ModelProto, spec: str = "imagenet", **options) -> OnnxSource:
    options = {"max_batch_size": 8, "title": "foreign", **options}
    return take_up(model.SerializeToString(), parse_preprocess(spec), 5, **options).source


def network(net, opset: int = 13) -> onnx.ModelProto:
    foreign = net(opset).features()
    foreign.add("Flatten")
    foreign.head()
    foreign.add("Softmax", axis=1)
    return foreign.model([1, 3, 8, 9], ir=8)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
def test_float64_is_the_truth_that_float32_lies_near(net, images, opset):
    source = source_of(network(net, opset))
    truth, float32 = source.float64(images, 4), source.float32(images, 4)
    assert (truth.n_images, truth.uncovered) == (len(images), ())
    for name in ("logits", "probabilities"):
        assert truth.outputs[name].dtype == np.float64
        assert float32[name].dtype == np.float32
        error = np.abs(float32[name] - truth.outputs[name]).max()
        assert 0 < error < 1e-5
        # More digits than float32 has: computed in float64, not cast at the end.
        assert np.abs(truth.outputs[name].astype(np.float32) - truth.outputs[name]).max() > 0
    np.testing.assert_allclose(truth.outputs["probabilities"].sum(axis=1), 1, atol=1e-14)


def test_time_that_runs_out_is_said_and_one_image_is_always_done(net, images):
    source = dataclasses.replace(source_of(network(net)), budget_s=0.0)
    truth = source.float64(images, 4)
    assert truth.n_images == len(truth.outputs["logits"]) == 1
    assert truth.uncovered == ("8 of 9 images: the 0 s for float64 were over",)


def test_an_operator_that_the_evaluator_lacks_is_uncovered_by_name(net, images):
    foreign = net(13).features()
    foreign.add("Flatten")
    foreign.head()
    foreign.nodes.append(helper.make_node("FastGelu", [foreign.value], ["y"], domain="com.microsoft"))
    foreign.value = "y"
    model = foreign.model(["N", 3, 8, 9])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    source = source_of(model)
    assert np.isfinite(source.float32(images, 4)["logits"]).all()
    truth = source.float64(images, 4)
    assert (truth.outputs, truth.n_images) == ({}, 0)
    assert truth.uncovered == ("com.microsoft.FastGelu (the ONNX reference evaluator lacks it)",)


@pytest.mark.parametrize("attributes", [{}, {"axis": 1}, {"axis": -3}])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_old_softmax_spans_all_axes_from_its_own_on(net, run, operator, attributes):
    foreign = net(11)
    foreign.add(operator, **attributes)
    model = foreign.model([2, 3, 8, 9], {foreign.value: [2, 3, 8, 9]})
    rows = np.random.default_rng(0).standard_normal((2, 3, 8, 9))
    truth = run_wide(model, "data", rows, [foreign.value], 2, fixed=False, budget_s=1.0).outputs[foreign.value]
    np.testing.assert_allclose(truth, run(model, data=rows.astype(np.float32))[foreign.value].reshape(2, -1), rtol=1e-5, atol=1e-6)
    if operator == "Softmax":
        np.testing.assert_allclose(truth.sum(axis=1), 1, atol=1e-14)


@pytest.mark.parametrize(("opset", "size"), [(7, 3), (13, 7), (21, 5)])
def test_normalisation_over_neighbouring_channels_spans_all_channels(net, run, opset, size):
    foreign = net(opset)
    foreign.add("LRN", size=size, alpha=0.5, beta=0.6, bias=2.0)
    model = foreign.model([2, 7, 3, 3], {foreign.value: [2, 7, 3, 3]}, ir=8)
    rows = np.random.default_rng(0).standard_normal((2, 7, 3, 3))
    truth = run_wide(model, "data", rows, [foreign.value], 2, fixed=False, budget_s=1.0).outputs[foreign.value]
    np.testing.assert_allclose(truth, run(model, data=rows.astype(np.float32))[foreign.value].reshape(2, -1), rtol=1e-5, atol=1e-6)


def test_the_mask_of_an_old_dropout_is_no_disagreement(net, images):
    foreign = net(9).features()
    foreign.nodes.append(helper.make_node("Dropout", [foreign.value], ["dropped", "mask"], ratio=0.5))
    foreign.value = "dropped"
    foreign.add("Flatten")
    source = source_of(foreign.head().model([1, 3, 8, 9]))
    assert source.float64(images[:2], 1).uncovered == ()


def test_two_readings_of_one_operator_give_no_truth(net, images, monkeypatch):
    """The evaluator's own batch norm of opset 9 takes every graph for training."""
    source = source_of(network(net, 9))
    feed = prepare(images[:1], source.border, source.preprocess)
    model = onnx.load_model_from_string(source.model)
    assert first_disagreement(model, "data", feed) is None
    monkeypatch.setattr("convoy.export.adopt.widening.operators_of", lambda _: [])
    assert first_disagreement(model, "data", feed) == "'bn' (BatchNormalization)"
    monkeypatch.setattr("convoy.export.adopt.source.run_contained", lambda task, payload, **_: truth_task(payload))
    truth = source.float64(images, 4)
    assert (truth.outputs, truth.n_images) == ({}, 0)
    assert "'bn' (BatchNormalization)" in truth.uncovered[0]


def test_rounding_that_grows_is_no_other_reading(net, run):
    """Near 1e9 float32 tells only every 64th number apart: after a softmax nothing is alike, and nobody is wrong."""
    foreign = net(13)
    foreign.add("Add", foreign.constant([[1e9, 1e9, 1e9]]), name="loses_digits")
    foreign.add("Softmax", axis=1)
    model = foreign.model([1, 3], {foreign.value: [1, 3]})
    rows = np.array([[0.0, 10.0, 20.0]])
    truth = run_wide(model, "data", rows, [foreign.value], 1, fixed=False, budget_s=1.0).outputs[foreign.value]
    assert np.abs(truth - run(model, data=rows.astype(np.float32))[foreign.value]).max() > 0.5
    assert first_disagreement(model, "data", rows) is None


def test_a_process_that_dies_leaves_the_truth_uncovered(net, images, monkeypatch):
    source = source_of(network(net))

    def dies(task, payload, **_):
        raise ExportError("it ran out of its memory")

    monkeypatch.setattr("convoy.export.adopt.source.run_contained", dies)
    truth = source.float64(images, 4)
    assert (truth.outputs, truth.n_images) == ({}, 0)
    assert "ran out of its memory" in truth.uncovered[0]


def test_an_evaluator_that_fails_is_uncovered_with_its_words(net, images, monkeypatch):
    source = source_of(network(net))

    def fail(self, x, w, *b, **attributes):
        raise ValueError("no such convolution")

    monkeypatch.setattr("onnx.reference.ops.op_conv.Conv._run", fail)
    monkeypatch.setattr("convoy.export.adopt.source.run_contained", lambda task, payload, **_: truth_task(payload))
    truth = source.float64(images, 4)
    assert truth.n_images == 0
    assert "no such convolution" in truth.uncovered[0]


def test_every_float_is_widened_also_inside_branches(net):
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value_float=0.1), helper.make_node("Cast", ["c"], ["d"], to=1)],
        "branch",
        [],
        [helper.make_tensor_value_info("d", 1, [])],
    )
    foreign = net(13)
    condition = foreign.constant(True, dtype=bool)
    foreign.add("If", reads=[condition], then_branch=inner, else_branch=inner, out="y")
    foreign.add("ConstantOfShape", reads=[foreign.constant([2], dtype=np.int64)], out="zeros")
    foreign.add("Add", reads=["y", "zeros"], out="z")
    model = foreign.model([1, 3], {"z": [2]})
    answers = run_wide(model, "data", np.zeros((1, 3)), ["z"], 1, fixed=False, budget_s=1.0)
    assert answers.uncovered == ()
    np.testing.assert_array_equal(answers.outputs["z"], np.full((1, 2), np.float64(np.float32(0.1))))
    wide = widen(model)
    assert 1 not in {tensor.data_type for tensor in wide.graph.initializer}


def test_an_operator_that_answers_in_float32_is_uncovered(net):
    foreign = net(13)
    foreign.add("Cast", to=onnx.TensorProto.INT32)
    foreign.add("EyeLike", dtype=1)
    model = foreign.model([2, 2], {foreign.value: [2, 2]})
    model.graph.node[1].attribute[0].name = "dtype"
    assert run_wide(model, "data", np.eye(2), [foreign.value], 2, fixed=False, budget_s=1.0).uncovered == ()  # widened
    model.graph.node[1].attribute[0].i = onnx.TensorProto.FLOAT
    narrow = widen(model)
    narrow.graph.node[1].attribute[0].i = onnx.TensorProto.FLOAT
    from convoy.export.adopt.widening import _narrowed

    values = onnx.reference.ReferenceEvaluator(narrow).run(None, {"data": np.eye(2)}, intermediate=True)
    assert _narrowed(narrow.graph, values) == ["EyeLike"]


@pytest.mark.parametrize(
    ("layout", "dims"), [("nchw", (3, 2, 4)), ("nhwc", (2, 4, 3)), ("flat-chw", (24,)), ("flat-hwc", (24,)), ("chw", (3, 2, 4))]
)
def test_each_pixel_lands_where_the_layout_says(layout, dims):
    images = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    border = InputBorder("data", "float32", layout, 1, 2, 4, 3)
    preprocess = Preprocess(scale=2.0, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), color="bgr")
    found = prepare(images, border, preprocess)
    assert found.shape == (1, *dims)
    for row in range(2):
        for column in range(4):
            for channel in range(3):
                value = (2.0 * images[0, row, column, 2 - channel] - (1, 2, 3)[channel]) / (1, 2, 4)[channel]
                index = (channel, row, column) if "chw" in layout else (row, column, channel)
                place = index if len(dims) == 3 else (np.ravel_multi_index(index, (3, 2, 4) if "chw" in layout else (2, 4, 3)),)
                assert found[(0, *place)] == value
