"""``convoy describe``: what a network is made of, what it costs, and what of the image each layer sees.

With ``--json``, one document; pairs are rows, then columns::

    {
      "recipe", "network", "source": strings
      "image": {"height_px", "width_px", "channels"}
      "n_classes", "parameters", "training_only_parameters", "macs": integers; the first count of parameters holds the second
      "layers": every layer and operation, in the order in which they run, each
        {"name", "kind", "is_operation", "is_minor", "role", "dims", "parameters", "formula", "macs", "field", "not_followed"}
        where "field" is null or
        {"is_map", "size_px", "jump_px", "start_px", "centre_px", "least_pixels_share", "most_pixels_share", "least_features",
         "most_features", "is_exact"}: see ``convoy.training.anatomy.Layer`` and ``ReceptiveField``
      "last_map": the index in "layers" of the last whose features have places; null where there is none or it is not known
      "lecture": null where the lecture says nothing of the network, or nothing for such images; else a list of
        {"subject", "lecture_formula", "lecture", "exact_formula", "exact", "agrees", "remark"}
    }
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.console import json_option, print_json, remark, stdout_console
from convoy.contract.errors import MissingDependencyError

if TYPE_CHECKING:
    from convoy.training.anatomy import Anatomy, ReceptiveField, Row
    from convoy.training.anatomy.lecture import Comparison
    from convoy.training.recipes import Recipe

_KNOWN_DATA: Final = {"digits": (28, 1), "mnist": (28, 1), "fashion-mnist": (28, 1), "cifar10": (32, 3)}  # pixels, channels
_WIDE: Final = 110  # columns from which formulas are shown
_VERY_WIDE: Final = 140  # and from which places and shares of pixels are, too


@click.command("describe", short_help="Print a network's layers, costs and receptive fields.")
@click.argument("recipe")
@click.option("--data", metavar="NAME", help="The data set whose images the network takes. Default: the recipe's own.")
@click.option(
    "--image-size", type=click.IntRange(1, 2048), metavar="N", help="Images of NxN pixels. Default: as the recipe has them."
)
@click.option("--classes", type=click.IntRange(1, 1_000_000), metavar="K", help="Default: 10 of digits and CIFAR-10, else 1000.")
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Change a field of the recipe; may be given several times."
)
@click.option(
    "--depth", type=click.IntRange(1), metavar="N", help="Show blocks that lie N names deep as one row. Default: what fits."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the receptive fields on an image, as a PNG.",
)
@json_option
def command(
    recipe: str,
    data: str | None,
    image_size: int | None,
    classes: int | None,
    assignments: tuple[str, ...],
    depth: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Print RECIPE's layers: shapes, parameters, multiply-accumulates, receptive fields; the lecture's numbers beside them.

    \b
    convoy describe lenet5
    convoy describe resnet152 --image-size 224 --classes 1000 --depth 2
    convoy describe lenet5 --plot field.png

    \b
    field   how many pixels a feature sees, as if the image had no border
    jump    how many pixels lie between what neighbours see (the product of the strides)
    from    the first pixel that the first feature sees; below 0 it sees padding
    pixels  the share of the image that reaches a feature, at the border and in the middle

    From 110 columns on it shows how parameters are counted, from 140 on `from` and `pixels`; --json has everything.

    Nothing is computed or downloaded: the network runs on tensors that have shapes and no values.
    """  # noqa: D301  click's mark for text that is not to be wrapped
    from convoy.training.recipes import get_recipe

    if plot is not None:
        _check_plot(plot)
    resolved = get_recipe(recipe, data=data, assignments=assignments)
    try:
        from convoy.training.anatomy import examine, outline
        from convoy.training.anatomy.lecture import compare
        from convoy.training.networks import build_network
    except ImportError as error:
        raise MissingDependencyError(f"networks need {error.name}: pip install '.[train]' in Convoy's folder.") from error
    from convoy.contract.files import write_bytes
    from convoy.contract.image import ImageSpec

    side, channels = _image(resolved, image_size)
    n_classes = classes or (10 if resolved.data in _KNOWN_DATA else 1000)
    spec = ImageSpec(height_px=side, width_px=side, channels=channels)
    anatomy = examine(
        lambda: build_network(resolved.network, image=spec, n_classes=n_classes, architecture=resolved.architecture),
        channels=channels,
        height_px=side,
        width_px=side,
    )
    comparisons = compare(resolved.network, anatomy, n_classes)
    rows = outline(anatomy, depth)
    if plot is not None:
        from convoy.training.anatomy.picture import draw_fields

        write_bytes(plot, draw_fields(anatomy, rows, title=f"{resolved.name}: what the feature in the middle sees"))
        remark(f"convoy: the receptive fields are drawn in {plot}")
    if as_json:
        print_json(_document(resolved, anatomy, n_classes, comparisons))
    else:
        _tell(resolved, anatomy, n_classes, rows, comparisons)


