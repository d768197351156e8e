"""From a recipe to a reader with fresh weights, and to the synthetic fields that it learns from."""

from __future__ import annotations

from collections.abc import Callable

from convoy.training.check_reader.examples import Example, field_spec, from_synthetic
from convoy.training.check_reader.field_image import SyntheticFields
from convoy.training.check_reader.grammar import Grammar, load_grammar
from convoy.training.check_reader.handwriting import Handwriting
from convoy.training.check_reader.reader import AmountReader
from convoy.training.check_reader.sliding import ResidualSliding, SlidingLeNet5, SlidingNetwork
from convoy.training.data import DataLocation, load_dataset
from convoy.training.recipes.reader import ReaderRecipe


def alphabet_of(grammar: Grammar) -> str:
    """The characters of a grammar, digits first."""
    digits = [character for character in grammar.alphabet if character.isdigit()]
    return "".join([*digits, *(character for character in grammar.alphabet if not character.isdigit())])


def build_network(recipe: ReaderRecipe, n_classes: int) -> SlidingNetwork:
    """The recipe's network with random weights, drawn from torch's global generator."""
    if recipe.network == "lenet5":
        return SlidingLeNet5(n_classes, channels=recipe.channels, batch_norm=recipe.batch_norm, dropout=recipe.dropout)
    return ResidualSliding(
        n_classes, height_px=recipe.height_px, channels=recipe.channels, blocks=recipe.blocks, dropout=recipe.dropout
    )


def build_reader(recipe: ReaderRecipe, grammar: Grammar | None = None) -> AmountReader:
    """The recipe's reader with random weights.

    Args:
        recipe: What.
        grammar: In place of the recipe's.

    Raises:
        DataError: There is no such grammar, or it is damaged.
        UsageError: It has amounts of any length.
    """
    grammar = grammar or load_grammar(recipe.grammar)
    alphabet = alphabet_of(grammar)
    network = build_network(recipe, len(alphabet) + 1)
    return AmountReader(network, grammar, alphabet, n_best=recipe.n_best, decimal=recipe.decimal)


def load_handwriting(name: str, split: str = "train", location: DataLocation | None = None) -> Handwriting:
    """The digits of a data set's split to write with.

    Args:
        name: ``digits`` or ``mnist``.
        split: ``train``, ``validation`` or ``test``.
        location: Where to look for MNIST, as ``load_dataset`` takes it.

    Raises:
        DataError: It cannot be found, downloaded or read.
    """
    part = getattr(load_dataset(name, location=location), split)
    return Handwriting(part.images[:], part.labels)


def synthetic_fields(recipe: ReaderRecipe, handwriting: Handwriting, seed: int, grammar: Grammar) -> SyntheticFields:
    """The synthetic fields of a recipe, without end; some hold no amount, where the grammar has the empty one."""
    void_share = recipe.void_share if grammar.accepts("") else 0.0
    return SyntheticFields(handwriting, recipe.style, seed, grammar, void_share)


def draw_synthetic(
    recipe: ReaderRecipe,
    handwriting: Handwriting,
    n: int,
    seed: int,
    *,
    grammar: Grammar | None = None,
    on_field: Callable[[int], None] = lambda _: None,
) -> list[Example]:
    """Synthetic fields at the recipe's height.

    Args:
        recipe: Style and height.
        handwriting: Whose digits they are written with.
        n: How many.
        seed: Other seeds give other fields.
        grammar: In place of the recipe's.
        on_field: Told of each field.

    Raises:
        DataError: The grammar has hardly any amount of the style.
    """
    fields = synthetic_fields(recipe, handwriting, seed, grammar or load_grammar(recipe.grammar))
    spec = field_spec(recipe.height_px)
    examples = []
    for index in range(n):
        examples += from_synthetic([fields.draw(index)], spec)
        on_field(1)
    return examples
