"""``convoy doctor``: what this machine can do, and what to do about what is missing."""

from __future__ import annotations

from dataclasses import asdict

import click

from convoy.cli.console import json_option, print_json

_COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Say what this machine can do, and what to do about what is missing.

    Exit status 1 where something is missing that `convoy serve` needs.
    """
    from convoy.serving.triton.machine import examine_machine

    findings = examine_machine()
    n_problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        print_json({"can_serve": n_problems == 0, "findings": [asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            words = " ".join(filter(None, [finding.found, finding.advice]))
            click.echo(f"{click.style(f'{finding.level:7}', fg=_COLORS[finding.level])}  {finding.subject:{width}}  {words}")
        verdict = (
            "This machine can serve."
            if n_problems == 0
            else f"`convoy serve` does not work here: {n_problems} problem(s), see above."
        )
        click.echo(verdict)
    if n_problems:
        raise click.exceptions.Exit(1)
