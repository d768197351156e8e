"""Batch norms go into the weights before or behind them, where that says the same, and stay where it does not."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from convoy.export.graph.batch_norm import fold_batch_norms
from convoy.export.graph.exporting import to_onnx

from .networks import IMAGE, Chain, Classifier, lived_in, pixels, run

BN = nn.BatchNorm2d


def twice(self, x):
    return self.b2(self.conv(torch.relu(self.b1(self.conv(x)))))


def fork(self, x):
    y = self.conv(x)
    return self.bn(y) + y


def two_readers(self, x):
    y = self.bn(torch.relu(x))
    return self.a(y) + self.b(y)


def one_reader_pads(self, x):
    y = self.bn(torch.relu(x))
    return self.a(y) + self.b(y)[:, :, 1:-1, 1:-1]


# name: body, features, batch norms that stay
NETWORKS = {
    "behind a convolution": (nn.Sequential(nn.Conv2d(3, 4, 3), BN(4), nn.ReLU()), 4, 0),
    "behind a convolution without bias, with padding": (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), BN(4)), 4, 0),
    "behind a grouped convolution": (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), BN(6)), 6, 0),
    "behind a transposed convolution": (nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), BN(4)), 4, 0),
    "behind a grouped transposed convolution": (
        nn.Sequential(nn.ConvTranspose2d(3, 6, 3, groups=3, bias=False, padding=1), BN(6)),
        6,
        0,
    ),
    "behind a dense layer": (nn.Sequential(nn.Flatten(), nn.Linear(1200, 7), nn.BatchNorm1d(7)), 7, 0),
    "before a convolution without padding": (nn.Sequential(nn.ReLU(), BN(3), nn.Conv2d(3, 4, 3)), 4, 0),
    "before a grouped convolution": (nn.Sequential(nn.ReLU(), BN(3), nn.Conv2d(3, 6, 3, groups=3, bias=False)), 6, 0),
    "before a dense layer": (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.BatchNorm1d(1200), nn.Linear(1200, 7)), 7, 0),
    "before two convolutions": (Chain(two_readers, bn=BN(3), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3)), 4, 0),
    "two in a row": (nn.Sequential(nn.Conv2d(3, 4, 3), BN(4), BN(4)), 4, 0),
    "without scale and shift": (nn.Sequential(nn.Conv2d(3, 4, 3), BN(4, affine=False)), 4, 0),
    "behind weights that are used twice": (Chain(twice, conv=nn.Conv2d(3, 3, 3), b1=BN(3), b2=BN(3)), 3, 0),
    "before a convolution with padding": (nn.Sequential(nn.ReLU(), BN(3), nn.Conv2d(3, 4, 3, padding=1)), 4, 1),
    "before a transposed convolution": (nn.Sequential(nn.ReLU(), BN(3), nn.ConvTranspose2d(3, 4, 3)), 4, 1),
    "before an activation": (nn.Sequential(nn.MaxPool2d(2), BN(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), 4, 1),
    "beside another reader of the convolution": (Chain(fork, conv=nn.Conv2d(3, 4, 3), bn=BN(4)), 4, 1),
    "before two convolutions of which one pads": (
        Chain(one_reader_pads, bn=BN(3), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3, padding=1)),
        4,
        1,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_norm_is_folded_where_that_says_the_same(name):
    body, n_features, n_left = copy.deepcopy(NETWORKS[name])
    pool = nn.Identity() if any(isinstance(layer, nn.Flatten) for layer in body.children()) else None
    network = lived_in(Classifier(body, n_features, pool=pool))
    model = to_onnx(network, IMAGE).proto
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == n_left
    images = pixels(5)
    with torch.inference_mode():
        expected = network.double()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(model, images), expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max()))


def test_the_fold_keeps_the_name_of_the_node_and_of_what_it_makes():
    graph = to_onnx(lived_in(Classifier(copy.deepcopy(NETWORKS["behind a convolution"][0]), 4)), IMAGE)
    (conv,) = (node for node in graph.proto.graph.node if node.op_type == "Conv")
    assert conv.name == "node_conv2d"
    assert conv.output[0] == "getitem"
    assert list(conv.input) == ["sub", "classifier.body.0.weight", "classifier.body.0.bias"]


def model_of(text: str, **arrays: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 18]>\n{text}')
    for name, array in arrays.items():
        model.graph.register_initializer(ir.val(name, const_value=ir.tensor(array, name=name)))
        for node in model.graph:
            for index, value in enumerate(node.inputs):
                if value is not None and value.name == name:
                    node.replace_input_with(index, model.graph.initializers[name])
    return model


NORM = "BatchNormalization<training_mode={training}>(y, gamma, beta, mean, var)"
CONV = "main (float[n,2,4,4] x) => (float[n,2,4,4] z) {{ y = Conv(x, w)  z = {norm} }}"


def parameters() -> dict[str, np.ndarray]:
    four = {name: np.ones(2, np.float32) for name in ("gamma", "beta", "mean", "var")}
    return {**four, "w": np.ones((2, 2, 1, 1), np.float32)}


def test_a_batch_norm_in_training_mode_stays():
    assert fold_batch_norms(model_of(CONV.format(norm=NORM.format(training=0)), **parameters())) == 1
    assert fold_batch_norms(model_of(CONV.format(norm=NORM.format(training=1)), **parameters())) == 0


def test_a_batch_norm_of_computed_statistics_stays():
    text = CONV.replace("{{", "{{ var = Relu(v) ").format(norm=NORM.format(training=0))
    arrays = parameters()
    arrays["v"] = arrays.pop("var")
    assert fold_batch_norms(model_of(text, **arrays)) == 0


def test_the_fold_is_computed_in_float64():
    """In float32, each of the four steps of gamma / sqrt(var + eps) would round; here the result alone is rounded."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.uniform(0.1, 2, 2).astype(np.float32) for name in ("gamma", "beta", "mean")}
    arrays |= {"var": np.float32([1e-12, 3e4]), "w": rng.normal(size=(2, 2, 1, 1)).astype(np.float32)}
    model = model_of(CONV.format(norm=NORM.format(training=0)), **arrays)
    assert fold_batch_norms(model) == 1
    scale = arrays["gamma"].astype(np.float64) / np.sqrt(arrays["var"].astype(np.float64) + np.float32(1e-5))
    found = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(found, (arrays["w"] * scale.reshape(2, 1, 1, 1)).astype(np.float32))
