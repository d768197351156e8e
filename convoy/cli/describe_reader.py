"""``convoy describe check-reader``: what a reader's network is made of, what it costs, and what of the field each frame sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.console import print_json
from convoy.cli.layers import draw, tell_depth, tell_rows, tell_sums
from convoy.contract.errors import MissingDependencyError

if TYPE_CHECKING:
    from convoy.training.anatomy import Anatomy, Row
    from convoy.training.check_reader.grammar import Grammar
    from convoy.training.recipes.reader import ReaderRecipe

_HEIGHTS: Final = 5  # what a field is wide that nobody said the width of


def describe_reader(recipe: ReaderRecipe, *, width_px: int | None, depth: int | None, plot: Path | None, as_json: bool) -> None:
    """Print a reader's layers on fields of a width, and its grammar.

    Args:
        recipe: Which.
        width_px: Columns of the field; None: five times its height. A multiple of 4 is taken, the next one.
        depth: How many names deep blocks are one row each; None: what fits.
        plot: Where the receptive fields are drawn.
        as_json: Print one document instead.

    Raises:
        UsageError: The fields are too narrow for the network, the grammar cannot be read, or no reader can have it.
    """
    try:
        from convoy.training.anatomy import examine, outline
        from convoy.training.check_reader.building import alphabet_of, build_network
        from convoy.training.check_reader.sliding import STRIDE, Filled
    except ImportError as error:
        raise MissingDependencyError(f"networks need {error.name}: pip install '.[train]' in Convoy's folder.") from error
    from convoy.training.check_reader.named_grammar import named_grammar

    grammar = named_grammar(recipe.grammar)
    alphabet = alphabet_of(grammar)
    columns = -(-(width_px or _HEIGHTS * recipe.height_px) // STRIDE) * STRIDE
    anatomy = examine(
        lambda: Filled(build_network(recipe, len(alphabet) + 1)), channels=1, height_px=recipe.height_px, width_px=columns
    )
    rows = outline(anatomy, depth)
    if plot is not None:
        draw(plot, anatomy, rows, recipe.name)
    reading = _reading(recipe, grammar, alphabet, anatomy, STRIDE)
    if as_json:
        print_json(_document(recipe, anatomy, reading))
    else:
        _tell(recipe, anatomy, rows, reading)


def _reading(recipe: ReaderRecipe, grammar: Grammar, alphabet: str, anatomy: Anatomy, stride_px: int) -> dict[str, Any]:
    last = anatomy.layers[-1]
    assert last.field is not None  # all of these networks can be followed
    return {
        "grammar": grammar.name,
        "decimal": recipe.decimal,
        "characters": alphabet,
        "states": len(grammar.automaton.arcs),
        "arcs": sum(len(arcs) for arcs in grammar.automaton.arcs),
        "max_characters": grammar.automaton.max_length(),
        "frames": last.dims[-1],
        "jump_px": stride_px,
        "field_px": last.field.size_px[1],
    }


def _document(recipe: ReaderRecipe, anatomy: Anatomy, reading: dict[str, Any]) -> dict[str, Any]:
    _, height_px, width_px = anatomy.image_dims
    return {
        "recipe": recipe.name,
        "network": recipe.network,
        "source": recipe.source,
        "image": {"height_px": height_px, "width_px": width_px, "channels": 1},
        "n_classes": len(reading["characters"]) + 1,
        "parameters": anatomy.parameters,
        "training_only_parameters": anatomy.training_only_parameters,
        "macs": anatomy.macs,
        "layers": [layer.model_dump(mode="json") for layer in anatomy.layers],
        "last_map": anatomy.last_map,
        "reading": reading,
        "lecture": None,
    }


def _tell(recipe: ReaderRecipe, anatomy: Anatomy, rows: tuple[Row, ...], reading: dict[str, Any]) -> None:
    _, height_px, width_px = anatomy.image_dims
    click.echo(f"{click.style(recipe.name, bold=True)}  {recipe.title}\n  {recipe.source}")
    click.echo(f"  on grey fields of {height_px}x{width_px} (any width does), {len(reading['characters']) + 1} classes\n")
    tell_rows(rows)
    click.echo()
    tell_sums(anatomy)
    if reading["frames"] == 1:
        frames = "1 frame, which"
    else:
        frames = f"{reading['frames']:,} frames, one every {reading['jump_px']} columns; each"
    click.echo(f"The field gives {frames} sees {reading['field_px']} columns.")
    click.echo(
        f"Grammar {reading['grammar']}: amounts of at most {reading['max_characters']:,} characters out of "
        f'"{reading["characters"]}", {reading["states"]:,} states and {reading["arcs"]:,} arcs; the other class is the blank.'
    )
    tell_depth(anatomy, rows, recipe.name)
