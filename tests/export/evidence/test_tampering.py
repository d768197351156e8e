"""What digests catch, what they cannot, and what a signature adds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from convoy.contract.bundle import Bundle
from convoy.contract.errors import ContractError, DigestMismatchError, SignatureError
from convoy.contract.manifest import Manifest
from convoy.contract.validation import ValidationReport
from convoy.export.evidence import sign_bundle, verify_bundle

MakeBundle = Callable[..., Bundle]
Tamper = Callable[[dict[str, Any]], None]


def flip_verdict(report: dict[str, Any]) -> None:
    report["verdict"] = "passed"


def drop_failed_checks(report: dict[str, Any]) -> None:
    report["checks"] = [check for check in report["checks"] if check["verdict"] == "passed"]
    report["verdict"] = "passed"


def widen_the_limit(report: dict[str, Any]) -> None:
    for check in report["checks"]:
        if check["verdict"] == "failed":
            check["verdict"], check["limit"] = "passed", 1e9
    report["tolerances"]["logits"]["atol"] = 1e9
    report["verdict"] = "passed"


def raise_the_accuracy(report: dict[str, Any]) -> None:
    report["accuracy"]["onnxruntime"] = 1.0


TAMPERS = (flip_verdict, drop_failed_checks, widen_the_limit, raise_the_accuracy)


def rewrite(folder: Path, tamper: Tamper, *, recompute: bool) -> None:
    """Change the report as somebody with write access would; ``recompute`` mends every digest as well."""
    validation, manifest = folder / "validation.json", folder / "manifest.json"
    report = json.loads(validation.read_bytes())
    tamper(report)
    fields = json.loads(manifest.read_bytes())
    if recompute:
        report["manifest_sha256"] = Manifest.digest(manifest.read_bytes())
    data = (json.dumps(report, indent=2) + "\n").encode()
    validation.write_bytes(data)
    if recompute:
        fields["validation_sha256"] = hashlib.sha256(data).hexdigest()
        manifest.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.mark.parametrize("tamper", TAMPERS)
def test_a_changed_report_is_refused(tamper: Tamper, make_bundle: MakeBundle) -> None:
    folder = make_bundle(verdict="failed").folder
    rewrite(folder, tamper, recompute=False)
    with pytest.raises(DigestMismatchError, match=r"validation\.json: manifest\.json names SHA-256"):
        Bundle.open(folder)


def test_a_verdict_against_its_own_checks_is_refused_with_any_digest(make_bundle: MakeBundle) -> None:
    folder = make_bundle(verdict="failed").folder
    rewrite(folder, flip_verdict, recompute=True)
    with pytest.raises(ContractError, match="'passed' is not what the checks say"):
        Bundle.open(folder)


@pytest.mark.parametrize("tamper", [drop_failed_checks, widen_the_limit, raise_the_accuracy])
def test_digests_alone_cannot_catch_a_forgery_that_recomputes_them(tamper: Tamper, make_bundle: MakeBundle) -> None:
    """docs/validation.md says so; this is why exports can be signed."""
    folder = make_bundle(verdict="passed" if tamper is raise_the_accuracy else "failed").folder
    rewrite(folder, tamper, recompute=True)
    assert Bundle.open(folder).report.verdict == "passed"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tamper", [raise_the_accuracy, widen_the_limit, drop_failed_checks])
def test_a_signature_catches_every_forgery(tamper: Tamper, recompute: bool, make_bundle: MakeBundle, tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    folder = make_bundle().folder
    sign_bundle(folder, private)
    verify_bundle(folder, public)
    rewrite(folder, tamper, recompute=recompute)
    with pytest.raises(SignatureError):
        verify_bundle(folder, public)


def as_version_1(folder: Path) -> None:
    """Write the documents of a bundle as Convoy 0.1 wrote them: without what version 2 brought."""
    manifest, report = (json.loads((folder / name).read_bytes()) for name in ("manifest.json", "validation.json"))
    for document in (manifest, report):
        document["schema_version"] = 1
    for field in ("origin", "temperature"):
        del manifest[field]
    for field in ("source", "outputs", "worst", "layers", "fault", "precision", "machine"):
        del report[field]
    for check in report["checks"]:
        del check["limit"], check["measured"]
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    report["manifest_sha256"] = Manifest.digest(text.encode())
    data = (json.dumps(report, indent=2) + "\n").encode()
    (folder / "validation.json").write_bytes(data)
    manifest["validation_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def test_a_bundle_of_version_1_opens_and_is_not_rewritten(make_bundle: MakeBundle) -> None:
    folder = make_bundle().folder
    as_version_1(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bundle = Bundle.open(folder)
    assert (bundle.report.schema_version, bundle.manifest.schema_version, bundle.manifest.temperature) == (2, 4, 1.0)
    assert bundle.report.verdict == "passed"
    assert bundle.report.source == "pytorch"
    assert (bundle.report.outputs, bundle.report.layers, bundle.report.worst, bundle.report.precision) == ((), (), None, None)
    assert bundle.report.checks[4].limit is None
    assert bundle.manifest.precision == "fp32"
    assert bundle.manifest.origin is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_model_that_comes_along_opens() -> None:
    folder = Path(__file__).resolve().parents[3] / "model_repository" / "lenet5" / "1"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bundle = Bundle.open(folder)
    assert bundle.report.verdict == "passed"
    assert bundle.report.accuracy is not None
    assert bundle.report.accuracy.n == 10_000
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


V1_CHECK = {"name": "a", "verdict": "passed", "expected": "b", "found": "c", "detail": ""}
V1_REPORT = {
    "schema_version": 1,
    "model_name": "old",
    "model_sha256": "0" * 64,
    "goldens_sha256": "0" * 64,
    "manifest_sha256": "0" * 64,
    "verdict": "passed",
    "checks": [V1_CHECK],
    "tolerances": {"logits": {"atol": 1e-4, "rtol": 1e-6}},
    "accuracy": None,
    "versions": {},
}


def test_a_report_of_version_1_is_read_field_by_field(tmp_path: Path) -> None:
    path = tmp_path / "validation.json"
    path.write_text(json.dumps(V1_REPORT))
    report = ValidationReport.load(path)
    assert report.checks[0].name == "a"
    assert report.checks[0].limit is None
    assert report.tolerances["logits"].atol == 1e-4
    assert (report.outputs, report.layers, report.worst, report.precision) == ((), (), None, None)


@pytest.mark.parametrize("version", [0, 3, 99, "1", None])
def test_a_report_of_another_version_is_refused(version: Any, tmp_path: Path) -> None:
    path = tmp_path / "validation.json"
    path.write_text(json.dumps({**V1_REPORT, "schema_version": version}))
    with pytest.raises(ContractError, match="schema_version"):
        ValidationReport.load(path)


def test_migration_lets_no_forged_verdict_through(tmp_path: Path) -> None:
    path = tmp_path / "validation.json"
    path.write_text(json.dumps({**V1_REPORT, "checks": [{**V1_CHECK, "verdict": "failed"}]}))
    with pytest.raises(ContractError, match="is not what the checks say"):
        ValidationReport.load(path)
