"""Foreign files of many forms end in one served interface, and answer as they did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convoy.contract.errors import ExportError, UsageError
from convoy.export.adopt.adoption import AdoptedModel, adopt_onnx, take_up
from convoy.export.adopt.preprocess import Preprocess, parse_preprocess
from convoy.export.adopt.source import OnnxSource

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])


def adopt(model: onnx.ModelProto, spec: str = "imagenet", classes: int = 5, **options) -> AdoptedModel:
    options = {"max_batch_size": 8, "title": "foreign", **options}
    return take_up(model.SerializeToString(), parse_preprocess(spec), classes, **options)


def nchw(images: np.ndarray) -> np.ndarray:
    """ImageNet's preprocessing by hand: float32 (n, 3, H, W)."""
    return ((images / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def assert_answers(run, adopted: AdoptedModel, images: np.ndarray, logits: np.ndarray, batch_sizes=(1, 2, 7), atol=1e-5) -> None:
    for size in batch_sizes:
        found = [run(adopted.model, image=images[i : i + size]) for i in range(0, len(images), size)]
        np.testing.assert_allclose(np.concatenate([part["logits"] for part in found]), logits, atol=atol, rtol=1e-4)
        np.testing.assert_allclose(np.concatenate([part["probabilities"] for part in found]), softmax(logits), atol=atol)


def assert_interface(model: bytes, dims: list[int], classes: int) -> None:
    proto = onnx.load_model_from_string(model)
    onnx.checker.check_model(proto, full_check=True)
    (value,) = proto.graph.input
    shape = value.type.tensor_type.shape.dim
    assert (value.name, value.type.tensor_type.elem_type) == ("image", TensorProto.UINT8)
    assert shape[0].dim_param == "batch"
    assert [dim.dim_value for dim in shape[1:]] == dims
    for output, name in zip(proto.graph.output, ("logits", "probabilities"), strict=True):
        assert (output.name, output.type.tensor_type.elem_type) == (name, TensorProto.FLOAT)
        assert output.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert output.type.tensor_type.shape.dim[1].dim_value == classes
    assert 4 <= proto.ir_version <= 10


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
@pytest.mark.parametrize("batch", [1, "N"])
def test_each_opset_ends_in_the_same_interface(net, run, images, opset, batch):
    foreign = net(opset).features()
    foreign.add("Flatten", axis=1)
    model = foreign.head().model([batch, 3, 8, 9], ir=10 if opset == 21 else None)
    adopted = adopt(model)
    assert_interface(adopted.model, [8, 9, 3], 5)
    assert adopted.opset_version == opset
    expected = np.concatenate([run(model, data=row)[foreign.value] for row in np.split(nchw(images), len(images))])
    assert_answers(run, adopted, images, expected)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
def test_softmax_behind_a_view_gives_way_to_its_logits(net, run, images, opset):
    """As SqueezeNet and the model zoo's DenseNet end: (N, K, 1, 1), softmax, flattened."""
    foreign = net(opset).features()
    foreign.add("Conv", foreign.weights(5, 4, 1, 1))
    logits = foreign.add("GlobalAveragePool")
    foreign.add("Softmax", axis=1)
    foreign.squeeze([2, 3], out="prob")
    model = foreign.model([1, 3, 8, 9])
    adopted = adopt(model)
    proto = onnx.ModelProto.FromString(model.SerializeToString())
    proto.graph.output.append(onnx.ValueInfoProto(name=logits))
    expected = np.concatenate([run(proto, data=row)[logits].reshape(1, 5) for row in np.split(nchw(images), len(images))])
    assert_answers(run, adopted, images, expected)
    assert [node.op_type for node in onnx.load_model_from_string(adopted.model).graph.node].count("Softmax") == 1
    assert any("softmax" in remark for remark in adopted.remarks)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [([1, 8, 9, 3], "imagenet"), (["n", "h", "w", 3], "imagenet size=8x9"), (["n", 8, 9, "c"], "imagenet layout=nhwc")],
)
def test_channels_last_is_seen_or_told(net, run, images, shape, spec):
    foreign = net(11)
    foreign.add("Transpose", perm=[0, 3, 1, 2])
    foreign.features().add("Flatten")
    model = foreign.head().model(shape)
    adopted = adopt(model, spec)
    feed = np.ascontiguousarray(nchw(images).transpose(0, 2, 3, 1))
    expected = np.concatenate([run(model, data=row)[foreign.value] for row in np.split(feed, len(images))])
    assert_interface(adopted.model, [8, 9, 3], 5)
    assert_answers(run, adopted, images, expected)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_caffe_pixels_in_either_order_of_channels(net, run, images, color):
    foreign = net(9).features()
    foreign.add("Flatten")
    model = foreign.head().model([1, 3, 8, 9])
    adopted = adopt(model, f"mean=10,20,30 std=2,3,4 range=255 color={color}")
    given = images[..., ::-1] if color == "bgr" else images
    feed = ((given - np.array([10.0, 20, 30])) / np.array([2.0, 3, 4])).transpose(0, 3, 1, 2).astype(np.float32)
    expected = np.concatenate([run(model, data=row)[foreign.value] for row in np.split(feed, len(images))])
    assert_answers(run, adopted, images, expected, atol=1e-3)


def test_grey_without_an_axis_of_channels(net, run, images):
    foreign = net(13)
    foreign.unsqueeze([1])
    foreign.features(channels=1).add("Flatten")
    model = foreign.head().model(["N", 8, 9])
    adopted = adopt(model, "mnist")
    grey = images[..., :1]
    expected = run(model, data=((grey[..., 0] / 255 - 0.1307) / 0.3081).astype(np.float32))[foreign.value]
    assert adopted.image.channels == 1
    assert_answers(run, adopted, grey, expected)


def test_three_equal_channels_for_a_network_of_grey_images(net, run, images):
    foreign = net(13).features()
    foreign.add("Flatten")
    model = foreign.head().model(["N", 3, 8, 9])
    adopted = adopt(model, "0..1 color=grey")
    grey = images[..., :1]
    expected = run(model, data=np.repeat(grey / 255, 3, axis=3).transpose(0, 3, 1, 2).astype(np.float32))[foreign.value]
    assert adopted.image.channels == 1
    assert_answers(run, adopted, grey, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_flat_pixels_of_a_dense_network(net, run, images, channels):
    foreign = net(11)
    foreign.add("Gemm", foreign.weights(72 * channels, 16))
    foreign.add("Relu")
    model = foreign.head(16).model(["N", 72 * channels])
    adopted = adopt(model, f"0..1 size=8x9 {'layout=nhwc' if channels == 3 else ''}")
    given = images[..., :channels]
    expected = run(model, data=(given.reshape(len(images), -1) / 255).astype(np.float32))[foreign.value]
    assert_answers(run, adopted, given, expected)


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 2e-2), ("float64", 1e-5)])
def test_other_float_types_are_cast_at_the_border(net, run, images, dtype, atol):
    foreign = net(13)
    foreign.add("GlobalAveragePool") if dtype == "float64" else foreign.features(dtype=np.float16)
    foreign.add("Flatten")
    model = foreign.head(3 if dtype == "float64" else 48, dtype=dtype).model(["N", 3, 8, 9], dtype=dtype)
    if dtype == "float64":
        model.graph.node[0].CopyFrom(
            helper.make_node("ReduceMean", ["data"], [model.graph.node[0].output[0]], axes=[2, 3], keepdims=1)
        )
    adopted = adopt(model)
    expected = run(model, data=nchw(images).astype(dtype))[foreign.value].astype(np.float32)
    assert_answers(run, adopted, images, expected, atol=atol)


