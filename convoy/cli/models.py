"""``convoy models``: what a repository holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.console import json_option, print_json, stdout_console
from convoy.cli.deploy import repository_option

if TYPE_CHECKING:
    from convoy.serving.repository import ModelEntry, VersionEntry
    from convoy.serving.repository.lint import Problem


_SEE_BELOW = "problem, see below"


@click.command("models")
@repository_option
@click.option(
    "--check",
    is_flag=True,
    help=(
        "Hold every model against what the server would refuse: configuration, files, tensors, digests. "
        "Prints a line for each problem; exit 1 where there is an error, 0 where there are warnings alone."
    ),
)
@json_option
def command(repository: Path, check: bool, as_json: bool) -> None:
    """List the models of a repository, their versions, which one is served, and with what accuracy."""
    from convoy.contract.errors import RepositoryError
    from convoy.serving.repository import Repository

    entries = Repository(repository).models(check=check)
    problems = _lint(repository, entries) if check else None
    if as_json:
        print_json(_document(repository, entries, problems))
    else:
        _print(repository, entries, None if problems is None else {problem.model for problem in problems})
        for problem in _glance(entries) if problems is None else problems:
            click.echo(str(problem))
    if problems is None:
        return
    errors = sum(problem.severity == "error" for problem in problems)
    if not as_json:
        click.echo(
            f"{_count(len(entries), 'model')} checked: {_count(errors, 'error')}, {_count(len(problems) - errors, 'warning')}."
        )
    if errors:
        raise RepositoryError(f"{repository}: {_count(errors, 'error')}, listed above. A server would not serve this.")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _lint(repository: Path, entries: list[ModelEntry]) -> list[Problem]:
    from convoy.serving.repository.lint import lint

    return lint(repository, entries)


def _glance(entries: list[ModelEntry]) -> list[str]:
    """What can be said without a look into the files."""
    found = [problem for entry in entries for problem in (entry.problem, *(version.problem for version in entry.versions))]
    return [f"problem: {problem}" for problem in found if problem]


def _document(repository: Path, entries: list[ModelEntry], problems: list[Problem] | None) -> dict[str, Any]:
    document: dict[str, Any] = {"repository": str(repository), "models": [_as_dict(entry) for entry in entries]}
    if problems is not None:
        document["problems"] = [{**vars(problem), "path": str(problem.path)} for problem in problems]
    return document


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


def _print(repository: Path, entries: list[ModelEntry], flagged: set[str] | None) -> None:
    """The table; ``flagged`` names the models with problems where they were looked for, and is None where they were not."""
    from rich.table import Table

    if not entries:
        click.echo(f"{repository}: no models yet; `convoy deploy` writes the first.")
        return
    table = Table("model", "version", "served", "accuracy", "on", "run", "", box=None, header_style="bold")
    for entry in entries:
        if not entry.versions:
            noted = bool(entry.problem) if flagged is None else entry.name in flagged
            table.add_row(entry.name, "-", "", "", "", "", _SEE_BELOW if noted else "no versions")
        for version in entry.versions:
            table.add_row(*_row(entry, version, flagged))
    stdout_console().print(table)


def _row(entry: ModelEntry, version: VersionEntry, flagged: set[str] | None) -> list[str]:
    served = version.version == entry.served
    noted = bool(version.problem or (entry.problem and (served or entry.served is None)))
    problem = _SEE_BELOW if (noted if flagged is None else entry.name in flagged) else ""
    if version.manifest is None:
        source = "" if version.problem else "not by convoy deploy"
        return [entry.name, str(version.version), "served" if served else "", "", "", source, problem]
    accuracy, training = version.manifest.accuracy, version.manifest.training
    shown = "images" if version.manifest.reading is None else "fields"
    measured = [f"{accuracy.onnxruntime:.2%}", f"{accuracy.n:,} {shown} of {accuracy.split}"] if accuracy else ["", ""]
    source = training.run_id if training else "trained elsewhere"
    return [entry.name, str(version.version), "served" if served else "", *measured, source, problem]
