"""``convoy export`` and ``convoy validate`` as a person calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from torch import nn

from convoy.cli import export as export_command
from convoy.cli import validate as validate_command
from convoy.contract.bundle import Bundle
from convoy.contract.errors import ConvoyError, DataError, ExportError, SignatureError, UsageError, ValidationFailedError
from convoy.training.data import load_dataset
from convoy.training.recipes import get_recipe
from convoy.training.run import train
from convoy.training.run_folder import write_run

LABELS = ("ant", "bee", "cat")
FACTORY = """
import torch
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def call(command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def export(*arguments: object) -> Result:
    return call(export_command.command, *arguments)


def validate(*arguments: object) -> Result:
    return call(validate_command.command, *arguments)


def error_of(result: Result, kind: type[ConvoyError]) -> str:
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet5 after one epoch on the digits that come along."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = get_recipe("lenet5", assignments=["epochs=1"])
    write_run(folder, train(recipe, load_dataset("digits")))
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's own network: net.py, weights.pt, model.onnx with a fixed batch and a softmax, labels.txt, samples."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "net.py").write_text(FACTORY)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    torch.save(network.state_dict(), folder / "weights.pt")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    rng = np.random.default_rng(0)
    np.savez(folder / "samples.npz", image=rng.integers(0, 256, (110, 12, 12, 3), np.uint8), label=rng.integers(0, 3, 110))
    np.savez(folder / "training.npz", image=rng.integers(0, 256, (64, 12, 12, 3), np.uint8), label=rng.integers(0, 3, 64))
    weights = {name: numpy_helper.from_array(value.numpy(), name) for name, value in network.state_dict().items()}
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["x", "0.weight", "0.bias"], ["c"]),
            node("Relu", ["c"], ["r"]),
            node("GlobalAveragePool", ["r"], ["g"]),
            node("Flatten", ["g"], ["f"]),
            node("Gemm", ["f", "4.weight", "4.bias"], ["y"], transB=1),
            node("Softmax", ["y"], ["p"], axis=1),
        ],
        "foreign",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 12, 12])],
        [onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, [1, 3])],
        list(weights.values()),
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=6), folder / "model.onnx")
    return folder


def options_of(foreign: Path, spec: str = "imagenet") -> tuple[object, ...]:
    return ("--labels", foreign / "labels.txt", "--samples", foreign / "samples.npz", "--max-batch-size", 8, "--preprocess", spec)


