"""``convoy recipes``: what ``convoy train`` can train, and what ``--set`` changes."""

from __future__ import annotations

import json
from typing import Any

import click

from convoy.cli.console import json_option, print_json, stdout_console


@click.command("recipes", short_help="List the recipes that `train` knows.")
@click.argument("recipe", required=False)
@click.option("--data", metavar="NAME", help="Show RECIPE as it is for this data set. Default: the recipe's own.")
@json_option
def command(recipe: str | None, data: str | None, as_json: bool) -> None:
    """List the recipes; with RECIPE, its fields: what --set changes, with the values they have."""
    if recipe is None:
        if data is not None:
            raise click.UsageError("--data goes with RECIPE: `convoy recipes lenet5 --data mnist`.")
        _list(as_json)
    else:
        _show(recipe, data, as_json)


def _list(as_json: bool) -> None:
    from convoy.training.recipes import get_recipe, recipe_names

    recipes = [get_recipe(name) for name in recipe_names()]
    if as_json:
        print_json([recipe.model_dump(mode="json") for recipe in recipes])
        return
    for recipe in recipes:
        click.echo(f"{click.style(recipe.name, bold=True)}  {recipe.title}\n  {recipe.source}")
    click.echo("\n`convoy recipes RECIPE` lists what --set changes; `convoy train RECIPE` trains it.")


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
        table.add_row(setting.key, _show_value(setting.value), Text(setting.description))
    stdout_console().print(table)
    click.echo(f"\nconvoy train {recipe.name} --data {recipe.data} --set epochs={max(1, recipe.epochs // 2)}")


def _show_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
