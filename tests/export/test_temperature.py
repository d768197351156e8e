"""The temperature of a run: probabilities are softmax(logits / T) in PyTorch, in the file and in the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from convoy.contract.bundle import Bundle
from convoy.contract.errors import ContractError, UsageError
from convoy.contract.manifest import Manifest
from convoy.contract.validation import sum_up
from convoy.export import Border, Reduction, export_classifier, judge_file, replay_goldens, revalidate
from convoy.export.gate.bounds import derive_bound, follow_logits
from convoy.export.gate.runtime import open_session, run_session
from convoy.export.graph.exporting import to_onnx
from convoy.export.graph.metadata import stated_temperature
from convoy.export.precision.structure import Structure, prepare


@pytest.fixture(scope="module")
def export_at(make_case, tmp_path_factory):
    """Exports the case at a temperature, once: ``(temperature)`` -> the bundle."""
    case = make_case()

    @cache
    def export(temperature: float) -> Bundle:
        out = tmp_path_factory.mktemp("tempered") / "out"
        return export_classifier(case.classifier, replace(case.facts, temperature=temperature), case.evaluation, out)

    return export


@pytest.mark.parametrize("temperature", [0.375, 2.5])
def test_probabilities_are_tempered_and_logits_are_not(case, export_at, temperature):
    bundle = export_at(temperature)
    assert bundle.report.verdict == "passed", bundle.report.why()
    assert bundle.manifest.temperature == temperature
    images = case.evaluation.images
    with torch.inference_mode():
        logits = case.classifier(torch.from_numpy(images))
    found = run_session(open_session(bundle.model_path), images, 16)
    np.testing.assert_allclose(found["logits"], logits.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], torch.softmax(logits / temperature, 1).numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(found["probabilities"] - torch.softmax(logits, 1).numpy()).max() > 0.01
    assert np.array_equal(found["probabilities"].argmax(1), found["logits"].argmax(1))
    assert sum_up(replay_goldens(bundle)) == "passed"
    assert sum_up(revalidate(bundle, case.classifier, case.evaluation).findings.checks) == "passed"
    assert f"T = {temperature:g}" in (bundle.folder / "README.md").read_text()
    assert f"<dt>Temperature</dt><dd>{temperature:g}</dd>" in (bundle.folder / "validation.html").read_text()
    assert stated_temperature(bundle.model_path.read_bytes()) == temperature


def test_the_scores_of_the_worst_image_are_tempered_too(export_at):
    worst, plain = (export_at(temperature).report.worst for temperature in (2.5, 1.0))
    assert worst.name == plain.name
    assert worst.scores[0].expected < plain.scores[0].expected
    assert sum(score.expected for score in worst.scores) == pytest.approx(1)


@pytest.mark.parametrize(("in_file", "wanted"), [(1.0, 2.5), (2.5, 1.0), (2.5, 2.4)])
def test_a_file_with_another_temperature_than_the_manifests_fails_in_its_probabilities_alone(case, in_file, wanted):
    model = to_onnx(case.classifier, case.facts.image, temperature=in_file).proto.SerializeToString()
    border = Border(case.facts.image, case.facts.labels, case.facts.max_batch_size, wanted)
    checks = judge_file(model, case.classifier, case.evaluation, border).findings.checks
    names = [check.name for check in checks if check.verdict == "failed"]
    assert names
    assert all(name.startswith("probabilities") for name in names)


def test_at_1_the_file_is_what_it_was_without_one(case):
    plain, one, other = (
        to_onnx(case.classifier, case.facts.image, **options).proto.SerializeToString(deterministic=True)
        for options in ({}, {"temperature": 1.0}, {"temperature": 2.0})
    )
    assert plain == one != other
    assert stated_temperature(plain) == stated_temperature(b"no ONNX file") == 1


def test_dividing_belongs_to_the_head_that_stays_in_float32(case):
    model = to_onnx(case.classifier, case.facts.image, temperature=2.5).proto
    operators = {node.name: node.op_type for node in model.graph.node}
    head = Structure.of(prepare(model.SerializeToString())).head
    assert {operators[name] for name in head} == {"Div", "Softmax"}


def test_a_reduced_precision_keeps_the_temperature(case, tmp_path):
    facts = replace(case.facts, temperature=2.5)
    bundle = export_classifier(case.classifier, facts, case.evaluation, tmp_path / "out", reduction=Reduction("fp16", 0.5))
    assert not [check for check in bundle.report.checks if check.verdict == "failed"]
    found = run_session(open_session(bundle.model_path), case.evaluation.images, 16)
    tempered = torch.softmax(torch.from_numpy(found["logits"]) / 2.5, 1).numpy()
    np.testing.assert_allclose(found["probabilities"], tempered, atol=2e-3)


def test_below_1_probabilities_move_further_with_the_logits():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1e4, (50, 6))
    truth[:, 1] = truth[:, 0]
    logits = derive_bound((truth * (1 + 1e-7)).astype(np.float32), truth)
    probabilities = derive_bound(np.zeros((1, 2), np.float32), np.zeros((1, 2)))
    wide, narrow = (follow_logits(probabilities, logits, float(np.abs(truth).max()), t).tolerance.atol for t in (0.25, 4.0))
    assert wide > 4 * narrow > 0


def test_a_manifest_from_before_has_temperature_1(export_at, tmp_path):
    bundle = export_at(1.0)
    document = json.loads((bundle.folder / "manifest.json").read_text())
    assert document.pop("temperature") == 1.0
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**document, "schema_version": 2}))
    assert Manifest.load(path) == bundle.manifest
    path.write_text(json.dumps({**document, "temperature": 0}))
    with pytest.raises(ContractError, match="temperature"):
        Manifest.load(path)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_temperature_is_refused(case, tmp_path, temperature):
    facts = replace(case.facts, temperature=temperature)
    with pytest.raises(UsageError, match="temperature: expected a number above 0"):
        export_classifier(case.classifier, facts, case.evaluation, tmp_path / "out")
