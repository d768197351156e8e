"""``convoy validate``: is the exported file still what was validated, and does it still decide alike?"""

from __future__ import annotations

from pathlib import Path

import click

from convoy.cli.console import json_option, print_json
from convoy.cli.export import print_checks, test_split


@click.command("validate")
@click.argument("export_dir", type=click.Path(path_type=Path))
@click.option("--run", "run_dir", type=click.Path(path_type=Path), help="The run that it came from: the whole gate runs again.")
@json_option
def command(export_dir: Path, run_dir: Path | None, as_json: bool) -> None:
    """Validate EXPORT_DIR again; exit status 1 where it fails.

    Always: every digest, and the golden inputs in ONNX Runtime against the outputs that PyTorch gave at export. With --run: the
    whole gate, PyTorch against ONNX Runtime on the run's test split.
    """
    from convoy.contract.bundle import Bundle
    from convoy.contract.errors import DigestMismatchError, ValidationFailedError
    from convoy.contract.validation import sum_up
    from convoy.export import replay_goldens, revalidate

    bundle = Bundle.open(export_dir)
    checks = replay_goldens(bundle)
    if run_dir is not None:
        from convoy.training.run_folder import load_run

        run = load_run(run_dir)
        if run.run.weights_sha256 != bundle.manifest.weights_sha256:
            raise DigestMismatchError(
                f"{run_dir}: expected the run whose weights have SHA-256 {bundle.manifest.weights_sha256[:16]}..., "
                f"found {run.run.weights_sha256[:16]}...: the export came from another run."
            )
        checks += revalidate(bundle, run.classifier, test_split(run)).checks
    verdict = sum_up(checks)
    if as_json:
        print_json(
            {
                "export_dir": str(export_dir),
                "verdict": verdict,
                "recorded_verdict": bundle.report.verdict,
                "checks": [check.model_dump() for check in checks],
            }
        )
    else:
        print_checks(checks)
        if bundle.report.verdict != "passed":
            click.echo("recorded at export:")
            print_checks(tuple(check for check in bundle.report.checks if check.verdict != "passed"))
        click.echo(f"now: {verdict}; recorded at export: {bundle.report.verdict}")
    if verdict != "passed" or bundle.report.verdict != "passed":
        raise ValidationFailedError(
            f"{export_dir}: validation {verdict} now, {bundle.report.verdict} at export. {bundle.report.why()}".strip()
        )
