"""``convoy probe``: does a running server answer as PyTorch did?"""

from __future__ import annotations

from pathlib import Path

import click

from convoy.cli.console import json_option, print_json
from convoy.cli.deploy import repository_option


@click.command("probe")
@click.argument("url")
@click.argument("model_names", metavar="[MODEL]...", nargs=-1)
@repository_option
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True, help="Seconds a call."
)
@json_option
def command(url: str, model_names: tuple[str, ...], repository: Path, timeout_s: float, as_json: bool) -> None:
    """Replay the golden inputs of every MODEL (all of the repository's, where none is named) on the server at URL.

    The goldens and the tolerances come from the repository's served version; PyTorch's outputs were written at export. Exit
    status 1 where an answer differs.
    """
    from convoy.contract.bundle import Bundle
    from convoy.contract.errors import RepositoryError, ValidationFailedError
    from convoy.serving.client import Client
    from convoy.serving.probe import replay
    from convoy.serving.repository import Repository

    repo = Repository(repository)
    served = {entry.name: entry.served for entry in repo.models()}
    if not served:
        raise RepositoryError(f"{repository}: expected models whose golden inputs can be replayed, found none.")
    failed = []
    results = []
    with Client(url, timeout_s=timeout_s) as client:
        for name in model_names or served:
            if name not in served:
                raise RepositoryError(f"{repository}: expected the model {name!r}, found {', '.join(sorted(served))}.")
            version = served[name]
            if version is None:
                raise RepositoryError(
                    f"{repository / name}: expected a configuration that names the version to serve, and golden inputs to replay, "
                    "as `convoy deploy` writes them; found none. Name the models that were deployed so."
                )
            bundle = Bundle.open(repo.version_folder(name, version))
            found = replay(client, bundle, name, str(version))
            for output, agreement in found.items():
                if not agreement.passed:
                    failed.append(f"{name} version {version}: {output}")
                results.append(
                    {
                        "model_name": name,
                        "model_version": str(version),
                        "output": output,
                        "passed": agreement.passed,
                        **agreement.model_dump(mode="json"),
                    }
                )
                if not as_json:
                    decisions = f", top-1 differs on {agreement.n_top1_differs}" if bundle.manifest.reading is None else ""
                    click.echo(
                        f"{'passed' if agreement.passed else 'FAILED'}  {name} version {version}: {output}: {agreement.n} answers, "
                        f"max_abs_diff {agreement.max_abs_diff:.3g}, {agreement.n_outside} outside the tolerance{decisions}"
                    )
    if as_json:
        print_json({"url": url, "passed": not failed, "results": results})
    if failed:
        raise ValidationFailedError(f"{url} does not answer as PyTorch did: {'; '.join(failed)}.")
