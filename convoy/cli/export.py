"""``convoy export``: a network, or an ONNX file that others made, becomes an ONNX file with the evidence that it decides alike."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.console import json_option, print_json
from convoy.cli.deploy import remark_on_threshold
from convoy.cli.report import print_findings, print_precision
from convoy.cli.subject import Request, open_subject
from convoy.contract.errors import UsageError

if TYPE_CHECKING:
    from convoy.contract.bundle import Bundle
    from convoy.contract.signing_key import PrivateKey

EXPORTS_FOLDER = "exports"
_KEY_VARIABLE = "CONVOY_KEY_PASSPHRASE"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("export")
@click.argument("run_dir", required=False, type=click.Path(path_type=Path))
@click.option("--onnx", "onnx_file", type=click.Path(path_type=Path), help="Take up an ONNX file that others made.")
@click.option("--torch", "factory", help="Take up your own nn.Module: module:factory, or file.py:factory.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="With --torch: its weights (safetensors, or a state dict of torch)."
)
@click.option("--labels", "labels_file", type=_FILE, help="With --onnx, --torch: the class names, one a line, or JSON, or CSV.")
@click.option(
    "--preprocess",
    "spec",
    help='With --onnx, --torch: what the network expects of its pixels ("imagenet size=224"; docs/validation.md lists all).',
)
@click.option(
    "--samples",
    type=click.Path(exists=True, path_type=Path),
    help="With --onnx, --torch: images to prove it on, in one folder a class, or without classes; or an .npz file.",
)
@click.option("--pairs", type=click.Path(exists=True, path_type=Path), help="With --onnx: inputs and outputs that came with it.")
@click.option("--input", "input_name", help="With --onnx: the input that takes the image, where there are several.")
@click.option("--output", "output_name", help="With --onnx: the output that decides, where several could.")
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True, help="What the file computes in."
)
@click.option(
    "--max-accuracy-drop",
    type=click.FloatRange(0, 1, max_open=True),
    help="With fp16, int8: the largest loss of accuracy that passes, a fraction.  [default: 0.01]",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, path_type=Path),
    help="With int8 and --onnx, --torch: images that the network was trained on, as --samples.",
)
@click.option(
    "--sign",
    "key",
    type=click.Path(path_type=Path),
    help=f"Sign what passed with this private key (PEM); ${_KEY_VARIABLE} may hold its passphrase.",
)
@click.option("--license", "license_id", help='The licence that the model card states ("apache-2.0").')
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help=f"The export folder.  [default: in {EXPORTS_FOLDER}, named as the run's folder or model]",
)
@click.option("--name", help="The model's name.  [default: the recipe's, or the file's]")
@click.option(
    "--max-batch-size", type=click.IntRange(1, 4096), default=64, show_default=True, help="The largest batch the server may form."
)
@click.option("--force", is_flag=True, help="Replace an export that is there already.")
@json_option
def command(run_dir: Path | None, key: Path | None, out: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Export a network to ONNX, and prove that the file decides as the network does.

    \b
    convoy export RUN_DIR                             a run that `convoy train` made
    convoy export --torch net.py:build --weights F    your own network  (with --labels, --preprocess, --samples)
    convoy export --onnx FILE                         somebody's ONNX file  (the same)

    The graph takes raw pixels (uint8, NHWC) and gives logits and probabilities. Then the gate: PyTorch in float32 and float64
    against ONNX Runtime on real and on edge images, in several batch sizes, in changing company, on every execution provider of
    this machine and at every graph optimisation level. Where they diverge, the first node at fault is named. Exit status 1 where
    it does not pass; the report (validation.json, validation.html) is written all the same.
    """  # noqa: D301  click's mark for text that is not to be wrapped
    request = Request(run_dir, **options)
    request.check()
    signing_key = _signing_key(key)
    subject = open_subject(request)
    out = out or Path(EXPORTS_FOLDER) / subject.folder_name
    bundle = subject.export(out, request.reduction(subject), signing_key, force)
    if as_json:
        print_json({"export_dir": str(out), "manifest": bundle.manifest.model_dump(mode="json"), **_report(bundle)})
    else:
        from convoy.contract.bundle import VALIDATION_FILE

        print_findings(bundle.report.checks, bundle.report.fault, f"{out / VALIDATION_FILE} has all of them")
        print_precision(bundle.report.precision)
        _print_verdict(out, bundle)
    remark_on_threshold(bundle.manifest)
    bundle.require_passed()


def _signing_key(path: Path | None) -> PrivateKey | None:
    """The key, opened before any work is done; a passphrase comes from the environment or is asked for."""
    from convoy.contract.signature import open_key

    if path is None:
        return None
    given = os.environ.get(_KEY_VARIABLE)

    def ask() -> str:
        if given is None and not sys.stdin.isatty():
            raise UsageError(f"{path}: is encrypted, and there is no terminal to ask on: set {_KEY_VARIABLE} to its passphrase.")
        return given if given is not None else str(click.prompt(f"Passphrase of {path}", hide_input=True, err=True))

    return open_key(path, passphrase=ask)


def _report(bundle: Bundle) -> dict[str, Any]:
    return {"verdict": bundle.report.verdict, "report": bundle.report.model_dump(mode="json")}


def _print_verdict(out: Path, bundle: Bundle) -> None:
    from convoy.contract.signature import PAGE_FILE, SIGNATURE_FILE

    manifest, accuracy = bundle.manifest, bundle.report.accuracy
    size_kib = bundle.model_path.stat().st_size / 1024
    click.echo(
        f"{manifest.model_name}: {size_kib:,.0f} KiB, opset {manifest.opset_version}, IR {manifest.ir_version}, "
        f"batches up to {manifest.max_batch_size}"
    )
    if accuracy is not None:
        source = "PyTorch" if bundle.report.source == "pytorch" else "the file as it came"
        both = f"{source} {accuracy.pytorch:.2%}, ONNX Runtime {accuracy.onnxruntime:.2%}"
        shown = "images" if manifest.reading is None else "fields, whole amounts"
        click.echo(f"accuracy on {accuracy.n:,} {shown} ({accuracy.split}): {both}")
    click.echo(f"validation: {bundle.report.verdict}; written to {out}, for people in {out / PAGE_FILE}")
    if bundle.report.verdict == "passed":
        if (bundle.folder / SIGNATURE_FILE).is_file():
            click.echo(f"signed: {out / SIGNATURE_FILE}")
        click.echo(f"Next: convoy deploy {out}")