def test_a_network_of_raw_bytes_keeps_its_own_preprocessing(net, run, images):
    foreign = net(11)
    foreign.add("Cast", to=TensorProto.FLOAT)
    foreign.add("Mul", foreign.constant(1 / 255))
    foreign.add("Transpose", perm=[0, 3, 1, 2])
    foreign.features().add("Flatten")
    model = foreign.head().model([1, 8, 9, 3], dtype="uint8")
    adopted = adopt(model, "raw")
    expected = np.concatenate([run(model, data=row)[foreign.value] for row in np.split(images, len(images))])
    assert_answers(run, adopted, images, expected)
    assert onnx.load_model_from_string(adopted.model).graph.node[0].op_type == "Cast"  # nothing was put before it
    with pytest.raises(UsageError, match="say raw"):
        adopt(model, "imagenet")


def test_initialisers_among_the_inputs_become_constants(net, run, images):
    foreign = net(7).features()
    foreign.add("Flatten")
    model = foreign.head().model([1, 3, 8, 9], ir=3, constants_as_inputs=True)
    adopted = adopt(model)
    assert_interface(adopted.model, [8, 9, 3], 5)
    expected = np.concatenate([run(model, data=row)[foreign.value] for row in np.split(nchw(images), len(images))])
    assert_answers(run, adopted, images, expected)


