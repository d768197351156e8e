"""What every exported graph is: the network itself, folded, nothing dead or twice there, nothing of this machine."""

from __future__ import annotations

import copy
import functools
import getpass
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from convoy.contract.errors import ExportError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Preprocessing
from convoy.export.graph import exporting
from convoy.export.graph.exporting import ExportedGraph, check_network, to_onnx
from convoy.export.graph.targets import check_targets
from convoy.training.networks import ImageClassifier, LeNet5, PixelPreprocessing

from .networks import IMAGE, Chain, Classifier, lived_in, pixels, run


class SelfAttention(nn.Module):
    """Two heads over the pixels of a map, as torch's own attention computes them: shapes that follow the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 8, 5, stride=5), nn.MultiheadAttention(8, 2, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # (N, 16, 8)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(len(x), 8, 1, 17)


class Scaled(nn.Module):
    """Squeeze and excitation: a pool inside the network, and its weights on every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(3, 8, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.conv(x))
        return maps * torch.sigmoid(self.squeeze(maps)) + 0.1


def tied() -> nn.Module:
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    with torch.no_grad():
        second.bias.copy_(first.bias)  # equal, though not the same
    return nn.Sequential(first, nn.ReLU(), second)


def not_contiguous() -> nn.Module:
    conv = nn.Conv2d(3, 4, 3)
    conv.weight = nn.Parameter(torch.randn(3, 3, 3, 4).permute(3, 2, 0, 1)[:, :, :, ::1].transpose(2, 3))
    assert not conv.weight.is_contiguous()
    return conv


def normalised_weights() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 64, 5)), nn.ReLU(), nn.Conv2d(64, 4, 3))


def shuffled(self, x):
    n, _, height, width = x.shape
    left, right = self.conv(x).view(n, 2, 4, height, width).transpose(1, 2).reshape(n, 8, height, width).chunk(2, dim=1)
    return torch.cat([left * 2, self.drop(right)], dim=1)


BODIES = {
    "residual with batch norm": (lambda: Chain(lambda self, x: torch.relu(self.bn(self.conv(x)) + self.skip(x)),
                                 conv=nn.Conv2d(3, 6, 3, padding=1, bias=False), bn=nn.BatchNorm2d(6), skip=nn.Conv2d(3, 6, 1)), 6),
    "squeeze and excitation": (Scaled, 8),
    "attention": (SelfAttention, 8),
    "channel shuffle and dropout": (lambda: Chain(shuffled, conv=nn.Conv2d(3, 8, 3, padding=1), drop=nn.Dropout()), 8),
    "tied weights": (tied, 3),
    "weights that are not contiguous": (not_contiguous, 4),
    "weight norm": (normalised_weights, 4),
    "layer norm and gelu": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.LayerNorm([4, 5, 5]), nn.GELU(), nn.Identity()), 4),
    "unused branch": (
        lambda: Chain(lambda self, x: (self.unused(x), self.conv(x))[1], conv=nn.Conv2d(3, 4, 3), unused=nn.Conv2d(3, 9, 5)), 4),
}  # fmt: skip


