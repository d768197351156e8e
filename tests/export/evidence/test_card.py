"""README.md: facts only, front matter that parses, snippets that run."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from convoy import Client
from convoy.contract.bundle import Bundle
from convoy.contract.figures import interval95
from convoy.export.evidence import CardFacts, render_card

MakeBundle = Callable[..., Bundle]


def parts(card: str) -> tuple[dict[str, Any], str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_matter_says_what_was_measured(make_bundle: MakeBundle) -> None:
    front, _ = parts(render_card(make_bundle()))
    assert front["library_name"] == "onnx"
    assert front["pipeline_tag"] == "image-classification"
    assert front["datasets"] == ["mnist"]
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "lenet5"
    assert result["dataset"] == {"name": "mnist test", "type": "mnist"}
    assert result["metrics"] == [{"type": "accuracy", "name": "top-1 accuracy", "value": 0.9944}]


def test_nothing_is_made_up(make_bundle: MakeBundle) -> None:
    front, body = parts(render_card(make_bundle(manifest_update={"training": None})))
    assert {"license", "base_model", "datasets"}.isdisjoint(front)
    assert body.count("not stated |") == 5
    assert "Not stated: the weights were trained elsewhere." in body


def test_what_the_person_says_is_in_the_card(make_bundle: MakeBundle) -> None:
    facts = CardFacts(license="cc-by-4.0", author="A. Person", intended_use="reading digits", base_model="somebody/lenet5")
    front, body = parts(render_card(make_bundle(int8=True), facts))
    assert front["license"] == "cc-by-4.0"
    assert front["base_model"] == "somebody/lenet5"
    assert front["base_model_relation"] == "quantized"
    assert "int8" in front["tags"]
    for said in ("cc-by-4.0", "A. Person", "reading digits", "somebody/lenet5"):
        assert f"| {said} |" in body


def test_the_body_states_figures_and_digests(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    _, body = parts(render_card(bundle))
    low, high = interval95(0.9944, 10_000)
    assert (
        f"**99.44 %** (95 % confidence interval {low:.2%} to {high:.2%}, Wilson)".replace("%,", " %,").replace("% to", " % to")
        in body
    )
    assert "| 61,706 |" in body
    assert "| input | image | uint8 | (N, 28, 28, 1) | 0 to 255 |" in body
    assert "Validation: **passed**" in body
    assert "Not checked: operators in the reference evaluator" in body
    for digest in (bundle.manifest.model_sha256, bundle.manifest.validation_sha256, bundle.manifest.goldens_sha256):
        assert digest in body


def test_a_failed_export_claims_no_result(make_bundle: MakeBundle) -> None:
    front, body = parts(render_card(make_bundle(verdict="failed")))
    assert "model-index" not in front
    assert "Validation: **failed**" in body


@pytest.mark.parametrize(
    ("fraction", "n", "low", "high"), [(0.5, 10, 0.2366, 0.7634), (1.0, 100, 0.9630, 1.0), (0.0, 100, 0.0, 0.0370)]
)
def test_the_interval_is_wilsons(fraction: float, n: int, low: float, high: float) -> None:
    assert interval95(fraction, n) == pytest.approx((low, high), abs=1e-4)


HOSTILE = "a|b<script>x</script>`c`\n---\n[d](javascript:e) # f: 'g' \"h\" \x85 😀"


def test_whatever_others_wrote_is_text(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    assert bundle.manifest.training is not None
    assert bundle.report.accuracy is not None
    manifest = bundle.manifest.model_copy(
        update={
            "labels": (HOSTILE, *bundle.manifest.labels[1:]),
            "training": bundle.manifest.training.model_copy(update={"dataset": HOSTILE, "recipe": HOSTILE, "run_id": HOSTILE}),
            "inputs": (bundle.manifest.inputs[0].model_copy(update={"name": 'in"put`:0'}),),
        }
    )
    report = bundle.report.model_copy(update={"accuracy": bundle.report.accuracy.model_copy(update={"split": HOSTILE})})
    front, body = parts(render_card(Bundle(bundle.folder, manifest, report), CardFacts(license=HOSTILE)))
    assert front["license"] == HOSTILE
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == HOSTILE
    assert "datasets" not in front
    assert "<script>" not in body
    assert "](javascript" not in body.replace("\\](", "")
    rows = [line for line in body.splitlines() if line.startswith("| Recipe")]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3
    for snippet in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
        ast.parse(snippet)


def test_the_path_of_a_folder_is_no_dataset(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    assert bundle.manifest.training is not None
    for name in ("/srv/images", "../images", "a/b/c"):
        training = bundle.manifest.training.model_copy(update={"dataset": name})
        changed = Bundle(bundle.folder, bundle.manifest.model_copy(update={"training": training}), bundle.report)
        front, _ = parts(render_card(changed))
        assert "datasets" not in front


def test_a_thousand_labels_are_not_listed(make_bundle: MakeBundle) -> None:
    _, body = parts(render_card(make_bundle(n_classes=1000)))
    line = next(line for line in body.splitlines() if line.startswith("Classes, in the order"))
    assert len(line) < 400
    assert "more, in `manifest.json`" in line


def test_the_onnxruntime_snippet_runs_beside_the_files(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    snippet = next(code for code in re.findall(r"```python\n(.*?)```", render_card(bundle), re.DOTALL) if "onnxruntime" in code)
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=bundle.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0.1"]


def test_the_client_snippet_calls_what_there_is(make_bundle: MakeBundle) -> None:
    snippet = next(code for code in re.findall(r"```python\n(.*?)```", render_card(make_bundle()), re.DOTALL) if "Client" in code)
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    assert [call.func.attr for call in calls if isinstance(call.func, ast.Attribute)] == ["classify"]
    inspect.signature(Client.classify).bind(None, *[ast.literal_eval(arg) for arg in calls[0].args])


def test_the_same_facts_give_the_same_text(make_bundle: MakeBundle) -> None:
    assert render_card(make_bundle("one")) == render_card(make_bundle("two"))