def test_a_fixed_batch_of_four_is_freed(net, run, images):
    foreign = net(13).features()
    foreign.reshape(4, -1, name="baked")
    model = foreign.head().model([4, 3, 8, 9])
    adopted = adopt(model)
    feed = np.concatenate([nchw(images), nchw(images)[:3]])
    expected = np.concatenate([run(model, data=feed[i : i + 4])[foreign.value] for i in (0, 4, 8)])[:9]
    assert_answers(run, adopted, images, expected)
    assert adopted.source.batch_size == 4
    np.testing.assert_allclose(adopted.source.float32(images, 7)["logits"], expected, atol=1e-6)


def branches(net, *, by_pixels: bool = False) -> tuple[onnx.ModelProto, str]:
    """If, whose branches read values of the outer graph called as our own outputs, by the image's width or by its pixels."""
    foreign = net(13).features()
    foreign.add("Flatten", out="image")
    foreign.head(out="logits")
    if by_pixels:
        foreign.add("ReduceMax", reads=["data"], keepdims=0, out="largest", name="largest_pixel")
        foreign.add("Greater", reads=["largest", foreign.constant(2.0)], out="probabilities")
    else:
        foreign.add("Shape", reads=["data"], out="shape")
        foreign.add("Gather", reads=["shape", foreign.constant(3, dtype=np.int64)], out="width")
        foreign.add("Greater", reads=["width", foreign.constant(5, dtype=np.int64)], out="probabilities")
    twice = helper.make_node("Add", ["logits", "logits"], ["twice"])
    same = helper.make_node("Identity", ["logits"], ["same"])
    then, other = (
        helper.make_graph([node], node.op_type, [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [1, 5])])
        for node in (twice, same)
    )
    foreign.add("If", reads=["probabilities"], then_branch=then, else_branch=other, out="scores")
    return foreign.model([1, 3, 8, 9]), "scores"


def test_a_branch_taken_by_the_pixels_of_the_whole_batch_is_named(net, run, images):
    model, output = branches(net, by_pixels=True)
    with pytest.raises(ExportError, match=r"'largest_pixel' \(ReduceMax\).*--max-batch-size 1"):
        adopt(model)
    adopted = adopt(model, max_batch_size=1)
    dark = images // 4  # the other branch
    for given in (images, dark):
        expected = np.concatenate([run(model, data=row)[output] for row in np.split(nchw(given), len(given))])
        assert_answers(run, adopted, given, expected, batch_sizes=(1,))


def test_control_flow_survives_pruning_and_renaming(net, run, images):
    model, output = branches(net)
    adopted = adopt(model)
    expected = np.concatenate([run(model, data=row)[output] for row in np.split(nchw(images), len(images))])
    assert_answers(run, adopted, images, expected)


def test_a_loop_keeps_what_it_takes_from_outside(net, run, images):
    foreign = net(11).features()
    foreign.add("Flatten")
    logits = foreign.head().value
    body = helper.make_graph(
        [helper.make_node("Add", ["carried", logits], ["next"]), helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [1, 5]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, 5]),
        ],
    )
    trips, yes = foreign.constant(3, dtype=np.int64), foreign.constant(True, dtype=bool)
    foreign.add("Loop", reads=[trips, yes, logits], body=body, out="sum")
    model = foreign.model([1, 3, 8, 9])
    adopted = adopt(model)
    expected = np.concatenate([run(model, data=row)["sum"] for row in np.split(nchw(images), len(images))])
    assert_answers(run, adopted, images, expected)


