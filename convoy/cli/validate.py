"""``convoy validate``: is the exported file still what was validated, does it still decide alike, and whose is it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.console import json_option, print_json, remark
from convoy.cli.report import print_findings
from convoy.cli.subject import held_back_fields, is_reader_run, test_split

if TYPE_CHECKING:
    from convoy.contract.bundle import Bundle
    from convoy.contract.validation import Check, Fault
    from convoy.export import Judgement
    from convoy.training.run_folder import LoadedRun

_ALL = "--json prints all of them"


@click.command("validate")
@click.argument("export", metavar="EXPORT_DIR|FILE.onnx", type=click.Path(path_type=Path))
@click.option("--run", "run_dir", type=click.Path(path_type=Path), help="The run that it came from: the whole gate runs again.")
@click.option("--verify", "public_key", type=click.Path(path_type=Path), help="Check the signature with this public key (PEM) too.")
@json_option
def command(export: Path, run_dir: Path | None, public_key: Path | None, as_json: bool) -> None:
    """Validate EXPORT_DIR again; exit status 1 where it fails.

    Always: every digest, and the golden inputs in ONNX Runtime against the outputs that were written at export. With --run: the
    whole gate, PyTorch against ONNX Runtime on the run's test split; where they diverge, the first node at fault is named. With
    --verify: that the owner of a key signed these very files.

    FILE.onnx with --run: whether any ONNX file, whoever exported it, decides as the network of that run.
    """
    if export.is_file():
        _validate_file(export, run_dir, public_key, as_json=as_json)
    else:
        _validate_folder(export, run_dir, public_key, as_json=as_json)


def _validate_folder(folder: Path, run_dir: Path | None, public_key: Path | None, *, as_json: bool) -> None:
    from convoy.contract.bundle import VALIDATION_FILE, Bundle
    from convoy.contract.errors import ValidationFailedError
    from convoy.contract.signature import verify_bundle
    from convoy.contract.validation import sum_up
    from convoy.export import replay_goldens

    signed = None if public_key is None else verify_bundle(folder, public_key)
    bundle = Bundle.open(folder)
    checks, fault = replay_goldens(bundle), None
    if run_dir is not None:
        judgement = _revalidate(bundle, run_dir)
        checks, fault = checks + judgement.findings.checks, judgement.fault
    verdict, recorded = sum_up(checks), bundle.report.verdict
    if as_json:
        facts: dict[str, Any] = {"export_dir": str(folder), "verdict": verdict, "recorded_verdict": recorded}
        if signed is not None:
            facts["signed_by"] = {"key_id": signed.key_id, "algorithm": signed.algorithm}
        print_json({**facts, **_findings(checks, fault)})
    else:
        print_findings(checks, fault, _ALL)
        if recorded != "passed":
            click.echo("recorded at export:")
            wrong = tuple(check for check in bundle.report.checks if check.verdict in ("failed", "undecided"))
            print_findings(wrong, bundle.report.fault, f"{folder / VALIDATION_FILE} has all of them")
        if signed is not None:
            click.echo(f"signed by the owner of {public_key} ({signed.algorithm}, key {signed.key_id[:16]}...)")
        click.echo(f"now: {verdict}; recorded at export: {recorded}")
    if verdict != "passed" or recorded != "passed":
        raise ValidationFailedError(f"{folder}: validation {verdict} now, {recorded} at export. {bundle.report.why()}".strip())


def _revalidate(bundle: Bundle, run_dir: Path) -> Judgement:
    """The whole gate on a folder, beside the run that it came from."""
    from convoy.contract.errors import UsageError
    from convoy.export import revalidate, revalidate_reader

    if is_reader_run(run_dir) != (bundle.manifest.reading is not None):
        here, there = ("a reader", "a classifier") if bundle.manifest.reading is not None else ("a classifier", "a reader")
        raise UsageError(f"{run_dir}: expected the run of {here}, as {bundle.folder} is one, found the run of {there}.")
    if bundle.manifest.reading is None:
        run = _load(run_dir)
        _check_weights(bundle, run_dir, run.run.weights_sha256)
        return revalidate(bundle, run.classifier, test_split(run), on_progress=_say)
    from convoy.training.check_reader.reader_run_folder import load_reader_run

    reader_run = load_reader_run(run_dir)
    _check_weights(bundle, run_dir, reader_run.record.weights_sha256)
    return revalidate_reader(bundle, reader_run.reader, held_back_fields(reader_run), on_progress=_say)


def _check_weights(bundle: Bundle, run_dir: Path, found: str) -> None:
    from convoy.contract.errors import DigestMismatchError

    expected = bundle.manifest.weights_sha256
    if found != expected:
        raise DigestMismatchError(
            f"{run_dir}: expected the run whose weights have SHA-256 {expected[:16]}..., found {found[:16]}...: "
            "the export came from another run."
        )


def _validate_file(path: Path, run_dir: Path | None, public_key: Path | None, *, as_json: bool) -> None:
    from convoy.contract.errors import UsageError, ValidationFailedError
    from convoy.contract.validation import sum_up
    from convoy.export import Border, judge_file
    from convoy.export.adopt.containment import read_contained
    from convoy.export.graph.metadata import stated_temperature

    if run_dir is None:
        raise UsageError(f"{path}: a file alone says nothing of what it should answer: name the run that it came from with --run.")
    if is_reader_run(run_dir):
        raise UsageError(f"{run_dir}: is the run of a reader of amounts: `convoy validate EXPORT_DIR --run` validates its export.")
    if public_key is not None:
        raise UsageError(f"--verify: expected an export folder, which holds the signature, found the file {path}.")
    run = _load(run_dir)
    model = read_contained(path)
    # a file of others has the network's own probabilities, whatever Convoy would have made of them
    border = Border(run.run.image, run.run.labels, 64, 1.0 if stated_temperature(model) == 1 else run.metrics.temperature)
    judgement = judge_file(model, run.classifier, test_split(run), border, on_progress=_say)
    checks, fault = judgement.findings.checks, judgement.fault
    verdict = sum_up(checks)
    if as_json:
        print_json({"file": str(path), "verdict": verdict, **_findings(checks, fault)})
    else:
        print_findings(checks, fault, _ALL)
        click.echo(f"{path}: {verdict}")
    if verdict != "passed":
        where = f" First fault: {fault.node or 'the file as a whole'}: {fault.cause}" if fault is not None else ""
        raise ValidationFailedError(f"{path}: validation {verdict}: it does not decide as the network of {run_dir} does.{where}")


def _load(run_dir: Path) -> LoadedRun:
    from convoy.training.run_folder import load_run

    return load_run(run_dir)


def _findings(checks: tuple[Check, ...], fault: Fault | None) -> dict[str, Any]:
    return {"checks": [check.model_dump() for check in checks], "fault": None if fault is None else fault.model_dump()}


def _say(what: str) -> None:
    remark(f"  ... {what}")
