"""``convoy doctor``: what this machine and a running server are fit for, and what to do about what is not."""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convoy.cli.console import json_option, print_json
from convoy.cli.deploy import repository_option

if TYPE_CHECKING:
    from convoy.serving.doctor.examination import Examination
    from convoy.serving.triton.finding import Finding

_SOURCES_SHOWN = 3


@click.command()
@repository_option
@click.option(
    "--url", help="Look at this running server, too (http://, https://, grpc:// or grpcs://).  [default: ports 8000-8002]"
)
@json_option
def command(repository: Path, url: str | None, as_json: bool) -> None:
    """Say what this machine can do, and what to do about what is missing.

    Looks at the server's wheel, ONNX Runtime, GPU, CUDA libraries, shared memory, ports, disk, Docker, published vulnerabilities
    of what is installed, and at what a running server leaves open. It changes nothing. Exit status 1 where there is a problem.
    """
    from convoy.serving.doctor.examination import examine_here

    examination = examine_here(repository, url)
    if as_json:
        counts: dict[str, object] = dict(examination.counts.items())
        summary = {**counts, "can_serve": examination.can_serve, "seconds": round(examination.seconds, 3)}
        print_json({"findings": [asdict(finding) for finding in examination.findings], "summary": summary})
    else:
        click.echo("\n".join(_lines(examination)))
    if examination.counts["problem"]:
        raise click.exceptions.Exit(1)


def _lines(examination: Examination) -> list[str]:
    width = max(len(finding.name) for finding in examination.findings)
    lines, group = [], ""
    for finding in examination.findings:
        if finding.group != group:
            lines += [*([""] if group else []), finding.group]
            group = finding.group
        lines += _finding(finding, width)
    counts = examination.counts
    verdict = "`convoy serve` works here." if examination.can_serve else "`convoy serve` does not work here."
    said = f"{_count(counts['problem'], 'problem')}, {_count(counts['warning'], 'warning')}."
    return [*lines, "", f"{verdict} {said}" + (" What to do stands beside each." if counts["problem"] + counts["warning"] else "")]


def _finding(finding: Finding, width: int) -> list[str]:
    """One finding: a line each for what was found, what was expected, what to do, and where to read more."""
    rows: list[tuple[str, str, str]] = [(finding.level, finding.name, finding.found)]
    if finding.expected:
        rows.append(("", "", f"expected: {finding.expected}"))
    if finding.advice:
        rows.append(("", "", f"to do: {finding.advice}"))
    shown, more = finding.sources[:_SOURCES_SHOWN], len(finding.sources) - _SOURCES_SHOWN
    rows += [("", "", f"see: {source}") for source in shown]
    if more > 0:
        rows.append(("", "", f"see: {more} more with --json"))
    return [line for level, name, text in rows for line in _wrapped(f"  {level:7}  {name:{width}}  ", text)]


def _wrapped(start: str, text: str) -> list[str]:
    if not sys.stdout.isatty():
        return [start + text]  # whole lines for `grep`
    columns = max(shutil.get_terminal_size().columns, len(start) + 30)
    indent = " " * len(start)
    return textwrap.wrap(
        text, columns, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [start]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
