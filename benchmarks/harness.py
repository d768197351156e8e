"""What all benchmarks share: the document that they print, goals, interleaved rounds, the command around a measurement."""

from __future__ import annotations

import functools
import json
import math
import operator
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import click
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, computed_field

from convoy.contract.errors import ConvoyError

_ROOT: Final = Path(__file__).resolve().parent.parent
_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_GOAL: Final = re.compile(r"(>=|<=|==|>|<) (-?\d+(?:\.\d+)?)")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def meets(value: float, goal: str) -> bool:
    """Whether ``value`` meets ``goal``.

    Args:
        value: What was measured.
        goal: A comparison and a number with one space between: ">= 1.3", "== 0".

    Raises:
        ValueError: ``goal`` is something else.
    """
    match = _GOAL.fullmatch(goal)
    if match is None:
        raise ValueError(f"expected a goal such as '>= 1.3' ({', '.join(_COMPARISONS)}, a space, a number), found {goal!r}")
    return _COMPARISONS[match[1]](value, float(match[2]))


class Figure(_Part):
    """One number that was measured.

    Attributes:
        name: What it is, unique in its document.
        value: The median over the rounds, or the one value there is.
        low: The least over the rounds; None where there was one value.
        high: The largest.
        unit: "ms", "images/s", "ratio", "mutations"; empty for a bare number.
        goal: The bar, such as ">= 1.3"; None where there is none.
    """

    name: str = Field(min_length=1)
    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    unit: str = ""
    goal: str | None = Field(default=None, pattern=f"^{_GOAL.pattern}$")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def holds(self) -> bool | None:
        """Whether ``value`` meets the goal; None where there is none."""
        return None if self.goal is None else meets(self.value, self.goal)

    @classmethod
    def of(cls, name: str, samples: Sequence[float], unit: str = "", goal: str | None = None) -> Figure:
        """The figure of several rounds: their median, least and largest.

        Raises:
            ValueError: There are no samples, or one is not finite.
        """
        if not samples:
            raise ValueError(f"{name}: expected a sample at least, found none")
        return cls(name=name, value=statistics.median(samples), low=min(samples), high=max(samples), unit=unit, goal=goal)


class Document(_Part):
    """What a benchmark prints with ``--json``.

    Attributes:
        benchmark: Its name, as in ``python -m benchmarks.NAME``.
        commit: Of the checkout, with "-dirty" behind it where tracked files differ from it; None where there is no git.
        machine: What it ran on.
        versions: Of Python and of the packages that matter.
        figures: What was measured.
    """

    benchmark: str
    commit: str | None
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    figures: tuple[Figure, ...]

    @property
    def holds(self) -> bool:
        """Whether every goal holds. A document without a figure measured nothing, and nothing holds."""
        return bool(self.figures) and all(figure.holds is not False for figure in self.figures)


def document(benchmark: str, figures: Iterable[Figure], packages: Iterable[str] = ()) -> Document:
    """Put figures beside where they were measured.

    Args:
        benchmark: Its name.
        figures: What was measured.
        packages: The packages whose versions matter.

    Raises:
        ValueError: Two figures have one name.
    """
    listed = tuple(figures)
    names = [figure.name for figure in listed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"expected each figure to have its own name, found twice: {twice}")
    return Document(benchmark=benchmark, commit=_commit(), machine=_machine(), versions=_versions(packages), figures=listed)


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=_ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _machine() -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return facts


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    match = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return match[1] if match else "unknown"


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def seconds(call: Callable[[], Any], times: int = 1) -> float:
    """How long ``call`` takes, in seconds: the mean of ``times`` calls in a row."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def interleave(cases: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Measure several cases in turns, so that what the machine does besides falls on all of them.

    Each round runs every case once; the order turns round by one from round to round, so that none always follows the same other.

    Args:
        cases: By name, a function that measures once and returns the number.
        rounds: How many rounds count.
        warm_up: How many rounds come first and do not count.

    Returns:
        By name, one number a round, in the order of the rounds: those of one round belong together.

    Raises:
        ValueError: ``rounds`` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"expected a round at least, found {rounds}")
    names = list(cases)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            sample = cases[name]()
            if turn >= 0:
                samples[name].append(sample)
    return samples


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Round by round, one case over another: what slowed a whole round down cancels out.

    Raises:
        ValueError: There are not as many of the one as of the other.
    """
    return [numerator / denominator for numerator, denominator in zip(numerators, denominators, strict=True)]


def benchmark(name: str, *, packages: Iterable[str] = ()) -> Callable[[Callable[..., Iterable[Figure]]], click.Command]:
    """Make a command of a function that measures.

    The command prints a table or, with ``--json``, the document; it exits with 0 where every goal holds, 1 where one does not or
    the work failed, 2 on wrong use. The function's ``click.option`` decorators stand below this one.

    Args:
        name: The benchmark's name.
        packages: The packages whose versions matter.
    """

    def decorate(measure: Callable[..., Iterable[Figure]]) -> click.Command:
        @functools.wraps(measure)
        def run(*, as_json: bool, **options: Any) -> None:
            try:
                result = document(name, measure(**options), packages)
            except ConvoyError as error:
                click.echo(f"{type(error).__name__}: {error}", err=True)
                sys.exit(error.exit_code)
            if as_json:
                click.echo(json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False))
            else:
                show(result)
            sys.exit(0 if result.holds else 1)

        option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
        return click.command(name, context_settings={"max_content_width": 120})(option(run))

    return decorate


def show(result: Document) -> None:
    """Print a document as a table for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("figure", "value", "lowest to highest", "unit", "goal", "")
    for figure in result.figures:
        spread = "" if figure.low is None or figure.high is None else f"{_short(figure.low)} to {_short(figure.high)}"
        verdict = {True: Text("holds", "green"), False: Text("does not hold", "bold red"), None: Text("")}[figure.holds]
        table.add_row(Text(figure.name), _short(figure.value), spread, figure.unit, figure.goal or "", verdict)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    machine = ", ".join(f"{key} {value}" for key, value in result.machine.items())
    versions = ", ".join(f"{key} {value}" for key, value in result.versions.items())
    console.print(f"{result.benchmark} at {(result.commit or 'no commit')[:12]}; {machine}; {versions}", markup=False)


def _short(value: float) -> str:
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))) - 1)}f}"