def test_other_outputs_are_left_out_with_the_nodes_that_make_them(net, run, images):
    foreign = net(11).features()
    features = foreign.value
    foreign.add("Flatten")
    logits = foreign.head().value
    foreign.add("Sigmoid", reads=[features], out="mask")
    model = foreign.model([1, 3, 8, 9], {"mask": [1, 4, 3, 4], logits: [1, 5]})
    adopted = adopt(model)
    kept = onnx.load_model_from_string(adopted.model)
    assert "Sigmoid" not in [node.op_type for node in kept.graph.node]
    assert any("'mask'" in remark for remark in adopted.remarks)
    expected = np.concatenate([run(model, data=row)[logits] for row in np.split(nchw(images), len(images))])
    assert_answers(run, adopted, images, expected)


def test_licence_and_author_are_kept_and_the_rest_of_the_metadata_is_not(net):
    foreign = net(13).features()
    foreign.add("Flatten")
    model = foreign.head().model(["N", 3, 8, 9], doc_string="a page of text")
    helper.set_model_props(model, {"License": "MIT", "author": "a person", "secret_path": "/somewhere/a/person"})
    model.graph.node[0].doc_string = "File '/somewhere/a/person/train.py', line 3"
    adopted = adopt(model)
    kept = onnx.load_model_from_string(adopted.model)
    assert {entry.key: entry.value for entry in kept.metadata_props} == {"License": "MIT", "author": "a person"}
    assert b"/somewhere/a/person" not in adopted.model
    assert b"a page of text" not in adopted.model
    assert adopted.producer == "somebody"
    assert all(node.name for node in kept.graph.node)
    assert len({node.name for node in kept.graph.node}) == len(kept.graph.node)


def test_the_same_file_gives_the_same_bytes_here_and_contained(net, images):
    model, _ = branches(net)
    data = model.SerializeToString()
    contained = adopt_onnx(data, parse_preprocess("imagenet"), 5, max_batch_size=8, title="foreign", samples=images)
    here = adopt(model)
    assert contained.model == here.model
    assert contained.remarks == here.remarks
    assert contained.source == here.source
    np.testing.assert_array_equal(contained.source.float32(images, 4)["logits"], here.source.float32(images, 4)["logits"])


def test_what_the_contained_process_refuses_arrives_as_its_own_kind_of_error(net):
    foreign = net(13).features()
    foreign.add("Flatten")
    model = foreign.head().model(["N", 3, "h", "w"]).SerializeToString()
    with pytest.raises(UsageError, match="size=HEIGHTxWIDTH"):
        adopt_onnx(model, parse_preprocess("imagenet"), 5, max_batch_size=8)
    with pytest.raises(ExportError, match="7 values an image"):
        adopt_onnx(model, parse_preprocess("imagenet size=8x9"), 7, max_batch_size=8)


