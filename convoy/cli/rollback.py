"""``convoy rollback``: serve an older version again."""

from __future__ import annotations

from pathlib import Path

import click

from convoy.cli.console import json_option, print_json
from convoy.cli.deploy import as_dict, repository_option


@click.command("rollback")
@click.argument("model_name", metavar="MODEL")
@click.option("--to", "to", type=click.IntRange(min=1), help="The version to serve; the one served before where left out.")
@repository_option
@json_option
def command(model_name: str, to: int | None, repository: Path, as_json: bool) -> None:
    """Serve an older version of MODEL again, with the configuration that it was deployed with.

    A running `convoy serve` picks the change up by itself. The newer version stays on disk: `--to` goes back to it.
    """
    from convoy.serving.repository import Repository

    done = Repository(repository).rollback(model_name, to)
    if as_json:
        print_json(as_dict(done, repository))
    elif done.changed:
        click.echo(f"{done.model_name}: version {done.version} is the one to serve again (version {done.previous} before).")
    else:
        click.echo(f"{done.model_name}: version {done.version} is served already; nothing to do.")
