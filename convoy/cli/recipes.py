"""``convoy recipes``: what ``convoy train`` can train, and what ``--set`` changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.console import json_option, print_json, remark, stdout_console
from convoy.cli.train_reader import list_readers, show_reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from convoy.training.recipes import Recipe


@click.command("recipes", short_help="List the recipes that `train` knows.")
@click.argument("recipe", required=False)
@click.option("--data", metavar="NAME_OR_DIR", help="Show RECIPE as it is for this data set. Default: the recipe's own.")
@json_option
def command(recipe: str | None, data: str | None, as_json: bool) -> None:
    """List the recipes; with RECIPE, its source and its fields: what --set changes, with the values they have."""
    from convoy.training.recipes.reader import READER_RECIPES

    if recipe in READER_RECIPES:
        if data is not None:
            raise click.UsageError(f"--data changes nothing about {recipe}, which draws its own fields: leave it out.")
        if as_json:
            print_json(READER_RECIPES[recipe].model_dump(mode="json"))
        else:
            show_reader(READER_RECIPES[recipe])
    elif recipe is not None:
        _show(recipe, data, as_json)
    elif data is not None:
        raise click.UsageError("--data goes with RECIPE: `convoy recipes lenet5 --data mnist`.")
    else:
        _list(as_json)


def _list(as_json: bool) -> None:
    from convoy.training.recipes import recipe_families, recipe_names
    from convoy.training.recipes.reader import READER_RECIPES

    recipes, broken = _load(recipe_names())
    for message in broken.values():
        remark(message)
    if as_json:
        print_json([recipe.model_dump(mode="json") for recipe in (*recipes.values(), *READER_RECIPES.values())])
        return
    width = max(map(len, (*recipes, *READER_RECIPES)))
    for family, names in recipe_families().items():
        click.secho(family, bold=True)
        for name in names:
            title = recipes[name].title if name in recipes else click.style("cannot be loaded", fg="red")
            click.echo(f"  {name:<{width}}  {title}")
        click.echo()
    list_readers(width)
    click.echo("`convoy recipes RECIPE` shows its source and what --set changes;\n`convoy train RECIPE` trains it.")


def _load(names: tuple[str, ...]) -> tuple[Mapping[str, Recipe], Mapping[str, str]]:
    """The recipes of these names, and what is wrong with those of packages that cannot be loaded."""
    from convoy.contract.errors import ConvoyError
    from convoy.training.recipes import get_recipe

    recipes, broken = {}, {}
    for name in names:
        try:
            recipes[name] = get_recipe(name)
        except ConvoyError as error:  # one broken package does not hide what all others have
            broken[name] = str(error)
    return recipes, broken


def _show(name: str, data: str | None, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from convoy.training.recipes import get_recipe, settings

    recipe = get_recipe(name, data=data)
    if as_json:
        print_json(recipe.model_dump(mode="json"))
        return
    click.echo(f"{click.style(recipe.name, bold=True)}  {recipe.title}\n  {recipe.source}\n")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("field", f"value on {recipe.data}", "what it does"):
        table.add_column(heading)
    for setting in settings(recipe):
        told = all(choice in setting.description for choice in setting.choices)
        choices = "" if told else f" ({', '.join(setting.choices)})"
        table.add_row(setting.key, _show_value(setting.value), Text(setting.description + choices))
    stdout_console().print(table)
    click.echo(f"\nconvoy train {recipe.name} --data {recipe.data} --set epochs={max(1, recipe.epochs // 2)}")


def _show_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
