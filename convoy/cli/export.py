"""``convoy export``: a run becomes an ONNX file with the evidence that it decides alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.console import json_option, print_json, remark

if TYPE_CHECKING:
    from convoy.contract.bundle import Bundle
    from convoy.contract.validation import Check
    from convoy.export import EvaluationSet, ModelFacts
    from convoy.training.run_folder import LoadedRun

EXPORTS_FOLDER = "exports"


@click.command("export")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help=f"The export folder.  [default: {EXPORTS_FOLDER}/<run>]")
@click.option("--name", help="The model's name.  [default: the recipe's name]")
@click.option(
    "--max-batch-size", type=click.IntRange(1, 4096), default=64, show_default=True, help="The largest batch the server may form."
)
@click.option("--force", is_flag=True, help="Replace an export that is there already.")
@json_option
def command(run_dir: Path, out: Path | None, name: str | None, max_batch_size: int, force: bool, as_json: bool) -> None:
    """Export the network of RUN_DIR to ONNX, and prove that the file decides as the network does.

    The graph takes raw pixels (uint8, NHWC) and gives logits and probabilities. Then the gate: PyTorch against ONNX Runtime on the
    run's test split at batch sizes 1, 7 and the largest. Exit status 1 where it does not pass; the report is written all the same.
    """
    from convoy.export import export_classifier
    from convoy.training.run_folder import load_run

    run = load_run(run_dir)
    out = out or Path(EXPORTS_FOLDER) / run_dir.resolve().name
    facts = facts_of(run, name=name, max_batch_size=max_batch_size)
    bundle = export_classifier(run.classifier, facts, test_split(run), out, force=force, on_progress=_say)
    if as_json:
        print_json({"export_dir": str(out), "manifest": bundle.manifest.model_dump(mode="json"), **_report(bundle)})
    else:
        print_checks(bundle.report.checks)
        _print_verdict(out, bundle)
    bundle.require_passed()


def facts_of(run: LoadedRun, *, name: str | None = None, max_batch_size: int = 64) -> ModelFacts:
    """What the manifest says of a run's network; its name is the recipe's where none is given."""
    from convoy.export import ModelFacts

    return ModelFacts(
        model_name=name or run.run.recipe.name,
        labels=run.run.labels,
        image=run.run.image,
        preprocessing=run.run.preprocessing,
        training=run.facts,
        weights_sha256=run.run.weights_sha256,
        max_batch_size=max_batch_size,
    )


def test_split(run: LoadedRun) -> EvaluationSet:
    """The test split of the data that a run was trained on; the very same data, by digest."""
    from convoy.contract.errors import DataError
    from convoy.export import EvaluationSet
    from convoy.training.data import DataLocation, load_dataset

    recipe, facts = run.run.recipe, run.run.dataset
    dataset = load_dataset(
        facts.name, seed=run.run.seed, validation_fraction=recipe.validation_fraction, location=DataLocation.from_environment()
    )
    if dataset.sha256() != facts.sha256:
        raise DataError(
            f"{facts.name}: expected the data that the run saw (SHA-256 {facts.sha256[:16]}...), found other data. "
            "Point CONVOY_DATA to the data of the training run."
        )
    return EvaluationSet(f"{facts.name} test", dataset.test.images, dataset.test.labels)


def print_checks(checks: tuple[Check, ...]) -> None:
    """A line a check: verdict, name, what was found; what was expected where it did not pass."""
    for check in checks:
        click.echo(f"  {check.verdict if check.verdict == 'passed' else check.verdict.upper():9}  {check.name}: {check.found}")
        if check.verdict != "passed":
            click.echo(f"{'':13}expected: {check.expected}{'; ' if check.detail else ''}{check.detail}")


def _say(what: str) -> None:
    remark(f"  ... {what}")


def _report(bundle: Bundle) -> dict[str, Any]:
    return {"verdict": bundle.report.verdict, "report": bundle.report.model_dump(mode="json")}


def _print_verdict(out: Path, bundle: Bundle) -> None:
    manifest, accuracy = bundle.manifest, bundle.report.accuracy
    size_kib = bundle.model_path.stat().st_size / 1024
    click.echo(
        f"{manifest.model_name}: {size_kib:,.0f} KiB, opset {manifest.opset_version}, IR {manifest.ir_version}, "
        f"batches up to {manifest.max_batch_size}"
    )
    if accuracy is not None:
        both = f"PyTorch {accuracy.pytorch:.2%}, ONNX Runtime {accuracy.onnxruntime:.2%}"
        click.echo(f"accuracy on {accuracy.n:,} images ({accuracy.split}): {both}")
    click.echo(f"validation: {bundle.report.verdict}; written to {out}")
    if bundle.report.verdict == "passed":
        click.echo(f"Next: convoy deploy {out}")
