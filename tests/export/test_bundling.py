"""The export folder: whole or not there, with digests that tie the evidence to the file."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from convoy.contract.bundle import BUNDLE_FILES, Bundle
from convoy.contract.errors import DigestMismatchError, ExportError, UsageError
from convoy.contract.goldens import Goldens
from convoy.export import CardFacts, EvaluationSet, export_classifier
from convoy.export.gate.runtime import open_session, run_session


def export(case, out, **options) -> Bundle:
    return export_classifier(case.classifier, case.facts, case.evaluation, out, **options)


def test_an_export_is_a_bundle_that_opens_and_passed(case, tmp_path):
    bundle = export(case, tmp_path / "out")
    assert bundle.report.verdict == "passed"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*BUNDLE_FILES, "validation.html", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Bundle.open(tmp_path / "out").manifest == bundle.manifest
    assert bundle.manifest.opset_version <= 21
    assert bundle.manifest.ir_version <= 10


def test_goldens_are_pytorchs_outputs(case, tmp_path):
    goldens = export(case, tmp_path / "out").goldens()
    with torch.inference_mode():
        logits = case.classifier(torch.from_numpy(goldens.inputs["image"]))
    np.testing.assert_allclose(goldens.outputs["logits"], logits.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(goldens.outputs["probabilities"], torch.softmax(logits, 1).numpy(), rtol=1e-5, atol=1e-6)


def test_any_batch_size_up_to_the_maximum_gives_the_same_answers(case, tmp_path):
    bundle = export(case, tmp_path / "out")
    session = open_session(bundle.model_path)
    images = case.evaluation.images[:16]
    answers = [run_session(session, images, size)["logits"] for size in (1, 3, 16)]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
    np.testing.assert_allclose(answers[0], answers[2], atol=1e-5)


def test_the_same_network_exports_to_the_same_bytes(case, tmp_path):
    first, second = export(case, tmp_path / "a"), export(case, tmp_path / "b")
    assert first.manifest.model_sha256 == second.manifest.model_sha256
    assert first.manifest.goldens_sha256 == second.manifest.goldens_sha256


def test_the_file_itself_says_what_it_is(case, tmp_path):
    facts = replace(case.facts, card=CardFacts(license="apache-2.0"))
    bundle = export_classifier(case.classifier, facts, case.evaluation, tmp_path / "out")
    model = onnx.load(bundle.model_path)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert model.producer_name == "convoy"
    assert json.loads(said["labels"]) == ["one", "two", "three"]
    assert said["weights_sha256"] == bundle.manifest.weights_sha256
    assert "apache-2.0" in said.values()


def test_the_file_holds_no_path_of_this_machine(case, tmp_path):
    data = export(case, tmp_path / "out").model_path.read_bytes()
    assert b"site-packages" not in data
    assert b".py" not in data
    assert any(b"features" in node.SerializeToString() for node in onnx.load_model_from_string(data).graph.node)


@pytest.mark.parametrize("name", [name for name in BUNDLE_FILES if name != "manifest.json"])
def test_a_changed_file_is_refused(case, tmp_path, name):
    out = tmp_path / "out"
    export(case, out)
    data = bytearray((out / name).read_bytes())
    data[len(data) // 2] ^= 1
    (out / name).write_bytes(data)
    with pytest.raises(DigestMismatchError, match=r"convoy export"):
        Bundle.open(out)


@pytest.mark.parametrize(
    ("old", "new"), [('"one"', '"uno"'), ('"max_batch_size": 16', '"max_batch_size": 32'), ('"tiny"', '"huge"')]
)
def test_an_edited_manifest_is_refused_since_labels_and_figures_are_part_of_what_was_validated(case, tmp_path, old, new):
    out = tmp_path / "out"
    export(case, out)
    text = (out / "manifest.json").read_text()
    assert old in text
    (out / "manifest.json").write_text(text.replace(old, new, 1))
    with pytest.raises(DigestMismatchError, match=r"manifest\.json: validation\.json names"):
        Bundle.open(out)


def test_an_existing_export_stays_unless_forced(case, tmp_path):
    out = tmp_path / "out"
    export(case, out)
    with pytest.raises(UsageError, match="--force"):
        export(case, out)
    assert export(case, out, force=True).report.verdict == "passed"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_export_is_never_replaced(case, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="no export folder"):
        export(case, out, force=True)
    assert (out / "precious.txt").read_text() == "mine"


def test_a_network_in_training_mode_is_refused(case, tmp_path):
    case.classifier.features[1].train()
    with pytest.raises(ExportError, match=r"features\.1 in training mode"):
        export(case, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_images_of_another_shape_are_refused(case, tmp_path):
    odd = EvaluationSet("odd", np.zeros((100, 10, 12, 1), np.uint8), np.zeros(100, np.int64))
    with pytest.raises(UsageError, match=r"\(12, 12, 1\)"):
        export_classifier(case.classifier, case.facts, odd, tmp_path / "out")


def test_a_crash_while_writing_leaves_nothing(case, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convoy.contract.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        export(case, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def export_of_another_network(case, out, monkeypatch, **options) -> Bundle:
    from convoy.export import bundling

    honest = bundling.to_onnx

    def other_network(classifier, image, **options):
        other = copy.deepcopy(classifier)
        other.head.weight.data[0, 0] += 0.5
        graph = honest(classifier, image, **options)
        return replace(graph, proto=honest(other, image, **options).proto)

    monkeypatch.setattr(bundling, "to_onnx", other_network)
    return export(case, out, **options)


def test_a_failed_gate_is_written_down_with_the_fault_and_an_image_that_shows_it(case, tmp_path, monkeypatch):
    bundle = export_of_another_network(case, tmp_path / "out", monkeypatch)
    assert bundle.report.verdict == "failed"
    assert bundle.report.fault is not None
    assert bundle.report.fault.op_type == "Gemm"
    assert bundle.report.fault.module.endswith("head")
    assert bundle.report.worst.reproducer == "reproducer.npz"
    shown = Goldens.load(tmp_path / "out" / "reproducer.npz")
    answers = run_session(open_session(bundle.model_path), shown.inputs["image"], 1)["logits"]
    assert np.abs(answers - shown.outputs["logits"]).max() == pytest.approx(bundle.report.worst.max_abs_diff, rel=0.01)
    with torch.inference_mode():
        np.testing.assert_allclose(shown.outputs["logits"], case.classifier(torch.from_numpy(shown.inputs["image"])), atol=1e-5)
    assert "head" in (tmp_path / "out" / "validation.html").read_text()


def test_a_failed_export_is_not_signed(case, tmp_path, monkeypatch, signing_key):
    from convoy.contract.signature import open_key

    key = open_key(signing_key)
    assert (export(case, tmp_path / "good", signing_key=key).folder / "model.sig").is_file()
    bundle = export_of_another_network(case, tmp_path / "bad", monkeypatch, signing_key=key)
    assert bundle.report.verdict == "failed"
    assert not (tmp_path / "bad" / "model.sig").exists()


def test_every_layer_is_measured(case, tmp_path):
    layers = export(case, tmp_path / "out").report.layers
    assert {"Conv", "MaxPool", "Gemm"} <= {layer.op_type for layer in layers}
    assert any(layer.module.startswith("features") for layer in layers)
    assert all(layer.max_abs_diff <= 1e-4 * max(layer.scale, 1) for layer in layers)


def test_a_lower_precision_is_written_with_what_it_costs(case, tmp_path):
    from convoy.export import Reduction

    reduction = Reduction("fp16", max_accuracy_drop=0.2)
    bundle = export(case, tmp_path / "out", reduction=reduction)
    assert bundle.report.verdict == "passed", bundle.report.why()
    assert bundle.manifest.precision == "fp16"
    assert bundle.report.precision.n == 120
    assert any(
        check.verdict == "uncovered" and "float16" in f"{check.name} {check.found} {check.detail}" for check in bundle.report.checks
    )
    float32 = export(case, tmp_path / "float32")
    assert bundle.manifest.model_sha256 != float32.manifest.model_sha256


def test_a_network_from_elsewhere_needs_nothing_but_its_labels_and_its_image(case, tmp_path):
    from convoy.export import ModelFacts

    facts = ModelFacts(model_name="mine", labels=case.facts.labels, image=case.facts.image)
    manifest = export_classifier(case.classifier, facts, case.evaluation, tmp_path / "out").manifest
    assert manifest.training is None
    assert manifest.accuracy is not None
    other = copy.deepcopy(case.classifier)
    other.head.bias.data[0] += 1e-6
    assert export_classifier(other, facts, case.evaluation, tmp_path / "other").manifest.weights_sha256 != manifest.weights_sha256
