"""``python -m benchmarks.export_matrix``: what export makes of Convoy's recipes and of torchvision's classification families.

Each network is exported in a process of its own: our gate's verdict, the precisions, time, peak memory and file size, beside what
``torch.onnx.export`` alone would have said, and whether its file is right in batches of 1, 2 and 7.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click

from benchmarks._export_row import MAX_ACCURACY_DROP, Reduced, Row
from benchmarks._networks import FAMILIES, network_names, size_of
from benchmarks.harness import Document, Figure, benchmark, document
from convoy.contract.errors import ExportError, UsageError
from convoy.contract.files import write_bytes

DOCUMENT: Final = Path(__file__).resolve().parent.parent / "docs" / "export_matrix.md"
PACKAGES: Final = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy")
PRECISIONS: Final = ("fp16", "int8")
TIMEOUT_S: Final = 1800
_MAX_REASON_CHARS: Final = 400

_INTRODUCTION: Final = """\
# Export matrix

`{command}` wrote this page at commit {commit} on {machine}, with {versions}.

{green} of {n} networks pass the gate as float32. Of the files that `torch.onnx.export` writes of the same networks by itself,
{right} answer as the network does in batches of 1, 2 and 7.

- The networks have random weights; their batch norms hold the statistics of the images, and their last layer is fitted to the
  classes of 96 training images, so that decisions have margins. Accuracies mean nothing beyond that.
- fp16 and int8 are gated by an accuracy drop of at most {drop} (the upper end of its 95 % confidence interval). `x` is the
  throughput over float32's in ONNX Runtime on this CPU, which computes float16 in float32.
- Export: from the module to the ONNX model. Gate: all that `convoy export` does after that. Memory: the peak of the whole process,
  and in brackets what it held before: PyTorch, the network, the images.
- `torch.onnx.export` alone: one example image, a dynamic batch axis, the exporter's defaults.

