"""What ``convoy describe`` prints of a network: a table of layers, sums, and what of the image reaches the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.console import remark, stdout_console

if TYPE_CHECKING:
    from convoy.training.anatomy import Anatomy, ReceptiveField, Row

_WIDE: Final = 110  # columns from which formulas are shown
_VERY_WIDE: Final = 140  # and from which places and shares of pixels are, too


def tell_rows(rows: tuple[Row, ...]) -> None:
    """Print the layers as a table, as wide as the terminal."""
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    is_wide, is_very_wide = console.width >= _WIDE, console.width >= _VERY_WIDE
    table = Table(box=None, padding=(0, 2 if is_very_wide else 1, 0, 0), header_style="bold")
    for heading in ("name", "layer"):
        table.add_column(heading, overflow="fold")
    for heading in ("gives", "parameters", "MACs", "field", "jump", *(("from", "pixels") if is_very_wide else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    if is_wide:
        table.add_column("parameters are", no_wrap=True)
    for row in rows:
        field = row.field
        cells = [
            row.name,
            row.kind,
            _times(row.dims),
            f"{row.parameters:,}" if row.parameters else "",
            _short(row.macs) if row.macs else "",
            "?" if field is None else _extent(field),
            "" if field is None or field.jump_px is None else _once(field.jump_px),
        ]
        if is_very_wide:
            cells += ["" if field is None or field.start_px is None else _once(field.start_px), _shares(field)]
        if is_wide:
            cells.append(row.formula or "")
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def tell_sums(anatomy: Anatomy) -> None:
    """Print parameters and multiply-accumulates, and the share of them that is in convolutions."""
    convolutions = anatomy.of_role("convolution")
    parameters, macs = sum(layer.parameters for layer in convolutions), sum(layer.macs for layer in convolutions)
    click.echo(f"{anatomy.parameters:,} parameters, {100 * parameters / max(1, anatomy.parameters):.1f} % in convolutions")
    if anatomy.training_only_parameters:
        click.echo(f"  of them {anatomy.training_only_parameters:,} in heads that work in training only and are not listed")
    click.echo(f"{anatomy.macs:,} multiply-accumulates an image, {100 * macs / max(1, anatomy.macs):.1f} % in convolutions")


def tell_reach(anatomy: Anatomy) -> None:
    """Print how many pixels the last features see that have places."""
    lost = next((layer for layer in anatomy.layers if layer.not_followed), None)
    if lost is not None:
        click.echo(f"Receptive fields are not known from {_title(lost)} on: {lost.not_followed}.")
        return
    if anatomy.last_map is None:
        return
    layer = anatomy.layers[anatomy.last_map]
    field, n_pixels = layer.field, anatomy.image_dims[1] * anatomy.image_dims[2]
    assert field is not None  # the last map has one
    least, most = round(field.least_pixels_share * n_pixels), round(field.most_pixels_share * n_pixels)
    about = "" if field.is_exact else "at most "
    if least == most:
        click.echo(f"Each of the {_times(layer.dims[1:])} places of the last map, {_title(layer)}, sees {about}{most:,} pixels.")
    else:
        click.echo(
            f"Of {n_pixels:,} pixels {least:,} reach a corner of the last map, {_title(layer)}, and {about}{most:,} its middle "
            f"({_percent(field.least_pixels_share)} and {_percent(field.most_pixels_share)});\n"
            f"each pixel reaches {field.least_features:,} to {field.most_features:,} of its {_times(layer.dims[1:])} places."
        )


def draw(path: Path, anatomy: Anatomy, rows: tuple[Row, ...], recipe: str) -> None:
    """Draw the receptive fields into a file, and say so."""
    from convoy.contract.files import write_bytes
    from convoy.training.anatomy.picture import draw_fields

    write_bytes(path, draw_fields(anatomy, rows, title=f"{recipe}: what the feature in the middle sees"))
    remark(f"convoy: the receptive fields are drawn in {path}")


def tell_depth(anatomy: Anatomy, rows: tuple[Row, ...], recipe: str) -> None:
    """Print how to see the layers within blocks, where rows are blocks."""
    from convoy.training.anatomy import depth_of, outline

    deepest = depth_of(anatomy)
    all_rows = len(outline(anatomy, deepest))
    if all_rows > len(rows):
        click.echo(f"\nBlocks are one row each: convoy describe {recipe} --depth {deepest} shows all {all_rows} layers.")


def _title(layer: Any) -> str:
    return f"{layer.name} ({layer.kind})" if layer.name else str(layer.kind)


def _times(dims: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in dims)


def _once(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else _times(pair)


def _extent(field: ReceptiveField) -> str:
    return "all" if not field.is_map and field.least_pixels_share == 1 else _times(field.size_px)


def _shares(field: ReceptiveField | None) -> str:
    if field is None:
        return "?"
    least, most = _percent(field.least_pixels_share), _percent(field.most_pixels_share)
    return most if least == most else f"{least} to {most}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.2g} %"


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