def test_wrong_preprocessing_in_the_wrapped_file_shows_against_the_source(net, run, images):
    """The source computes it apart from the graph: a constant changed in the file is a difference, not a common fault."""
    foreign = net(13).features()
    foreign.add("Flatten")
    adopted = adopt(foreign.head().model(["N", 3, 8, 9]))
    proto = onnx.load_model_from_string(adopted.model)
    truth = adopted.source.float32(images, 4)["logits"]
    np.testing.assert_allclose(run(proto, image=images)["logits"], truth, atol=1e-5)
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("convoy/normalised"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
    assert np.abs(run(proto, image=images)["logits"] - truth).max() > 1e-3


def test_a_wrapper_that_differs_from_the_source_is_refused_at_once(net, monkeypatch):
    foreign = net(13).features()
    foreign.add("Flatten")
    model = foreign.head().model(["N", 3, 8, 9])
    monkeypatch.setattr(
        "convoy.export.adopt.wrapping._normalise", lambda writer, *_: writer.add("Cast", "pixels", to=TensorProto.FLOAT)
    )
    with pytest.raises(ExportError, match="differs from the one that was taken up"):
        adopt(model)


def test_one_image_without_a_batch_axis_is_served_one_at_a_time(net, run, images):
    foreign = net(13)
    foreign.unsqueeze([0])
    foreign.features().reshape(1, 48)
    foreign.head()
    foreign.squeeze([0])
    model = foreign.model([3, 8, 9], {foreign.value: [5]})
    with pytest.raises(ExportError, match="--max-batch-size 1"):
        adopt(model)
    adopted = adopt(model, max_batch_size=1)
    assert_interface(adopted.model, [8, 9, 3], 5)
    expected = np.stack([run(model, data=row[0])[foreign.value] for row in np.split(nchw(images), len(images))])
    assert_answers(run, adopted, images, expected, batch_sizes=(1,))
    np.testing.assert_allclose(adopted.source.float32(images, 1)["logits"], expected, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_cannot_be_freed_is_served_one_at_a_time(net, run, images, batch):
    foreign = net(13).features()
    foreign.reshape(batch, 48)
    foreign.add("Add", foreign.weights(batch, 48))  # another bias for each place in the batch
    if batch == 1:
        foreign.squeeze([0])
        foreign.unsqueeze([0])
    model = foreign.head().model([batch, 3, 8, 9])
    with pytest.raises(ExportError, match=r"--max-batch-size 1 serves it"):
        adopt(model)
    adopted = adopt(model, max_batch_size=1)
    feed = nchw(images)
    expected = np.concatenate([run(model, data=np.repeat(feed[i : i + 1], batch, axis=0))[foreign.value][:1] for i in range(9)])
    assert_answers(run, adopted, images, expected, batch_sizes=(1,))


def test_an_old_opset_and_a_new_one_are_refused(net):
    for opset in (6, 22):
        foreign = net(opset)
        foreign.add("Flatten")
        model = foreign.head(216).model(["N", 3, 8, 9], ir=8)
        with pytest.raises(ExportError, match=f"opset 7 to 21, found {opset}"):
            adopt(model)


def test_operators_of_trees_and_tables_are_refused_with_a_reason(net):
    foreign = net(13)
    foreign.add("Flatten")
    model = foreign.head(216).model(["N", 3, 8, 9])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    model.graph.node.append(helper.make_node("ArrayFeatureExtractor", ["data", "data"], ["x"], domain="ai.onnx.ml"))
    with pytest.raises(ExportError, match=r"ArrayFeatureExtractor of ai\.onnx\.ml"):
        adopt(model)


def test_a_second_input_that_wants_a_value_is_refused_by_name(net):
    foreign = net(13).features()
    foreign.add("Flatten")
    model = foreign.head().model(["N", 3, 8, 9])
    model.graph.input.append(helper.make_tensor_value_info("keep_prob", TensorProto.FLOAT, []))
    with pytest.raises(ExportError, match="keep_prob"):
        adopt(model)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "keep_prob"))
    assert_interface(adopt(model).model, [8, 9, 3], 5)


@pytest.mark.parametrize(
    ("shape", "spec", "says"),
    [
        (["N", 3, 8, 9], "imagenet size=10x9", "fixes the image's height at 8"),
        (["N", 3, 8, 9], "mean=0.5,0.5 std=1", "one mean and one std"),
        (["N", 4, 8, 9], "imagenet layout=nchw", "1 or 3 channels, found 4"),
        (["N", 3, 8, 3], "imagenet", None),
        ([3, 8, 9, 3, 1], "imagenet", "5 axes"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(net, shape, spec, says):
    foreign = net(13)
    foreign.add("Flatten")
    model = foreign.head(216).model(shape, {foreign.value: ["N", 5]})
    with pytest.raises((UsageError, ExportError), match=says or "layout"):
        adopt(model, spec)


LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.parametrize("name", ["light_squeezenet", "light_inception_v1"])
def test_published_topologies_of_opset_9_are_taken_up(name, run):
    """ONNX's own test data: the graphs of the model zoo, IR 3, a fixed batch, Reshape with a leading 1, weights made by nodes."""
    model = (LIGHT / f"{name}.onnx").read_bytes()
    adopted = take_up(model, parse_preprocess("caffe"), 1000, max_batch_size=8, title=name)
    assert_interface(adopted.model, [224, 224, 3], 1000)
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    assert run(adopted.model, image=images)["probabilities"].shape == (2, 1000)


def test_the_source_is_a_value(net, images):
    model, _ = branches(net)
    source = adopt(model).source
    assert isinstance(source, OnnxSource)
    assert source.kind == "onnx"
    assert source.preprocess == Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
