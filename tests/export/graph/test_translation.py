"""Pools of any size are pools or products, not gathers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from convoy.export.graph.exporting import to_onnx
from convoy.export.graph.translation import averaging

from .networks import IMAGE, Chain, Classifier, pixels, run

POOLS = {
    "global": (nn.AdaptiveAvgPool2d(1), ["GlobalAveragePool"]),
    "divides": (nn.AdaptiveAvgPool2d((5, 2)), ["AveragePool"]),
    "one axis": (nn.AdaptiveAvgPool2d((None, 4)), ["AveragePool"]),
    "does not divide": (nn.AdaptiveAvgPool2d((3, 7)), ["MatMul", "MatMul"]),
    "grows": (nn.AdaptiveAvgPool2d(23), ["MatMul", "MatMul"]),
    "as it is": (nn.AdaptiveAvgPool2d(20), []),
    "one dimension": (Chain(lambda self, x: functional.adaptive_avg_pool1d(x.flatten(2), 1)), ["GlobalAveragePool"]),
    "largest of all": (nn.AdaptiveMaxPool2d(1), ["ReduceMax"]),
    "largest of each": (nn.AdaptiveMaxPool2d(4), ["MaxPool"]),
}
HARMLESS = {"Transpose", "Cast", "Div", "Sub", "Reshape", "Squeeze", "Unsqueeze", "Gemm", "Softmax"}


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_is_said_in_the_operators_that_onnx_has_for_it(name):
    pool, operators = POOLS[name]
    n_features = pool(torch.zeros(1, 3, 20, 20)).numel()
    network = Classifier(nn.Identity(), n_features, pool=pool).eval()
    model = to_onnx(network, IMAGE).proto
    assert [node.op_type for node in model.graph.node if node.op_type not in HARMLESS] == operators
    for n in (1, 2, 5):
        with torch.no_grad():
            expected = network(torch.from_numpy(pixels(n))).numpy()
        np.testing.assert_allclose(run(model, pixels(n)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "outputs"), [(10, 3), (7, 7), (5, 12), (13, 1), (2, 3)])
def test_the_matrix_of_a_pool_averages_as_torch_does(size, outputs):
    values = torch.randn(4, size)
    expected = functional.adaptive_avg_pool1d(values, outputs).numpy()
    np.testing.assert_allclose(values.numpy() @ averaging(size, outputs).T, expected, rtol=0, atol=1e-6)
