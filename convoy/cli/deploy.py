"""``convoy deploy``: an exported model becomes the next version of a repository."""

from __future__ import annotations

from pathlib import Path

import click

from convoy.cli.console import json_option, print_json

DEFAULT_REPOSITORY = "model_repository"

repository_option = click.option(
    "--repository",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_REPOSITORY,
    show_default=True,
    envvar="CONVOY_REPOSITORY",
    help="The model repository.",
)


@click.command("deploy")
@click.argument("export_dir", type=click.Path(path_type=Path))
@repository_option
@click.option("--name", help="Serve it under another name than the manifest's.")
@json_option
def command(export_dir: Path, repository: Path, name: str | None, as_json: bool) -> None:
    """Write EXPORT_DIR as the next version of its model, and make that version the one that is served.

    Only an export whose validation passed, and whose files match their digests, is taken. The version is written aside and renamed
    into place, so a crash at any point leaves the old version served. A running `convoy serve` picks the change up by itself.
    """
    from convoy.contract.bundle import Bundle
    from convoy.serving.repository import Repository

    done = Repository(repository).deploy(Bundle.open(export_dir), name)
    if as_json:
        print_json(
            {
                "model_name": done.model_name,
                "version": str(done.version),
                "previous_version": None if done.previous is None else str(done.previous),
                "changed": done.changed,
                "repository": str(repository),
            }
        )
        return
    if not done.changed:
        click.echo(f"{done.model_name}: version {done.version} in {repository} is this export already; nothing to do.")
        return
    before = (
        "a new model" if done.previous is None else f"version {done.previous} before; `convoy rollback {done.model_name}` goes back"
    )
    click.echo(f"{done.model_name}: version {done.version} is the one to serve in {repository} ({before}).")
    option = "" if str(repository) == DEFAULT_REPOSITORY else f" --repository {repository}"
    click.echo(f"Next: convoy serve{option}   (one that runs already takes the version up by itself)")
