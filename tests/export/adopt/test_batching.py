"""A batch that a file bakes in is freed where that is right, and refused by the node's name where it is not."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn
from torchvision.models import shufflenet_v2_x0_5
from torchvision.models.vision_transformer import VisionTransformer

from convoy.contract.errors import ExportError
from convoy.export.adopt.adoption import AdoptedModel, take_up
from convoy.export.adopt.preprocess import parse_preprocess
from convoy.export.adopt.proof import first_mixer


def adopt(model: onnx.ModelProto | bytes, classes: int = 5, **options) -> AdoptedModel:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return take_up(data, parse_preprocess("0..1"), classes, **{"max_batch_size": 8, "title": "foreign", **options})


def assert_batches_agree(run, model: onnx.ModelProto, adopted: AdoptedModel, images: np.ndarray, output: str) -> None:
    """Against the foreign file itself, one image at a time, fed by hand."""
    feed = (images / 255).transpose(0, 3, 1, 2).astype(np.float32)
    expected = np.concatenate([run(model, data=row)[output].reshape(1, -1) for row in np.split(feed, len(images))])
    assert np.ptp(expected, axis=0).max() > 1e-3  # images that all get one answer would prove nothing
    for size in (1, 2, 9):
        found = np.concatenate([run(adopted.model, image=images[i : i + size])["logits"] for i in range(0, 9, size)])
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("opset", [7, 11, 13, 21])
@pytest.mark.parametrize("dims", [(1, -1), (1, 48), (-1, 48)])
def test_a_reshape_with_a_leading_one_is_freed(net, run, images, opset, dims):
    foreign = net(opset).features()
    foreign.reshape(*dims, name="flatten")
    model = foreign.head().model([1, 3, 8, 9], ir=8)
    adopted = adopt(model)
    assert_batches_agree(run, model, adopted, images, foreign.value)
    assert any("'flatten' (Reshape)" in remark for remark in adopted.remarks) == (dims[0] == 1)


def test_a_baked_reshape_behind_an_open_batch_is_freed_too(net, run, images):
    foreign = net(13).features()
    foreign.reshape(1, -1)
    model = foreign.head().model(["N", 3, 8, 9])
    adopted = adopt(model)
    assert adopted.source.batch_size == 1  # the file itself cannot take more
    assert_batches_agree(run, model, adopted, images, foreign.value)


def test_one_shape_that_two_nodes_share_is_changed_for_the_one_that_carries_the_batch(net, run, images):
    foreign = net(13).features()
    shape = foreign.constant([1, 48], dtype=np.int64, name="shared")
    flat = foreign.add("Reshape", shape, name="of_the_batch")
    bias = foreign.add("Reshape", reads=[foreign.weights(4, 12), shape], name="of_a_constant")
    foreign.add("Add", reads=[flat, bias])
    model = foreign.head().model([1, 3, 8, 9])
    assert_batches_agree(run, model, adopt(model), images, foreign.value)


def test_channel_shuffle_is_freed(net, run, images):
    foreign = net(9).features()
    foreign.reshape(1, 2, 2, 3, 4)
    foreign.add("Transpose", perm=[0, 2, 1, 3, 4])
    foreign.reshape(1, 4, 3, 4)
    foreign.add("Flatten")
    model = foreign.head().model([1, 3, 8, 9])
    assert_batches_agree(run, model, adopt(model), images, foreign.value)


def test_a_batch_in_the_middle_and_one_merged_with_other_axes_are_followed(net, run, images):
    """As attention is written with the sequence first: (T, N, E), (T, N * heads, E / heads), (T * N, E)."""
    foreign = net(17).features()
    foreign.reshape(1, 4, 12)
    foreign.add("Transpose", perm=[2, 0, 1])  # (12, N, 4)
    foreign.reshape(12, 2, 2)  # two heads
    foreign.add("Transpose", perm=[1, 0, 2])  # (2 N, 12, 2)
    foreign.add("Softmax", axis=-1)
    foreign.add("Transpose", perm=[1, 0, 2])
    foreign.reshape(12, 4)  # (12 N, 4)
    foreign.add("Gemm", foreign.weights(4, 4))
    foreign.reshape(12, 1, 4)
    foreign.add("Transpose", perm=[1, 0, 2])
    foreign.add("Flatten")
    model = foreign.head().model([1, 3, 8, 9])
    adopted = adopt(model)
    assert_batches_agree(run, model, adopted, images, foreign.value)


@pytest.mark.parametrize("opset", [8, 13])
def test_a_class_token_is_repeated_for_the_batch(net, run, images, opset):
    foreign = net(opset).features()
    foreign.reshape(1, 4, 12)
    rows = foreign.add("Transpose", perm=[0, 2, 1])
    token = foreign.constant(np.ones((1, 1, 4)) / 3)
    foreign.add("Concat", reads=[token, rows], axis=1, name="join")
    foreign.add("Flatten")
    model = foreign.head(52).model([1, 3, 8, 9], ir=8)
    adopted = adopt(model)
    assert_batches_agree(run, model, adopted, images, foreign.value)
    assert any("'join' (Concat)" in remark for remark in adopted.remarks)


@pytest.mark.parametrize("opset", [11, 13])
def test_a_squeeze_without_axes_keeps_the_batch_of_one(net, run, images, opset):
    foreign = net(opset).features()
    foreign.add("GlobalAveragePool")
    foreign.squeeze(None)  # (4,) for one image, (N, 4) for more
    model = foreign.add("MatMul", foreign.weights(4, 5)) and foreign.model([1, 3, 8, 9], {foreign.value: [5]})
    assert_batches_agree(run, model, adopt(model), images, foreign.value)


def test_shapes_computed_from_the_input_are_folded_where_they_do_not_depend_on_the_batch(net, run, images):
    foreign = net(11).features()
    features = foreign.value
    foreign.add("Shape", reads=[features])
    channels = foreign.add("Gather", foreign.constant([1], dtype=np.int64))
    foreign.add("Div", foreign.constant([2], dtype=np.int64))
    one, pixels = foreign.constant([1], dtype=np.int64), foreign.constant([24], dtype=np.int64)
    shape = foreign.add("Concat", reads=[one, foreign.value, pixels], axis=0)
    foreign.add("Reshape", reads=[features, shape])
    foreign.add("Flatten")
    model = foreign.head().model([1, 3, 8, 9])
    assert channels
    assert_batches_agree(run, model, adopt(model), images, foreign.value)


def gather_first(foreign) -> None:
    foreign.add("Gather", foreign.constant([0], dtype=np.int64), axis=0, name="culprit")


def mean_of_batch(foreign) -> None:
    foreign.add("ReduceMean", axes=[0], keepdims=1, name="culprit")


def squeeze_batch(foreign) -> None:
    foreign.squeeze([0], name="culprit")
    foreign.unsqueeze([0])


def softmax_over_batch(foreign) -> None:
    foreign.add("Transpose", perm=[1, 0])
    foreign.add("Softmax", axis=1, name="culprit")
    foreign.add("Transpose", perm=[1, 0])


def normalised_by_batch(foreign) -> None:
    mean = foreign.add("ReduceMean", axes=[0], keepdims=1)
    foreign.add("Sub", reads=[foreign.nodes[-1].input[0], mean], name="difference")


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (gather_first, r"'culprit' \(Gather\)"),
        (mean_of_batch, r"'culprit' \(ReduceMean\)"),
        (squeeze_batch, r"'culprit' \(Squeeze\)"),
        (softmax_over_batch, r"'culprit' \(Softmax\) mixes them"),
        (normalised_by_batch, r"\(ReduceMean\)"),
    ],
)
def test_what_cannot_be_freed_is_named(net, spoil, culprit):
    foreign = net(13).features()
    foreign.add("Flatten")
    spoil(foreign)
    model = foreign.head().model([1, 3, 8, 9])
    with pytest.raises(ExportError, match=rf"{culprit}.*--max-batch-size 1"):
        adopt(model)
    assert adopt(model, max_batch_size=1).source.alone


def test_a_batch_norm_in_training_mode_is_named_where_images_mix(net):
    foreign = net(14)
    foreign.add("Conv", foreign.weights(4, 3, 3, 3), kernel_shape=[3, 3], strides=[2, 2])
    statistics = [foreign.constant(np.ones(4)) for _ in range(4)]
    foreign.nodes.append(
        helper.make_node("BatchNormalization", [foreign.value, *statistics], ["y", "m", "v"], name="bn_train", training_mode=1)
    )
    foreign.value = "y"
    foreign.add("Flatten")
    model = foreign.head().model(["N", 3, 8, 9])
    with pytest.raises(ExportError, match=r"in batches of 2 images get other answers than alone: the node 'bn_train'"):
        adopt(model)


def test_the_first_mixer_is_found_by_comparing_values_alone_and_together(net, images):
    foreign = net(13)
    foreign.add("Transpose", perm=[0, 3, 1, 2])
    model = foreign.model([1], {foreign.value: [1]})
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], name="cast", to=1),
        helper.make_node("ReduceMax", ["f"], ["m"], name="maximum", keepdims=0),
        helper.make_node("Div", ["f", "m"], ["scaled"], name="scale"),
    ]
    graph = helper.make_graph(
        nodes,
        "mixing",
        [helper.make_tensor_value_info("image", 2, ["n", 8, 9, 3])],
        [helper.make_tensor_value_info("scaled", 1, ["n", 8, 9, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    dark = images[:2] // np.array([1, 4], dtype=np.uint8).reshape(2, 1, 1, 1)
    assert first_mixer(model, dark) == "'maximum' (ReduceMax)"


def exported(network: nn.Module, size: int, opset: int, *, dynamo: bool) -> onnx.ModelProto:
    """What plain torch.onnx.export writes of one image: a static batch of 1."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, 3, size, size),)
        if dynamo:
            program = torch.onnx.export(network, example, dynamo=True, opset_version=opset, verbose=False, input_names=["data"])
            return program.model_proto
        torch.onnx.export(network, example, buffer, dynamo=False, opset_version=opset, input_names=["data"])
    return onnx.load_model_from_string(buffer.getvalue())


