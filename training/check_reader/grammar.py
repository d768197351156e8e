"""A grammar of amounts: rules that a person writes, compiled to an automaton."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final

from convoy.contract.errors import DataError
from convoy.training.check_reader.automaton import Automaton, Sketch, spelling
from convoy.training.check_reader.notation import (
    START,
    Alternatives,
    Expression,
    Reference,
    Repeat,
    Rules,
    Sequence,
    Symbols,
    Weighted,
    read_rules,
    references,
    refuse,
)

_FOLDER: Final = Path(__file__).parent / "grammars"
_MAX_SKETCH: Final = 50_000
"""States, or arcs, before the automaton is made smaller: what rules grow to that repeat each other is refused, not waited for."""


@dataclass(frozen=True, eq=False)
class Grammar:
    """Which amounts there are, and how likely each is before anything was seen.

    A string that can be derived in several ways counts once, with the weight of the best: to write a rule twice changes nothing.

    Attributes:
        name: What messages call it.
        automaton: Its strings; deterministic and minimal.
        silent: The symbols that a label may leave out.
    """

    name: str
    automaton: Automaton
    silent: frozenset[str]

    @property
    def alphabet(self) -> tuple[str, ...]:
        """The characters in any amount, sorted."""
        return self.automaton.alphabet

    def accepts(self, text: str) -> bool:
        """Whether ``text`` is an amount, all its symbols written."""
        return self.automaton.score(text) > float("-inf")

    def sentences(self, limit: int) -> Iterator[str]:
        """The first ``limit`` amounts, each once, the shorter first."""
        return islice(self.automaton.sentences(), limit)

    def spelled(self, label: str, *, latent: bool) -> Automaton:
        """The amounts that a label may mean.

        Args:
            label: What is known of an amount.
            latent: The label leaves silent symbols out, as labels of digits alone do; else it is the amount itself.

        Raises:
            DataError: The grammar has no such amount, or a label that leaves silent symbols out holds one.
        """
        return _spelled(self, label, latent)


@lru_cache(maxsize=65_536)  # a data set's labels come again in each epoch
def _spelled(grammar: Grammar, label: str, latent: bool) -> Automaton:
    if latent and (heard := sorted(grammar.silent.intersection(label))):
        raise DataError(
            f"label {label!r}: expected none of the symbols that grammar {grammar.name} calls silent, found {heard}: "
            "pass latent=False for labels that are written out."
        )
    found = grammar.automaton.intersect(spelling(label, grammar.silent if latent else frozenset()))
    if found is None:
        raise DataError(f"label {label!r}: grammar {grammar.name} has no such amount.")
    return found


def grammar_names() -> tuple[str, ...]:
    """The grammars that ship with Convoy."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.txt")))


def load_grammar(name_or_path: str | Path) -> Grammar:
    """Read a grammar that ships with Convoy, by its name, or any other, by its file.

    Raises:
        DataError: There is none, it cannot be read, or its text is no grammar.
    """
    return compile_grammar(read_grammar(name_or_path), Path(name_or_path).stem)


