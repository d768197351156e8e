from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from torch import nn

from convoy.contract.errors import ExportError, UsageError
from convoy.export.gate.runtime import open_session, run_session
from convoy.export.graph.targets import check_targets
from convoy.export.precision import calibration as calibration_module
from convoy.export.precision import integer, to_int8
from convoy.export.precision.calibration import CalibrationImages
from convoy.export.precision.fidelity import Fidelity, HeldOut
from convoy.export.precision.search import MAX_TRIALS, search_sensitive
from convoy.export.precision.structure import Layer, Structure, prepare

from .conftest import Outlier


def run(model: bytes, images: np.ndarray, batch_size: int = 32, level="all") -> dict[str, np.ndarray]:
    return run_session(open_session(model, level=level), images, batch_size)


def test_int8_decides_nearly_as_float32_in_less_than_a_third_of_the_bytes(lenet5, digits):
    converted = to_int8(lenet5.model, digits.train)
    images, labels = digits.evaluation.images, digits.evaluation.labels
    expected, actual = run(lenet5.model, images), run(converted.model, images)
    accuracy = [(outputs["logits"].argmax(1) == labels).mean() for outputs in (expected, actual)]
    assert accuracy[0] > 0.93
    assert accuracy[0] - accuracy[1] <= 0.01
    assert np.abs(expected["logits"] - actual["logits"]).max() > 1e-3  # it is another computation
    assert len(converted.model) < len(lenet5.model) / 3
    # c1's noise is about the 2 % that are allowed: how the processor rounds while the network is trained decides on which side
    assert len({reason for reason in converted.kept_float32.values() if reason.startswith("sensitive")}) <= 1


