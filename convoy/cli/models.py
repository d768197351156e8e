"""``convoy models``: what a repository holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.console import json_option, print_json, stdout_console
from convoy.cli.deploy import repository_option

if TYPE_CHECKING:
    from convoy.serving.repository import ModelEntry, VersionEntry


@click.command("models")
@repository_option
@click.option("--check", is_flag=True, help="Verify every file against its digest; exit 1 where one does not match.")
@json_option
def command(repository: Path, check: bool, as_json: bool) -> None:
    """List the models of a repository, their versions, which one is served, and with what accuracy."""
    from convoy.contract.errors import RepositoryError
    from convoy.serving.repository import Repository

    entries = Repository(repository).models(check=check)
    if as_json:
        print_json({"repository": str(repository), "models": [_as_dict(entry) for entry in entries]})
    else:
        _print(repository, entries)
    problems = [problem for entry in entries for problem in (entry.problem, *(v.problem for v in entry.versions)) if problem]
    if not as_json:
        for problem in problems:
            click.echo(f"problem: {problem}")
    if problems and check:
        raise RepositoryError(f"{repository}: {len(problems)} problem{'s' * (len(problems) > 1)}, listed above.")


def _as_dict(entry: ModelEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "served_version": None if entry.served is None else str(entry.served),
        "problem": entry.problem or None,
        "versions": [
            {
                "version": str(version.version),
                "served": version.version == entry.served,
                **_facts(version),
                "problem": version.problem or None,
            }
            for version in entry.versions
        ],
    }


def _facts(version: VersionEntry) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "accuracy": manifest.accuracy.onnxruntime if manifest and manifest.accuracy else None,
        "split": manifest.accuracy.split if manifest and manifest.accuracy else None,
        "run_id": manifest.training.run_id if manifest and manifest.training else None,
        "model_sha256": manifest.model_sha256 if manifest else None,
    }


def _print(repository: Path, entries: list[ModelEntry]) -> None:
    from rich.table import Table

    if not entries:
        click.echo(f"{repository}: no models yet; `convoy deploy` writes the first.")
        return
    table = Table("model", "version", "served", "accuracy", "on", "run", "", box=None, header_style="bold")
    for entry in entries:
        if not entry.versions:
            table.add_row(entry.name, "-", "", "", "", "", "problem, see below" if entry.problem else "no versions")
        for version in entry.versions:
            table.add_row(*_row(entry, version))
    stdout_console().print(table)


def _row(entry: ModelEntry, version: VersionEntry) -> list[str]:
    served = version.version == entry.served
    problem = "problem, see below" if version.problem or (entry.problem and (served or entry.served is None)) else ""
    if version.manifest is None:
        return [entry.name, str(version.version), "served" if served else "", "", "", "", problem]
    accuracy, training = version.manifest.accuracy, version.manifest.training
    measured = [f"{accuracy.onnxruntime:.2%}", f"{accuracy.n:,} images of {accuracy.split}"] if accuracy else ["", ""]
    source = training.run_id if training else "trained elsewhere"
    return [entry.name, str(version.version), "served" if served else "", *measured, source, problem]