def read_grammar(name_or_path: str | Path) -> str:
    """The rules of a grammar that ships with Convoy, by its name, or of any other, by its file.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and name_or_path in grammar_names():
        path = _FOLDER / f"{name_or_path}.txt"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        expected = f"expected one of {', '.join(grammar_names())}, or a readable file of rules in UTF-8"
        raise DataError(f"{expected}; found {str(name_or_path)!r}: {error}") from error


def compile_grammar(text: str, name: str = "grammar") -> Grammar:
    """Compile rules; ``notation`` says how they are written.

    A rule may refer to itself where that is regular: at the end of its alternatives, or at their beginning.

    Args:
        text: The rules.
        name: What messages call them.

    Raises:
        DataError: The text is no grammar, refers to itself in the middle, has no sentence, or is too large.
    """
    try:
        rules = read_rules(text, name)
        automaton = _Compiler(rules).compile()
    except RecursionError as error:
        raise DataError(
            f"grammar {name}: expected rules within rules of some depth, found hundreds: write them flatter."
        ) from error
    if automaton is None:
        raise DataError(f"grammar {name}: expected a sentence at least, found none: every way through `{START}` goes on for ever.")
    return Grammar(name, automaton, rules.silent)


@dataclass(frozen=True)
class _Cycle:
    """Rules that refer to each other, while they are laid out: where each begins, or, ``at_start``, where each ends."""

    joints: Mapping[str, int]
    at_start: bool


class _Compiler:
    """Lays rules out as states and arcs."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._sketch = Sketch()
        self._cycles = _cycles(rules)
        self._at_start = {cycle: self._direction(cycle) for cycle in set(self._cycles.values())}

    def compile(self) -> Automaton | None:
        """The automaton of the rule ``amount``, None where it has no sentence."""
        start, end = self._state(), self._state()
        self._rule(START, start, end, None)
        try:
            return self._sketch.determinise(start, end)
        except DataError as error:
            raise DataError(f"grammar {self._rules.source}: {error}") from error

    def _direction(self, cycle: frozenset[str]) -> bool:
        """Whether the rules of a cycle refer to each other at their starts rather than at their ends."""
        middle = {}
        for at_start in (False, True):
            within = [reference for name in sorted(cycle) for reference in references(self._rules.rules[name])]
            outer = [outer for name in cycle for outer in _outermost(self._rules.rules[name], at_start=at_start)]
            allowed = {id(reference) for reference in outer}
            middle[at_start] = [found for found in within if found.name in cycle and id(found) not in allowed]
        if all(middle.values()):
            worst = min(middle[False], key=lambda found: (found.place.line, found.place.column))
            message = (
                "expected rules that refer to themselves at their ends alone, or at their beginnings alone, "
                f"found `{worst.name}` elsewhere: an automaton cannot count brackets; write the repetition with * + or {{m,n}}."
            )
            refuse(self._rules.source, worst.place, message)
        return bool(middle[False])  # what refers to itself at its ends alone is read from there

    def _state(self) -> int:
        self._check_size()
        return self._sketch.add_state()

    def _check_size(self) -> None:
        if max(len(self._sketch.arcs), self._sketch.n_arcs) > _MAX_SKETCH:
            raise DataError(f"grammar {self._rules.source}: too large; lower the numbers in {{m,n}}, or nest fewer of them.")

    def _rule(self, name: str, start: int, end: int, inside: _Cycle | None) -> None:
        cycle = self._cycles.get(name)
        if inside is not None and name in inside.joints:
            if inside.at_start:
                self._sketch.add_arc(inside.joints[name], end)
            else:
                self._sketch.add_arc(start, inside.joints[name])
        elif cycle is None:
            self._lay(self._rules.rules[name], start, end, None)
        else:
            first, last = self._state(), self._state()
            within = _Cycle({member: self._state() for member in sorted(cycle)}, self._at_start[cycle])
            for member, joint in within.joints.items():
                ends = (first, joint) if within.at_start else (joint, last)
                self._lay(self._rules.rules[member], *ends, within)
            self._sketch.add_arc(start, first if within.at_start else within.joints[name])
            self._sketch.add_arc(within.joints[name] if within.at_start else last, end)

    def _lay(self, expression: Expression, start: int, end: int, inside: _Cycle | None) -> None:
        """Add the paths of an expression from ``start`` to ``end``; nothing but this expression's paths leaves either between."""
        self._check_size()
        if isinstance(expression, Symbols):
            for symbol in expression.any_of:
                self._sketch.add_arc(start, end, symbol)
        elif isinstance(expression, Reference):
            self._rule(expression.name, start, end, inside)
        elif isinstance(expression, Alternatives):
            for item in expression.items:
                self._lay(item, start, end, inside)
        elif isinstance(expression, Sequence):
            self._chain(expression.items, start, end, inside)
        elif isinstance(expression, Weighted):
            between = self._state()
            if inside is not None and inside.at_start:  # what refers to itself at its start comes in behind `start`
                self._lay(expression.item, start, between, inside)
                self._sketch.add_arc(between, end, None, expression.log_weight)
            else:
                self._sketch.add_arc(start, between, None, expression.log_weight)
                self._lay(expression.item, between, end, inside)
        else:
            self._repeat(expression, start, end, inside)

    def _chain(self, items: tuple[Expression, ...], start: int, end: int, inside: _Cycle | None) -> None:
        if not items:
            self._sketch.add_arc(start, end)
        for at, item in enumerate(items):
            following = end if at == len(items) - 1 else self._state()
            self._lay(item, start, following, inside)
            start = following

    def _repeat(self, repeat: Repeat, start: int, end: int, inside: _Cycle | None) -> None:
        if (repeat.low, repeat.high) == (0, 1):  # an optional part may hold the rule itself
            self._lay(repeat.item, start, end, inside)
            self._sketch.add_arc(start, end)
            return
        at = start
        for _ in range(repeat.low):
            following = self._state()
            self._lay(repeat.item, at, following, inside)
            at = following
        if repeat.high is None:
            loop = self._state()
            self._sketch.add_arc(at, loop)
            again = self._state()
            self._lay(repeat.item, loop, again, inside)
            self._sketch.add_arc(again, loop)
            at = loop
        for _ in range((repeat.high or 0) - repeat.low):
            self._sketch.add_arc(at, end)
            following = self._state()
            self._lay(repeat.item, at, following, inside)
            at = following
        self._sketch.add_arc(at, end)


def _outermost(expression: Expression, *, at_start: bool) -> list[Reference]:
    """The references that an expression begins with (or ends with), and that nothing stands before (or behind)."""
    if isinstance(expression, Reference):
        return [expression]
    if isinstance(expression, Alternatives):
        return [reference for item in expression.items for reference in _outermost(item, at_start=at_start)]
    if isinstance(expression, Sequence) and expression.items:
        return _outermost(expression.items[0 if at_start else -1], at_start=at_start)
    if isinstance(expression, Weighted) or (isinstance(expression, Repeat) and (expression.low, expression.high) == (0, 1)):
        return _outermost(expression.item, at_start=at_start)
    return []


def _cycles(rules: Rules) -> dict[str, frozenset[str]]:
    """For each rule that refers to itself, directly or through others, all the rules of that cycle."""
    reached: dict[str, set[str]] = {}
    called = {name: {reference.name for reference in references(expression)} for name, expression in rules.rules.items()}
    for name in called:
        reached[name] = set()
        waiting = list(called[name])
        while waiting:
            other = waiting.pop()
            if other not in reached[name]:
                reached[name].add(other)
                waiting.extend(called[other])
    return {name: frozenset(other for other in reached[name] if name in reached[other]) for name in called if name in reached[name]}
