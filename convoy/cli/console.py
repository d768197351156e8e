"""How commands speak: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


_PIPE_WIDTH = 10_000


def json_option(function: Any) -> Any:
    """Add ``--json``, which prints one JSON document on stdout instead of text for people."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(function)


def print_json(value: Any) -> None:
    """Print ``value`` as one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def remark(message: str) -> None:
    """Say something to the person on stderr."""
    click.echo(message, err=True)


def stdout_console() -> Console:
    """A rich console on stdout, for tables of results; what no terminal shows is not folded, so that `grep` reads whole lines."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def progress(*, unit: str) -> Progress:
    """A progress bar on stderr with count, rate and time left; silent where stderr is no terminal.

    Args:
        unit: What is counted ("images", "epochs").
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        Rate(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