def test_a_run_is_exported_validated_again_and_its_damage_located(run_dir, tmp_path):
    done = export(run_dir, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdict"] == "passed"
    again = validate(tmp_path / "out", "--run", run_dir)
    assert again.exit_code == 0, again.output
    assert "now: passed; recorded at export: passed" in again.output

    model = onnx.load(tmp_path / "out" / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("c3.weight"))
    array = numpy_helper.to_array(weight).copy()
    array[3] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    found = validate(tmp_path / "damaged.onnx", "--run", run_dir, "--json")
    error_of(found, ValidationFailedError)
    document = json.loads(found.stdout)
    assert document["verdict"] == "failed"
    assert document["fault"]["module"].endswith("c3")
    assert "c3.weight" in document["fault"]["cause"]
    shown = validate(tmp_path / "damaged.onnx", "--run", run_dir).stdout
    n_failed = sum(check["verdict"] == "failed" for check in document["checks"])
    assert shown.count("  FAILED ") == 6 < n_failed
    assert f"... and {n_failed - 6} more that did not pass: --json prints all of them" in shown
    assert shown.index("  passed ") < shown.index("first fault: ") < shown.index("  FAILED ")


def test_a_lower_precision_of_a_run_is_calibrated_on_its_training_images(run_dir, tmp_path):
    done = export(run_dir, "--precision", "int8", "--max-accuracy-drop", 0.05, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "int8 beside float32" in done.output
    report = Bundle.open(tmp_path / "out").report
    assert report.precision is not None
    assert "train" in report.precision.calibration


@pytest.mark.parametrize("way", ["onnx", "torch"])
def test_what_others_made_is_taken_up_and_deployable(foreign, tmp_path, way, monkeypatch):
    monkeypatch.chdir(foreign)
    source = ("--onnx", "model.onnx") if way == "onnx" else ("--torch", "net.py:build", "--weights", "weights.pt")
    spec = "imagenet" if way == "onnx" else "imagenet size=12"
    done = export(*source, *options_of(foreign, spec), "--out", tmp_path / "out", "--name", "mine")
    assert done.exit_code == 0, done.output
    bundle = Bundle.open(tmp_path / "out")
    bundle.require_passed()
    assert bundle.manifest.origin is not None
    assert bundle.manifest.origin.kind == way
    assert bundle.manifest.labels == LABELS
    assert bundle.report.source == ("onnx" if way == "onnx" else "pytorch")
    uncovered = {check.name for check in bundle.report.checks if check.verdict == "uncovered"}
    assert ("the network behind the file" in uncovered) == (way == "onnx")


def test_both_ways_give_the_same_answers(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(foreign)
    export("--onnx", "model.onnx", *options_of(foreign), "--out", tmp_path / "a")
    export("--torch", "net.py:build", "--weights", "weights.pt", *options_of(foreign, "imagenet size=12"), "--out", tmp_path / "b")
    first, second = (Bundle.open(tmp_path / name).goldens() for name in "ab")
    np.testing.assert_array_equal(first.inputs["image"], second.inputs["image"])
    np.testing.assert_allclose(first.outputs["logits"], second.outputs["logits"], atol=1e-5)


def test_int8_of_a_foreign_network_wants_training_images(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(foreign)
    source = ("--torch", "net.py:build", "--weights", "weights.pt", *options_of(foreign, "imagenet size=12"), "--precision", "int8")
    assert "--calibration" in error_of(export(*source, "--out", tmp_path / "out"), UsageError)
    calibration = ("--calibration", foreign / "training.npz", "--max-accuracy-drop", 0.3)
    done = export(*source, *calibration, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "found none"),
        (["run", "--onnx", "model.onnx"], "found RUN_DIR and --onnx"),
        (["--onnx", "model.onnx"], "--onnx needs --labels, --preprocess, --samples too"),
        (["run", "--weights", "weights.pt"], "--weights: not with RUN_DIR"),
        (["run", "--output", "y"], "--output: not with RUN_DIR"),
        (["run", "--preprocess", "imagenet"], "--preprocess: not with RUN_DIR"),
        (["model.onnx"], "taken up by --onnx model.onnx"),
        (["run", "--max-accuracy-drop", "0.1"], "fp32 costs nothing"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(arguments, message, foreign, monkeypatch):
    monkeypatch.chdir(foreign)
    assert message in error_of(export(*arguments), UsageError)


def test_calibration_without_int8_is_refused(foreign, monkeypatch):
    monkeypatch.chdir(foreign)
    asked = ("--torch", "net.py:build", *options_of(foreign, "imagenet size=12"), "--calibration", "training.npz")
    assert "fixes the ranges of --precision int8" in error_of(export(*asked), UsageError)


def test_a_wrong_pair_fails_and_no_node_is_blamed(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(foreign)
    asked = ("--onnx", "model.onnx", *options_of(foreign), "--out", tmp_path / "out", "--pairs", tmp_path)
    assert "expected inputs with outputs" in error_of(export(*asked), DataError)
    pair = tmp_path / "test_data_set_0"
    pair.mkdir()
    for name, shape in (("input_0", (1, 3, 12, 12)), ("output_0", (1, 3))):
        tensor = numpy_helper.from_array(np.full(shape, 0.7, np.float32))
        (pair / f"{name}.pb").write_bytes(tensor.SerializeToString())
    assert "reference pair test_data_set_0" in error_of(export(*asked), ValidationFailedError)
    assert Bundle.open(tmp_path / "out").report.fault is None


def test_labels_that_do_not_fit_the_file_are_refused(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(foreign)
    (tmp_path / "labels.txt").write_text("ant\nbee\n")
    arguments = ("--preprocess", "imagenet", "--samples", foreign / "samples.npz", "--labels", tmp_path / "labels.txt")
    message = error_of(export("--onnx", "model.onnx", *arguments, "--out", tmp_path / "out"), ConvoyError)
    assert "3" in message
    assert "2" in message
    assert not (tmp_path / "out").exists()


def test_a_wrong_key_is_refused_before_any_work(run_dir, tmp_path):
    (tmp_path / "key.pem").write_text("no key")
    error_of(export(run_dir, "--sign", tmp_path / "key.pem", "--out", tmp_path / "out"), SignatureError)
    assert not (tmp_path / "out").exists()


def test_an_encrypted_key_takes_its_passphrase_from_the_environment(run_dir, tmp_path, signing_key, monkeypatch):
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(signing_key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"open sesame")
    form = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (tmp_path / "key.pem").write_bytes(form)
    asked = (run_dir, "--sign", tmp_path / "key.pem", "--out", tmp_path / "out")
    assert "set CONVOY_KEY_PASSPHRASE" in error_of(export(*asked), UsageError)
    monkeypatch.setenv("CONVOY_KEY_PASSPHRASE", "open sesame")
    done = export(*asked)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "model.sig").is_file()


def test_a_signed_export_verifies_with_its_key_alone(run_dir, tmp_path, signing_key):
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(signing_key.read_bytes(), None)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = tmp_path / "public.pem"
    public.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, form))
    done = export(run_dir, "--sign", signing_key, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "signed by the owner of" in validate(tmp_path / "out", "--verify", public).output
    (tmp_path / "out" / "model.sig").unlink()
    error_of(validate(tmp_path / "out", "--verify", public), SignatureError)


def test_a_file_without_a_run_says_what_is_missing(foreign):
    assert "--run" in error_of(validate(foreign / "model.onnx"), UsageError)


def test_a_file_that_is_no_model_is_refused(run_dir, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"PK\x03\x04 a zip archive")
    assert "expected an ONNX file" in error_of(validate(tmp_path / "model.onnx", "--run", run_dir), ExportError)


def test_the_help_shows_the_three_ways_line_by_line():
    lines = [line.strip() for line in export("--help").output.splitlines()]
    assert sum(line.startswith("convoy export ") for line in lines) == 3
