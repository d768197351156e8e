"""Which of a foreign graph's values are the logits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from convoy.contract.errors import ExportError, UsageError
from convoy.export.adopt.adoption import AdoptedModel, take_up
from convoy.export.adopt.preprocess import parse_preprocess


def adopt(model: onnx.ModelProto, classes: int = 5, **options) -> AdoptedModel:
    options = {"max_batch_size": 8, "title": "foreign", **options}
    return take_up(model.SerializeToString(), parse_preprocess("0..1"), classes, **options)


def dense(net, opset: int = 13, classes: int = 5):
    foreign = net(opset).features()
    foreign.add("Flatten")
    return foreign.head(classes=classes)


def answers(run, model, images: np.ndarray, output: str) -> np.ndarray:
    return run(model, data=(images / 255).transpose(0, 3, 1, 2).astype(np.float32))[output]


def test_logits_beside_their_softmax_are_one_decision(net, run, images):
    foreign = dense(net)
    logits = foreign.value
    probabilities = foreign.add("Softmax", axis=1)
    model = foreign.model(["N", 3, 8, 9], {probabilities: ["N", 5], logits: ["N", 5]})
    adopted = adopt(model)
    np.testing.assert_allclose(run(adopted.model, image=images)["logits"], answers(run, model, images, logits), atol=1e-5)
    assert adopted.source.output.probabilities == probabilities


def test_log_probabilities_are_logits(net, run, images):
    foreign = dense(net)
    output = foreign.add("LogSoftmax", axis=1)
    model = foreign.model(["N", 3, 8, 9])
    adopted = adopt(model)
    found = run(adopted.model, image=images)
    expected = answers(run, model, images, output)
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], np.exp(expected), atol=1e-5)


def test_probabilities_without_a_softmax_node_get_a_logarithm(net, run, images):
    """As Caffe's and some Keras converters write a softmax: Exp, ReduceSum, Div."""
    foreign = dense(net, 11)
    powers = foreign.add("Exp")
    total = foreign.add("ReduceSum", axes=[1], keepdims=1)
    output = foreign.add("Div", reads=[powers, total])
    model = foreign.model(["N", 3, 8, 9])
    adopted = adopt(model)
    assert any("log(p + 2^-126)" in remark for remark in adopted.remarks)
    found, expected = run(adopted.model, image=images), answers(run, model, images, output)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(found["logits"], np.log(expected), atol=1e-4)
    source = adopted.source.float32(images, 4)
    np.testing.assert_allclose(source["logits"], np.log(expected), atol=1e-4)


def test_independent_classes_are_refused(net):
    foreign = dense(net)
    foreign.add("Sigmoid", name="each_by_itself")
    with pytest.raises(ExportError, match=r"'each_by_itself' \(Sigmoid\).*multi-label"):
        adopt(foreign.model(["N", 3, 8, 9]))


def test_a_softmax_over_one_value_is_refused(net):
    """The meaning of axis changed with opset 13: a graph that was relabelled normalises every class by itself."""
    foreign = net(13).features()
    foreign.add("Conv", foreign.weights(5, 4, 1, 1))
    foreign.add("GlobalAveragePool")
    foreign.add("Softmax", name="relabelled")  # axis -1 of (N, 5, 1, 1)
    foreign.add("Flatten")
    with pytest.raises(ExportError, match=r"'relabelled' \(Softmax\).*over 1 values"):
        adopt(foreign.model(["N", 3, 8, 9]))


def test_several_heads_must_be_chosen_from(net, run, images):
    foreign = net(13).features()
    flat = foreign.add("Flatten")
    main = foreign.head().value
    foreign.value = flat
    auxiliary = foreign.head(name="auxiliary").value
    model = foreign.model(["N", 3, 8, 9], {main: ["N", 5], auxiliary: ["N", 5]})
    with pytest.raises(UsageError, match=rf"found 2: '{main}' .*'{auxiliary}'.*--output"):
        adopt(model)
    adopted = adopt(model, output_name=auxiliary)
    np.testing.assert_allclose(run(adopted.model, image=images)["logits"], answers(run, model, images, auxiliary), atol=1e-5)
    with pytest.raises(UsageError, match="an output named 'scores'"):
        adopt(model, output_name="scores")


@pytest.mark.parametrize(("n_outputs", "hint"), [(6, "background"), (4, "header line"), (12, "another network")])
def test_other_numbers_of_classes_are_told_apart(net, n_outputs, hint):
    foreign = dense(net, classes=n_outputs)
    model = foreign.model(["N", 3, 8, 9], {foreign.value: ["N", n_outputs]})
    with pytest.raises(ExportError, match=rf"5 values an image.*\[1, {n_outputs}\].*{hint}"):
        adopt(model)


def test_a_map_of_pixels_is_no_decision(net):
    foreign = net(13).features()
    with pytest.raises(ExportError, match=r"\[1, 4, 3, 4\]"):
        adopt(foreign.model(["N", 3, 8, 9], {foreign.value: ["N", 4, 3, 4]}), classes=48)
