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
      "reading": null of a classifier; of a reader
        {"grammar", "decimal": strings, "characters": the alphabet, "states", "arcs": integers, of the grammar's automaton,
         "max_characters": of an amount, "frames": what the image gives, "jump_px": columns from one frame to the next,
         "field_px": columns that reach a frame}
      "lecture": null where the lecture says nothing of the network, or nothing for such images; else a list of
        {"subject", "lecture_formula", "lecture", "exact_formula", "exact", "agrees", "remark"}
    }
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.console import json_option, print_json
from convoy.cli.layers import draw, tell_depth, tell_reach, tell_rows, tell_sums
from convoy.contract.errors import MissingDependencyError

if TYPE_CHECKING:
    from convoy.training.anatomy import Anatomy, Row
    from convoy.training.anatomy.lecture import Comparison
    from convoy.training.recipes import Recipe

_KNOWN_DATA: Final = {"digits": (28, 1), "mnist": (28, 1), "fashion-mnist": (28, 1), "cifar10": (32, 3)}  # pixels, channels


@click.command("describe", short_help="Print a network's layers, costs and receptive fields.")
@click.argument("recipe")
@click.option("--data", metavar="NAME", help="The data set whose images the network takes. Default: the recipe's own.")
@click.option(
    "--image-size",
    type=click.IntRange(1, 2048),
    metavar="N",
    help="Images of NxN pixels; a reader: fields N columns wide. Default: as the recipe has them; five heights.",
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
    convoy describe check-reader --image-size 400

    \b
    field   how many pixels a feature sees, as if the image had no border
    jump    how many pixels lie between what neighbours see (the product of the strides)
    from    the first pixel that the first feature sees; below 0 it sees padding
    pixels  the share of the image that reaches a feature, at the border and in the middle

    From 110 columns on it shows how parameters are counted, from 140 on `from` and `pixels`; --json has everything.

    Nothing is computed or downloaded: the network runs on tensors that have shapes and no values.
    """  # noqa: D301  click's mark for text that is not to be wrapped
    from convoy.training.recipes import get_recipe
    from convoy.training.recipes.reader import READER_RECIPES, get_reader_recipe

    if plot is not None:
        _check_plot(plot)
    if recipe in READER_RECIPES:
        if data is not None or classes is not None:
            raise click.UsageError(
                f"{recipe} reads amounts: its grammar says what its classes are; leave --data and --classes out."
            )
        from convoy.cli.describe_reader import describe_reader

        describe_reader(get_reader_recipe(recipe, assignments), width_px=image_size, depth=depth, plot=plot, as_json=as_json)
        return
    resolved = get_recipe(recipe, data=data, assignments=assignments)
    try:
        from convoy.training.anatomy import examine, outline
        from convoy.training.anatomy.lecture import compare
        from convoy.training.networks import build_network
    except ImportError as error:
        raise MissingDependencyError(f"networks need {error.name}: pip install '.[train]' in Convoy's folder.") from error
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
        draw(plot, anatomy, rows, resolved.name)
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
        "reading": None,
        "lecture": None if comparisons is None else [asdict(comparison) for comparison in comparisons],
    }


def _tell(
    recipe: Recipe, anatomy: Anatomy, n_classes: int, rows: tuple[Row, ...], comparisons: tuple[Comparison, ...] | None
) -> None:
    channels, height_px, width_px = anatomy.image_dims
    click.echo(f"{click.style(recipe.name, bold=True)}  {recipe.title}\n  {recipe.source}")
    click.echo(f"  on {'grey' if channels == 1 else 'RGB'} images of {height_px}x{width_px}, {n_classes:,} classes\n")
    tell_rows(rows)
    click.echo()
    tell_sums(anatomy)
    tell_reach(anatomy)
    _tell_lecture(recipe, comparisons)
    tell_depth(anatomy, rows, recipe.name)


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