@functools.cache
def exported(name: str) -> tuple[nn.Module, ExportedGraph]:
    torch.manual_seed(1)
    build, n_features = BODIES[name]
    network = lived_in(Classifier(build(), n_features))
    return network, to_onnx(network, IMAGE)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_graph_answers_as_the_network_does(name, n):
    network, graph = exported(name)
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(torch.from_numpy(pixels(n))).numpy()
    np.testing.assert_allclose(run(graph.proto, pixels(n)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BODIES)
def test_the_graph_holds_nothing_that_is_dead_or_twice_there(name):
    graph = exported(name)[1].proto.graph
    read = Counter(value for node in graph.node for value in node.input) + Counter(output.name for output in graph.output)
    initializers = {initializer.name for initializer in graph.initializer}
    assert initializers <= read.keys()
    assert [node.name for node in graph.node if not any(output in read for output in node.output)] == []
    contents = Counter((each.data_type, tuple(each.dims), each.raw_data) for each in graph.initializer)
    assert max(contents.values()) == 1
    assert all(each.raw_data for each in graph.initializer)
    computed_from_constants = [node.op_type for node in graph.node if all(value in initializers for value in node.input if value)]
    assert computed_from_constants == []
    assert {node.op_type for node in graph.node} & {"Identity", "Dropout", "Constant", "BatchNormalization"} == set()
    assert not exported(name)[1].proto.functions


@pytest.mark.parametrize("name", BODIES)
def test_no_shape_is_computed_but_where_the_batch_is_spread(name):
    """A class token is repeated for each image, which takes their number; every other shape is stated."""
    graph = exported(name)[1].proto.graph
    expected = {"Shape": 1, "Expand": 1} if name == "attention" else {}
    found = Counter(node.op_type for node in graph.node)
    assert {op: found[op] for op in ("Shape", "Expand", "Range", "ConstantOfShape") if found[op]} == expected


@pytest.mark.parametrize("name", BODIES)
def test_the_batch_has_one_name(name):
    graph = exported(name)[1].proto.graph
    border = [(each.name, each.type.tensor_type.shape.dim[0].dim_param) for each in (*graph.input, *graph.output)]
    assert border == [("image", "batch"), ("logits", "batch"), ("probabilities", "batch")]
    dims = {dim.dim_param for each in graph.value_info for dim in each.type.tensor_type.shape.dim if dim.dim_param}
    assert {word for dim in dims for word in re.findall(r"[a-z_]\w*", dim)} <= {"batch"}


@pytest.mark.parametrize("name", BODIES)
def test_values_are_called_as_in_the_program(name):
    graph = exported(name)[1]
    program = {node.name for node in graph.program.graph.nodes} | {"logits", "probabilities"}
    values = {value for node in graph.proto.graph.node for value in node.output}
    assert {value for value in values if not value.startswith("val_") and "_split_" not in value} <= program


@pytest.mark.parametrize("name", BODIES)
def test_the_file_loads_everywhere(name):
    check_targets(exported(name)[1].proto)


@pytest.mark.parametrize("name", BODIES)
def test_the_file_names_no_path_no_person_and_no_environment(name):
    data = exported(name)[1].proto.SerializeToString()
    root = str(Path(__file__).resolve().parents[3])
    for trace in ("site-packages", ".py", root, str(Path.home()), f"/{getpass.getuser()}/", 'File "', "stack_trace"):
        assert trace.encode() not in data, trace


@pytest.mark.parametrize("name", BODIES)
def test_nodes_name_the_modules_that_they_came_from(name):
    nodes = exported(name)[1].proto.graph.node
    scopes = [entry.value for node in nodes for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
    assert any("'classifier.body" in scope for scope in scopes)
    assert any("'classifier.head'" in scope for scope in scopes)


def test_lenet5_is_its_layers_and_no_more():
    facts = Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.1,), std=(0.3,))
    graph = to_onnx(ImageClassifier(PixelPreprocessing(facts), LeNet5()).eval(), ImageSpec(height_px=28, width_px=28, channels=1))
    assert [node.op_type for node in graph.proto.graph.node] == [
        "Transpose", "Cast", "Mul", "Sub", "Div", "Conv", "Relu", "MaxPool", "Conv", "Relu", "MaxPool",
        "Reshape", "Gemm", "Relu", "Gemm", "Relu", "Gemm", "Softmax",
    ]  # fmt: skip


SCRIPT = """
import hashlib, sys, torch, torchvision
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Preprocessing
from convoy.export.graph.exporting import to_onnx

def export(name):
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    class Pixels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network
        def forward(self, image):
            return self.network(image.permute(0, 3, 1, 2).float() / 255)
    proto = to_onnx(Pixels().eval(), ImageSpec(height_px=32, width_px=32, channels=3)).proto
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()

digests = [export(name) for name in sys.argv[1:]]
print(digests[-1])
"""


def test_the_same_network_gives_the_same_bytes_in_any_process_and_after_other_exports():
    runs = [("0", ["shufflenet_v2_x0_5"]), ("1", ["squeezenet1_1", "shufflenet_v2_x0_5"])]
    digests = set()
    for seed, names in runs:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, *names], env={"PYTHONHASHSEED": seed, "PATH": "", "HOME": "/nowhere"},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_an_export_leaves_the_network_as_it_was():
    network = lived_in(Classifier(BODIES["residual with batch norm"][0](), 6))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = to_onnx(network, IMAGE).proto
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert to_onnx(network, IMAGE).proto.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_refused_before_anything_runs(dtype):
    network = Classifier(nn.Conv2d(3, 4, 3), 4).to(dtype).eval()
    with pytest.raises(ExportError, match=rf"expected float32 weights, found {dtype} in body\.weight: call \.float\(\) first"):
        check_network(network, IMAGE, 5)


def test_logits_of_another_precision_are_refused():
    network = Classifier(nn.Conv2d(3, 4, 3), 4).eval()
    half = Chain(lambda self, x: self.inner(x).half(), inner=network).eval()
    with pytest.raises(ExportError, match=r"float32 \(2, 5\) for 2 images; found torch.float16 \(2, 5\)"):
        check_network(half, IMAGE, 5)


def test_weights_that_no_file_can_hold_are_refused(monkeypatch):
    network = lived_in(Classifier(nn.Conv2d(3, 4, 3), 4))
    proto = to_onnx(network, IMAGE).proto
    n_bytes = sum(len(initializer.raw_data) for initializer in proto.graph.initializer)
    monkeypatch.setattr(exporting, "MAX_WEIGHTS_BYTES", n_bytes)
    assert to_onnx(network, IMAGE).proto == proto
    monkeypatch.setattr(exporting, "MAX_WEIGHTS_BYTES", n_bytes - 1)
    with pytest.raises(ExportError, match=f"at most {n_bytes - 1:,} bytes.*2 GiB at most.*found {n_bytes:,}"):
        to_onnx(network, IMAGE)


def test_the_limit_of_weights_is_what_protobuf_can_write():
    assert exporting.MAX_WEIGHTS_BYTES < 2**31 - 1 == onnx.checker.MAXIMUM_PROTOBUF


def test_training_mode_is_refused():
    network = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()), 4).eval()
    network.body[1].train()
    with pytest.raises(ExportError, match=r"found body\.1 in training mode: call \.eval\(\) first"):
        to_onnx(network, IMAGE)
