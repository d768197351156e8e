"""``convoy deploy``: an exported model becomes the next version of a repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.console import json_option, print_json, remark

if TYPE_CHECKING:
    from convoy.contract.bundle import Bundle
    from convoy.contract.manifest import Manifest
    from convoy.serving.repository import Deployment, Repository

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
@click.option("--verify", "public_key", type=click.Path(path_type=Path), help="Take it only where this public key (PEM) signed it.")
@json_option
def command(export_dir: Path, repository: Path, name: str | None, public_key: Path | None, as_json: bool) -> None:
    """Write EXPORT_DIR as the next version of its model, and make that version the one that is served.

    Only an export whose validation passed, and whose files match their digests, is taken. The version is written aside and renamed
    into place, so a crash at any point leaves the old version served. A running `convoy serve` picks the change up by itself.
    """
    from convoy.contract.bundle import Bundle
    from convoy.contract.signature import verify_bundle
    from convoy.serving.repository import Repository

    if public_key is not None:
        verify_bundle(export_dir, public_key)
    bundle = Bundle.open(export_dir)
    repo = Repository(repository)
    done = repo.deploy(bundle, name)
    remark_on_threshold(bundle.manifest)
    if as_json:
        print_json(as_dict(done, repository))
        return
    if not done.changed:
        click.echo(f"{done.model_name}: version {done.version} in {repository} is this export already; nothing to do.")
        return
    before = (
        "a new model" if done.previous is None else f"version {done.previous} before; `convoy rollback {done.model_name}` goes back"
    )
    click.echo(f"{done.model_name}: version {done.version} is the one to serve in {repository} ({before}).")
    _compare(repo, done, bundle)
    option = "" if str(repository) == DEFAULT_REPOSITORY else f" --repository {repository}"
    click.echo(f"Next: convoy serve{option}   (one that runs already takes the version up by itself)")


def as_dict(done: Deployment, repository: Path) -> dict[str, Any]:
    """What a deployment or a rollback did, for ``--json``."""
    return {
        "model_name": done.model_name,
        "version": str(done.version),
        "previous_version": None if done.previous is None else str(done.previous),
        "changed": done.changed,
        "repository": str(repository),
    }


def remark_on_threshold(manifest: Manifest) -> None:
    """Say that a reader of amounts without a threshold leaves all of them to people."""
    if manifest.reading is not None and manifest.reading.accept is None:
        remark(
            f"convoy: {manifest.model_name} accepts no amount: its training found no threshold with few enough errors, so that "
            "all go to a person."
        )


def _shown(manifest: Manifest) -> str:
    return "images" if manifest.reading is None else "fields"


def _compare(repository: Repository, done: Deployment, bundle: Bundle) -> None:
    """Say the accuracy, and warn where the version before was better on the same images."""
    from convoy.contract.bundle import MANIFEST_FILE
    from convoy.contract.manifest import Manifest

    new = bundle.manifest.accuracy
    if new is None:
        return
    click.echo(f"Accuracy {new.onnxruntime:.2%} on {new.n:,} {_shown(bundle.manifest)} ({new.split}).")
    if done.previous is None:
        return
    old = Manifest.load(repository.version_folder(done.model_name, done.previous) / MANIFEST_FILE).accuracy
    if old is not None and (old.split, old.n) == (new.split, new.n) and old.onnxruntime > new.onnxruntime:
        shown = _shown(bundle.manifest)
        remark(f"convoy: warning: version {done.previous} was better on as many {shown} of {old.split}: {old.onnxruntime:.2%}.")