def _check_plot(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise click.BadParameter(f"{path}: expected a file whose name ends with .png.", param_hint="'--plot'")
    if not path.parent.is_dir():
        raise click.BadParameter(f"{path}: expected a place in a folder; {path.parent} is none.", param_hint="'--plot'")


def _image(recipe: Recipe, image_size: int | None) -> tuple[int, int]:
    """Side in pixels and channels of the recipe's images; photos of unknown size are 224x224 RGB."""
    known_px, channels = _KNOWN_DATA.get(recipe.data, (224, 3))
    if recipe.normalisation.mean is not None:
        channels = len(recipe.normalisation.mean)
    return image_size or recipe.image_size_px or known_px, channels


def _document(recipe: Recipe, anatomy: Anatomy, n_classes: int, comparisons: tuple[Comparison, ...] | None) -> dict[str, Any]:
    channels, height_px, width_px = anatomy.image_dims
    return {
        "recipe": recipe.name,
        "network": recipe.network,
        "source": recipe.source,
        "image": {"height_px": height_px, "width_px": width_px, "channels": channels},
        "n_classes": n_classes,
        "parameters": anatomy.parameters,
        "training_only_parameters": anatomy.training_only_parameters,
        "macs": anatomy.macs,
        "layers": [layer.model_dump(mode="json") for layer in anatomy.layers],
        "last_map": anatomy.last_map,
        "lecture": None if comparisons is None else [asdict(comparison) for comparison in comparisons],
    }


def _tell(
    recipe: Recipe, anatomy: Anatomy, n_classes: int, rows: tuple[Row, ...], comparisons: tuple[Comparison, ...] | None
) -> None:
    channels, height_px, width_px = anatomy.image_dims
    click.echo(f"{click.style(recipe.name, bold=True)}  {recipe.title}\n  {recipe.source}")
    click.echo(f"  on {'grey' if channels == 1 else 'RGB'} images of {height_px}x{width_px}, {n_classes:,} classes\n")
    _tell_rows(rows)
    click.echo()
    _tell_sums(anatomy)
    _tell_reach(anatomy)
    _tell_lecture(recipe, comparisons)
    _tell_depth(anatomy, rows, recipe.name)


def _tell_rows(rows: tuple[Row, ...]) -> None:
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


def _tell_sums(anatomy: Anatomy) -> None:
    convolutions = anatomy.of_role("convolution")
    parameters, macs = sum(layer.parameters for layer in convolutions), sum(layer.macs for layer in convolutions)
    click.echo(f"{anatomy.parameters:,} parameters, {100 * parameters / max(1, anatomy.parameters):.1f} % in convolutions")
    if anatomy.training_only_parameters:
        click.echo(f"  of them {anatomy.training_only_parameters:,} in heads that work in training only and are not listed")
    click.echo(f"{anatomy.macs:,} multiply-accumulates an image, {100 * macs / max(1, anatomy.macs):.1f} % in convolutions")


def _tell_reach(anatomy: Anatomy) -> None:
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
        click.echo(f"Each of the {_times(layer.dims[-2:])} places of the last map, {_title(layer)}, sees {about}{most:,} pixels.")
    else:
        click.echo(
            f"Of {n_pixels:,} pixels {least:,} reach a corner of the last map, {_title(layer)}, and {about}{most:,} its middle "
            f"({_percent(field.least_pixels_share)} and {_percent(field.most_pixels_share)});\n"
            f"each pixel reaches {field.least_features:,} to {field.most_features:,} of its {_times(layer.dims[-2:])} places."
        )


def _tell_lecture(recipe: Recipe, comparisons: tuple[Comparison, ...] | None) -> None:
    from convoy.training.anatomy.lecture import LECTURE

    facts = LECTURE.get(recipe.network)
    if facts is None:
        return
    if comparisons is None:
        _, height_px, _ = facts.image_dims
        click.echo(
            f"\nThe lecture's numbers are for {height_px}x{height_px} images and {facts.n_classes:,} classes: "
            f"convoy describe {recipe.name} --image-size {height_px} --classes {facts.n_classes}"
        )
        return
    click.echo(f"\n{click.style('The lecture', bold=True)}, and what is built here")
    for comparison in comparisons:
        lecture = (
            comparison.lecture if comparison.lecture_formula is None else f"{comparison.lecture_formula} = {comparison.lecture}"
        )
        exact = f"{comparison.exact:,.0f}" if comparison.exact >= 1 else f"{100 * comparison.exact:.1f} %"
        if comparison.exact_formula is not None:
            exact = f"{comparison.exact_formula} = {exact}"
        mark = "agrees" if comparison.agrees else "is off"
        click.echo(f"  {comparison.subject}: {lecture}; exactly {exact}: {mark}")
        if comparison.remark:
            click.echo(f"    {comparison.remark}")


def _tell_depth(anatomy: Anatomy, rows: tuple[Row, ...], recipe: str) -> None:
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
