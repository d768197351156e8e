"""The grammar that somebody names for a reader: what is wrong with it is wrong use, said before any work."""

from __future__ import annotations

import difflib

from convoy.contract.errors import DataError, UsageError
from convoy.training.check_reader.grammar import Grammar, grammar_names, load_grammar


def named_grammar(name_or_file: str) -> Grammar:
    """The grammar of a name that ships, or of a file of rules, fit for a reader.

    Raises:
        UsageError: There is none, its text is no grammar, or it has amounts of any length.
    """
    try:
        grammar = load_grammar(name_or_file)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            names = grammar_names()
            close = difflib.get_close_matches(name_or_file, names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            message = f"there is no grammar {name_or_file!r}: expected one of {', '.join(names)}, or a file of rules.{hint}"
            raise UsageError(message) from error
        raise UsageError(str(error)) from error
    check_length(grammar)
    return grammar


def check_length(grammar: Grammar) -> None:
    """Make sure that an array has room for each amount.

    Raises:
        UsageError: The grammar has amounts of any length.
    """
    if grammar.automaton.max_length() is None:
        raise UsageError(
            f"grammar {grammar.name}: expected amounts of limited length, found amounts of any: write "
            "{m,n} in place of * and +, and no rule that refers to itself."
        )