@pytest.mark.parametrize(("opset", "dynamo"), [(11, False), (17, False), (18, True)])
def test_a_shufflenet_that_torch_exported_with_one_image_takes_batches(run, opset, dynamo):
    torch.manual_seed(0)
    network = shufflenet_v2_x0_5(weights=None, num_classes=5).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.3)  # so that the images' answers lie apart
    model = exported(network, 64, opset, dynamo=dynamo)
    images = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    images[::2] //= 3
    assert_batches_agree(run, model, adopt(model), images, model.graph.output[0].name)


@pytest.mark.parametrize(("opset", "dynamo"), [(17, False), (18, True)])
def test_a_vision_transformer_that_torch_exported_with_one_image_takes_batches(run, opset, dynamo):
    torch.manual_seed(0)
    network = VisionTransformer(32, 16, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=32, num_classes=5).eval()
    nn.init.normal_(network.heads.head.weight)
    model = exported(network, 32, opset, dynamo=dynamo)
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    images[::2] //= 3
    adopted = adopt(model)
    assert_batches_agree(run, model, adopted, images, model.graph.output[0].name)
    truth = adopted.source.float64(images[:2], 1)
    assert truth.uncovered == ()
    with torch.inference_mode():
        expected = network.double()(torch.from_numpy(images[:2]).permute(0, 3, 1, 2).double() / 255).numpy()
    np.testing.assert_allclose(truth.outputs["logits"], expected, atol=1e-6)