def test_the_file_is_standard_qdq_with_weights_per_channel_and_float_logits(lenet5, digits):
    converted = to_int8(lenet5.model, digits.train[:96])
    proto = onnx.load_model_from_string(converted.model)
    check_targets(proto)
    source = onnx.load_model_from_string(lenet5.model)
    assert (proto.graph.input, proto.graph.output) == (source.graph.input, source.graph.output)
    assert (proto.producer_name, proto.ir_version, list(proto.opset_import)) == (
        "convoy",
        source.ir_version,
        list(source.opset_import),
    )
    assert Counter(node.domain for node in proto.graph.node).keys() <= {"", "ai.onnx"}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    maker = {name: node for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            dequantize = maker[node.input[1]]
            weight, scale = constants[dequantize.input[0]], constants[dequantize.input[1]]
            assert weight.dtype == np.int8
            assert len(scale) == weight.shape[0] > 1
            assert maker[node.input[0]].op_type == "DequantizeLinear"
    assert maker["logits"].op_type == "Gemm"
    logits = run(converted.model, digits.evaluation.images)["logits"]
    assert len(np.unique(logits)) > 1000  # quantised, they would have 256 values at most


def test_preprocessing_sees_whole_pixels(lenet5, digits):
    converted = to_int8(lenet5.model, digits.train[:96])
    source = onnx.load_model_from_string(lenet5.model)
    proto = onnx.load_model_from_string(converted.model)
    before = Structure.of(prepare(lenet5.model)).preprocessing
    reached = {"image"}
    for node in proto.graph.node:
        if reached.intersection(node.input) and node.op_type != "QuantizeLinear":
            reached.update(node.output)
    assert {"Conv", "Gemm"}.isdisjoint(node.op_type for node in proto.graph.node if reached.intersection(node.input))
    assert {node.op_type for node in source.graph.node if node.name in before} >= {"Sub", "Div"}


def test_it_runs_in_any_batch_and_the_bytes_depend_on_nothing_else(residual, digits, tmp_path):
    network = residual(nn.Identity())
    converted = to_int8(network.model, digits.train[:120])
    images = digits.evaluation.images[:21]
    outputs = [run(converted.model, images, batch_size)["logits"] for batch_size in (1, 7, 21)]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)
    np.testing.assert_allclose(outputs[2], outputs[0], atol=1e-5)

    (tmp_path / "model.onnx").write_bytes(network.model)
    np.save(tmp_path / "images.npy", digits.train[:120])
    program = (
        "import numpy as np, pathlib, sys; from convoy.export.precision import to_int8; folder = pathlib.Path(sys.argv[1]);"
        "given = (folder / 'model.onnx').read_bytes(), np.load(folder / 'images.npy');"
        "(folder / 'out').write_bytes(to_int8(*given).model)"
    )
    for seed in ("1", "2"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert (tmp_path / "out").read_bytes() == converted.model


def test_only_the_calibration_images_that_are_not_held_out_fix_the_ranges(lenet5, digits, monkeypatch):
    seen: list[np.ndarray] = []
    measure = calibration_module.measure_ranges

    def spy(model, images, method):
        seen.append(images)
        return measure(model, images, method)

    monkeypatch.setattr(integer, "measure_ranges", spy)
    given = digits.train[:90]
    to_int8(lenet5.model, given)
    parts = CalibrationImages.split(given)
    assert len(parts.ranges) == 60
    assert len(parts.held_out) == 30
    allowed = {image.tobytes() for image in parts.ranges}
    assert len(seen) == 3
    assert all(image.tobytes() in allowed for images in seen for image in images)
    together = sorted(image.tobytes() for image in np.concatenate([parts.ranges, parts.held_out]))
    assert together == sorted(image.tobytes() for image in given)


def test_the_ranges_are_those_of_the_images(lenet5, digits):
    prepared = integer.preprocess(lenet5.model)
    pixels = next(node.input[0] for node in prepared.graph.node if node.op_type == "Conv")
    black = np.zeros((32, *digits.train.shape[1:]), dtype=np.uint8)
    dark = calibration_module.measure_ranges(prepared, black, "minmax")[pixels].range_value
    real = calibration_module.measure_ranges(prepared, digits.train[:32], "minmax")[pixels].range_value
    assert dark[0] == dark[1]  # black images give one value
    assert real[1] > real[0] + 1


def test_a_layer_that_does_not_stand_quantisation_is_found_and_kept(residual, digits):
    network = residual(Outlier())
    images, labels = digits.evaluation.images, digits.evaluation.labels
    before = run(network.model, images)["logits"].argmax(1)
    everything = to_int8(network.model, digits.train, max_disagreement=1.0)
    searched = to_int8(network.model, digits.train, max_disagreement=0.01)
    assert (before == labels).mean() > 0.9
    assert (run(everything.model, images)["logits"].argmax(1) != before).mean() > 0.1
    assert (run(searched.model, images)["logits"].argmax(1) != before).mean() < 0.03
    sensitive = {name for name, reason in searched.kept_float32.items() if reason.startswith("sensitive")}
    source = onnx.load_model_from_string(network.model)
    weights = {i for node in source.graph.node if node.name in sensitive for i in node.input}
    assert any("between.down" in name for name in weights)  # it takes the outliers in
    layers = Structure.of(prepare(network.model)).layers
    assert len([layer for layer in layers if layer.name in sensitive]) <= 3 < len(layers)
    assert "layers stay in float32" in searched.remarks[1]
    assert not [name for name, reason in everything.kept_float32.items() if reason.startswith("sensitive")]


class Landscape:
    """Stands for a network: which layers are quantised decides how many answers change."""

    def __init__(self, n_layers: int, harm: dict[int, float]) -> None:
        self.layers = tuple(Layer(f"layer{i}", (f"layer{i}", f"relu{i}")) for i in range(n_layers))
        self.harm = harm
        self.conversions: list[frozenset[int]] = []

    def convert(self, kept: list[str]) -> bytes:
        quantised = frozenset(i for i in range(len(self.layers)) if f"layer{i}" not in kept)
        assert all((f"relu{i}" in kept) == (f"layer{i}" in kept) for i in range(len(self.layers)))
        self.conversions.append(quantised)
        return repr(sorted(quantised)).encode()

    def first(self, count: int) -> Landscape:
        return self

    def measure(self, model: bytes) -> Fidelity:
        harm = sum(self.harm.get(i, 0.001) for i in eval(model.decode()))
        return Fidelity(min(1.0, harm), harm)


@pytest.mark.parametrize("n_sensitive", [1, 2, 3, 5, 8, 13])
def test_the_search_keeps_exactly_the_layers_that_harm(n_sensitive):
    chosen = {int(i) for i in np.random.default_rng(n_sensitive).choice(40, n_sensitive, replace=False)}
    landscape = Landscape(40, {i: 0.2 + i / 1000 for i in chosen})
    found = search_sensitive(landscape.layers, landscape.convert, landscape, 0.05)
    assert {int(name[5:]) for name in found.in_float32 if name.startswith("layer")} == chosen
    assert found.n_layers == n_sensitive
    assert found.fidelity.disagreement <= 0.05
    assert found.n_trials == len(landscape.conversions) <= 40 + 2 * 6 + 1


def test_the_search_is_bounded_for_many_layers_and_ends_where_nothing_helps():
    landscape = Landscape(500, dict.fromkeys(range(500), 0.5))
    found = search_sensitive(landscape.layers, landscape.convert, landscape, 0.0)
    assert found.fidelity.disagreement > 0  # and says so
    assert len(landscape.conversions) == found.n_trials <= MAX_TRIALS


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((31, 28, 28, 1), dtype=np.uint8), "at least 32 training images.*found 31.*fp16"),
        (np.zeros((64, 28, 28, 1), dtype=np.float32), "raw pixels, uint8.*found float32"),
        (np.zeros((64, 784), dtype=np.uint8), r"found uint8 \(64, 784\)"),
        ([1, 2], "found list"),
    ],
)
def test_calibration_images_that_will_not_do_are_refused(lenet5, images, message):
    with pytest.raises(UsageError, match=message):
        to_int8(lenet5.model, images)


def test_nothing_is_printed_and_the_root_logger_stays_as_it_was(lenet5, digits, capfd):
    import logging

    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    to_int8(lenet5.model, digits.train[:48])
    assert capfd.readouterr() == ("", "")
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, disabled)


def test_what_is_held_out_measures_noise_and_infinity(lenet5, digits):
    held_out = HeldOut.of(lenet5.model, digits.train[:40])
    assert held_out.measure(lenet5.model) == Fidelity(0.0, 0.0)
    proto = onnx.load_model_from_string(lenet5.model)
    bias = next(tensor for tensor in proto.graph.initializer if "output.bias" in tensor.name)
    assert bias.data_type == TensorProto.FLOAT
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, dtype=np.float32), bias.name))
    assert held_out.measure(proto.SerializeToString()) == Fidelity(1.0, float("inf"))


def test_a_file_too_old_for_weights_by_channel_is_refused_with_the_way_out(lenet5, digits):
    old = onnx.load_model_from_string(lenet5.model)
    old.opset_import[0].version = 11
    with pytest.raises(ExportError, match=r"opset 13 or later.*found opset 11.*fp16"):
        integer.preprocess(old.SerializeToString())
