"""What cannot hold for every batch is refused, in a sentence that says what to change; the rest is exported right."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from convoy.contract.errors import ExportError
from convoy.export.graph.exporting import to_onnx

from .networks import IMAGE, Chain, Classifier, pixels, run

VALUES = "what it does must not depend on the values in the images .*; found "
NUMBER = "what it does must not depend on the number of images .*; found "


def by_value(self, x):
    return x * 2 if x.sum() > 0 else x


def by_shape(self, x):
    return x[:, :, : int(x.max().item()) + 3]


def fixed_shape(self, x):
    return x.reshape(3, 3, 400, 1)


def other_shape(self, x):
    return x.reshape(2, 3, 400, 1)


def loop_over_images(self, x):
    return torch.stack([each * (i + 1) for i, each in enumerate(x)])


def odd_batches(self, x):
    return x * 2 if x.shape[0] % 2 else x


def large_batches(self, x):
    return x * 2 if x.shape[0] > 4 else x


def eigenvalues(self, x):
    return torch.linalg.eigvalsh(x @ x.transpose(2, 3))[..., None]


def noise(self, x):
    return x + torch.rand_like(x)


def dropout_always(self, x):
    return nn.functional.dropout(x, 0.5, training=True)


REFUSED = {
    by_value: VALUES + r"`return x \* 2 if x\.sum\(\) > 0 else x` \(test_capture\.py, line \d+\)",
    by_shape: VALUES,
    fixed_shape: NUMBER + "that it works for 3 images alone",
    other_shape: NUMBER + r"RuntimeError: shape '\[2, 3, 400, 1\]' is invalid for input of size 1200\*batch",
    loop_over_images: NUMBER + "that it works for 3 images alone",
    odd_batches: NUMBER + r"a condition: \(?batch % 2\)? != 0",
    large_batches: NUMBER + "a condition: 2 <= batch and batch <= 4",
    eigenvalues: r"torch has no ONNX counterpart of aten\._linalg_eigh: say the same in forward\(\) with other operators",
    noise: r"expected a network that answers alike each time, found RandomUniformLike \(from node_rand_like\)",
    dropout_always: "expected a network that answers alike each time, found",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_what_does_not_hold_for_every_batch_is_refused_with_what_to_change(function, capfd, caplog):
    network = Classifier(Chain(function), 3).eval()
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ExportError, match=REFUSED[function]) as told:
            to_onnx(network, IMAGE)
    assert "\n" not in str(told.value)
    assert "\x1b" not in str(told.value)
    assert told.value.__cause__ is not None or "alike" in str(told.value)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert warned == []


def by_item(self, x):
    return x * int(x.max().item() * 10)


def either(self, x):
    return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))


def element_by_element(self, x):
    return torch.where(x > 0, x * 2, x - 1)


def fixed_loop(self, x):
    for _ in range(3):
        x = torch.tanh(x) + x
    return x


def number_of_images(self, x):
    return x + torch.zeros(len(x), 3, 1, 1)


def through_numpy(self, x):
    return torch.from_numpy(np.tanh(x.numpy()))


def masked(self, x):
    return x + x[x > 0].mean()


HELD = [either, by_item, element_by_element, fixed_loop, number_of_images, through_numpy, masked]


@pytest.mark.parametrize("function", HELD, ids=lambda function: function.__name__)
@pytest.mark.filterwarnings("ignore")
def test_what_holds_for_every_batch_is_exported(function):
    network = Classifier(Chain(function), 3).eval()
    model = to_onnx(network, IMAGE).proto
    for n in (1, 2, 3, 7):
        with torch.no_grad():
            expected = network(torch.from_numpy(pixels(n))).numpy()
        np.testing.assert_allclose(run(model, pixels(n)), expected, rtol=0, atol=1e-5)


def test_the_inside_of_a_branch_is_as_clean_as_the_rest():
    model = to_onnx(Classifier(Chain(either), 3).eval(), IMAGE).proto
    (branch,) = (node for node in model.graph.node if node.op_type == "If")
    inside = [node for attribute in branch.attribute for node in attribute.g.node]
    assert inside
    for node in inside:
        assert {entry.key for entry in node.metadata_props} <= {"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"}
    assert b".py" not in model.SerializeToString()