| family | network | images | float32 | fp16 | int8 | export s | gate s | memory MiB | file MiB | `torch.onnx.export` alone |
|---|---|---|---|---|---|---:|---:|---:|---:|---|
"""


@benchmark("export_matrix", packages=PACKAGES)
@click.option("--networks", help="Only these, separated by commas; docs/export_matrix.md is then left alone.")
@click.option(
    "--size", "size_px", type=click.IntRange(16, 1024), help="Height and width of all images, where the network allows it."
)
@click.option("--images", "n_images", default=128, show_default=True, type=click.IntRange(100, 431), help="Images for the gate.")
@click.option(
    "--precisions",
    type=click.Choice(["none", "first", "all"]),
    default="first",
    show_default=True,
    help="Try fp16 and int8 on no network, on the first of each family, or on all.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the table here.")
def main(networks: str | None, size_px: int | None, n_images: int, precisions: str, out: Path | None) -> Iterable[Figure]:
    """Export every network, run the gate, and write docs/export_matrix.md."""
    chosen = _chosen(networks)
    firsts = {next(iter(family)) for family in FAMILIES.values()}
    rows = []
    for i, name in enumerate(chosen):
        reduced = PRECISIONS if precisions == "all" or (precisions == "first" and name in firsts) else ()
        click.echo(f"{i + 1}/{len(chosen)} {name} ...", err=True)
        try:
            row = measure_apart(name, n_images, size_px, reduced)
        except ExportError as error:  # the others are measured all the same
            row = Row(network=name, size_px=size_px or size_of(name), images="", verdict="error", why=str(error))
        click.echo(f"    {row.verdict} {row.why}", err=True)
        rows.append(row)
    figures = figures_of(rows)
    target = out or (DOCUMENT if networks is None else None)
    if target is not None:
        write_bytes(target, page(rows, document("export_matrix", figures, PACKAGES), size_px).encode())
    return figures


def _chosen(networks: str | None) -> tuple[str, ...]:
    if networks is None:
        return network_names()
    chosen = tuple(name.strip() for name in networks.split(",") if name.strip())
    if not chosen or len(set(chosen)) != len(chosen):
        raise UsageError(f"--networks: expected names, each once, separated by commas; found {networks!r}.")
    for name in chosen:
        size_of(name)
    return chosen


def measure_apart(name: str, n_images: int, size_px: int | None, precisions: Sequence[str]) -> Row:
    """One row, measured in a child process.

    Args:
        name: The network.
        n_images: For the gate.
        size_px: The height and width of the images; None takes the network's own.
        precisions: Which reduced ones to try.

    Raises:
        ExportError: The child broke: it ran out of memory or time, or there is a fault in it.
    """
    command = [sys.executable, "-m", "benchmarks._export_row", name, str(n_images), str(size_px or 0), *precisions]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ, check=False)
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{name}: expected an export within {TIMEOUT_S} s.") from error
    with contextlib.suppress(ValueError, IndexError):
        return Row.model_validate_json(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
    raise ExportError(f"{name}: the measuring process ended with {done.returncode} and said: {said[0]}")


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """What the rows come to."""
    figures = [
        Figure(name="networks", value=len(rows)),
        Figure(name="fail the gate", value=sum(row.verdict in ("failed", "error") for row in rows), unit="networks", goal="== 0"),
        Figure(name="undecided", value=sum(row.verdict == "undecided" for row in rows), unit="networks", goal="== 0"),
        Figure(name="wrong or refused by torch.onnx.export alone", value=sum(not row.plain_right for row in rows), unit="networks"),
    ]
    for precision in PRECISIONS:
        reduced = [found for row in rows if (found := getattr(row, precision)) is not None]
        if reduced:
            figures.append(Figure(name=f"{precision}: tried", value=len(reduced), unit="networks"))
            passed = sum(each.verdict == "passed" for each in reduced)
            figures.append(Figure(name=f"{precision}: passed", value=passed, unit="networks"))
            broken = sum(each.verdict == "error" for each in reduced)
            figures.append(Figure(name=f"{precision}: broken off", value=broken, unit="networks", goal="== 0"))
    exported = [row for row in rows if row.verdict != "error"]
    if exported:
        figures += [
            Figure.of("seconds to export", [row.export_s for row in exported], "s"),
            Figure.of("seconds in the gate", [row.gate_s for row in exported], "s"),
            Figure.of("peak memory", [row.peak_mib for row in exported], "MiB"),
        ]
    return figures


def page(rows: Sequence[Row], facts: Document, size_px: int | None) -> str:
    """The matrix as a Markdown document.

    Args:
        rows: In the order of ``network_names()``.
        facts: Where they were measured.
        size_px: What ``--size`` said.
    """
    family_of = {name: family for family, names in FAMILIES.items() for name in names}
    command = "python -m benchmarks.export_matrix" + (f" --size {size_px}" if size_px else "")
    machine = ", ".join(f"{key} {value}" for key, value in facts.machine.items())
    versions = ", ".join(f"{key} {value}" for key, value in facts.versions.items() if value != "not installed")
    green = sum(row.verdict == "passed" for row in rows)
    right = sum(row.plain_right is True for row in rows)
    lines = _INTRODUCTION.format(
        command=command,
        commit=(facts.commit or "unknown")[:12],
        machine=machine,
        versions=versions,
        green=green,
        n=len(rows),
        right=right,
        drop=f"{MAX_ACCURACY_DROP:.0%}",
    ).splitlines()
    for row in rows:
        cells = [
            family_of.get(row.network, ""),
            row.network,
            f"{row.size_px} px, {row.images}",
            row.verdict if row.verdict == "passed" else f"**{row.verdict}**",
            _cell(row.fp16),
            _cell(row.int8),
            f"{row.export_s:.1f}",
            f"{row.gate_s:.1f}",
            f"{row.peak_mib:,.0f} ({row.base_mib:,.0f})",
            f"{row.file_mib:.1f}",
            _plain(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    reasons = [
        f"- {row.network}, {precision}: {_text(textwrap.shorten(why, _MAX_REASON_CHARS, placeholder=' ...'))}"
        for row in rows
        for precision, verdict, why in _verdicts(row)
        if verdict != "passed"
    ]
    if reasons:
        lines += ["", "## What did not pass, and why", "", *reasons]
    return "\n".join(lines) + "\n"


def _verdicts(row: Row) -> list[tuple[str, str, str]]:
    reduced = [(precision, getattr(row, precision)) for precision in PRECISIONS]
    return [
        ("float32", row.verdict, row.why),
        *((precision, found.verdict, found.why) for precision, found in reduced if found is not None),
    ]


def _cell(reduced: Reduced | None) -> str:
    if reduced is None:
        return ""
    if reduced.accuracy_drop is None or reduced.speed_up is None:
        return reduced.verdict
    return f"{reduced.verdict}, drop {reduced.accuracy_drop:.1%}, {reduced.speed_up:.2f} x"


def _plain(row: Row) -> str:
    if row.plain_right is None:
        return _text(row.plain)
    return f"{row.plain}; {'right' if row.plain_right else f'**wrong**: {_text(row.plain_why)}'}"


def _text(message: str) -> str:
    """A message for one cell of a Markdown table."""
    return " ".join(message.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
