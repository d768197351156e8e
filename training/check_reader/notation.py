r"""How a person writes a grammar: the text of its rules, and the expressions that they are read into.

::

    # Chilean pesos. A comment runs to the end of its line.
    silent "$" "." "-" " "              # symbols that a label of digits alone leaves out
    digit  = "0".."9"                   # a rule: a name and what it stands for; any character of a range
    group  = "." digit{3}               # one after the other; a number of times
    amount = ["$"] digit{1,3}           # an optional part; from 1 to 3 times; the other repetitions are * + {2,}
             group{0,3}                 # an indented line goes on with the rule
             [ "-" @0.5 | ".-" ]        # alternatives, and a weight

The sentences are those of the rule ``amount``. A quoted text stands for its characters, with ``\"`` and ``\\`` for a quote and a
backslash. A weight multiplies what stands before it by a number above 0 and at most 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from convoy.contract.errors import DataError

START: Final = "amount"
"""The rule whose sentences are the grammar's."""
SILENT: Final = "silent"
_MAX_DEPTH: Final = 50
_MAX_REPEATS: Final = 1000
_TOKEN: Final = re.compile(
    r'(?P<text>"(?:[^"\\]|\\["\\])*")|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<weight>@\s*[0-9.eE+-]+)'
    r"|(?P<count>\{[^{}]*\})|(?P<sign>\.\.|[=|()\[\]*+])"
)
_COUNT: Final = re.compile(r"\{\s*(\d{1,9})\s*(?:(,)\s*(\d{1,9})?\s*)?\}")


@dataclass(frozen=True)
class Place:
    """Where something stands in a grammar's text, both counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        """As messages name it."""
        return f"line {self.line}, column {self.column}"


@dataclass(frozen=True)
class Symbols:
    """Any one of these characters."""

    any_of: tuple[str, ...]


@dataclass(frozen=True)
class Sequence:
    """One after the other; nothing where there are none."""

    items: tuple[Expression, ...]


@dataclass(frozen=True)
class Alternatives:
    """Any one of these."""

    items: tuple[Expression, ...]


@dataclass(frozen=True)
class Repeat:
    """The same, ``low`` to ``high`` times; without an end where ``high`` is None."""

    item: Expression
    low: int
    high: int | None


@dataclass(frozen=True)
class Weighted:
    """The same, its weight multiplied by exp(``log_weight``)."""

    item: Expression
    log_weight: float


@dataclass(frozen=True)
class Reference:
    """What the rule of this name stands for."""

    name: str
    place: Place


Expression = Symbols | Sequence | Alternatives | Repeat | Weighted | Reference


@dataclass(frozen=True)
class Rules:
    """A grammar's text, read.

    Attributes:
        rules: What each name stands for.
        silent: The symbols that a label may leave out.
        source: What messages call the text: a file's name.
    """

    rules: Mapping[str, Expression]
    silent: frozenset[str]
    source: str


def refuse(source: str, place: Place, message: str) -> NoReturn:
    """Raise a ``DataError`` that names the place in the grammar."""
    raise DataError(f"grammar {source}, {place}: {message}")


def read_rules(text: str, source: str) -> Rules:
    """Read a grammar's text.

    Args:
        text: The rules.
        source: What messages call it.

    Raises:
        DataError: The text is not in this notation, a rule is unknown or given twice, or there is no rule ``amount``. The message
            holds line and column.
    """
    rules: dict[str, Expression] = {}
    silent: set[str] = set()
    for statement in _statements(text, source):
        reader = _Reader(statement, source)
        name = reader.take("name", 'the name of a rule, or `silent "..."`')
        if name.text == SILENT:
            while reader.peek() is not None:
                silent.update(_unquote(reader.take("text", "a quoted symbol").text))
            continue
        if name.text in rules:
            refuse(source, name.place, f"expected each rule once, found `{name.text}` again: join the two with |.")
        reader.expect("=")
        rules[name.text] = reader.alternatives(0)
        if (left := reader.peek()) is not None:
            refuse(source, left.place, f"expected the end of the rule `{name.text}`, found `{left.text}`.")
    for expression in rules.values():
        for reference in references(expression):
            if reference.name not in rules:
                refuse(source, reference.place, f"expected one of the rules {', '.join(rules)}; found `{reference.name}`.")
    if START not in rules:
        raise DataError(f"grammar {source}: expected a rule `{START} = ...`, whose sentences are the grammar's, found none.")
    return Rules(rules, frozenset(silent), source)


def references(expression: Expression) -> list[Reference]:
    """Every reference to a rule within an expression, in the order of the text."""
    if isinstance(expression, Reference):
        return [expression]
    if isinstance(expression, Sequence | Alternatives):
        return [reference for item in expression.items for reference in references(item)]
    if isinstance(expression, Repeat | Weighted):
        return references(expression.item)
    return []


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    place: Place


def _statements(text: str, source: str) -> list[list[_Token]]:
    """The tokens of each rule: an indented line goes on with the rule above it."""
    statements: list[list[_Token]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        tokens = _tokens(line, number, source)
        if not tokens:
            continue
        if not line[0].isspace():
            statements.append([])
        elif not statements:
            refuse(source, tokens[0].place, "expected a rule that begins at the start of its line, found an indented line.")
        statements[-1].extend(tokens)
    return statements


def _tokens(line: str, number: int, source: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(line):
        if line[at].isspace() or (at == 0 and line[at] == "\ufeff"):
            at += 1
            continue
        if line[at] == "#":
            break
        found = _TOKEN.match(line, at)
        if found is None:
            what = "a name, a quoted text or one of = | ( ) [ ] * + {m,n} @ .."
            if line[at] == '"':
                what = "a quoted text that ends on its line"
            refuse(source, Place(number, at + 1), f"expected {what}, found `{line[at : at + 12]}`.")
        tokens.append(_Token(str(found.lastgroup), found[0], Place(number, at + 1)))
        at = found.end()
    return tokens


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


class _Reader:
    """Reads the tokens of one rule by recursive descent."""

    def __init__(self, tokens: list[_Token], source: str) -> None:
        self._tokens, self._source, self._at = tokens, source, 0

    def peek(self) -> _Token | None:
        """The next token, None at the rule's end."""
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def take(self, kind: str, expected: str) -> _Token:
        """The next token, which must be of this kind."""
        token = self.peek()
        if token is None or token.kind != kind:
            self._refuse(expected)
        self._at += 1
        return token

    def expect(self, sign: str) -> None:
        """Step over a sign."""
        if not self._skip(sign):
            self._refuse(f"`{sign}`")

    def _skip(self, sign: str) -> bool:
        token = self.peek()
        if token is None or token.kind != "sign" or token.text != sign:
            return False
        self._at += 1
        return True

    def _refuse(self, expected: str) -> NoReturn:
        token = self.peek()
        last = self._tokens[-1]
        place = token.place if token else Place(last.place.line, last.place.column + len(last.text))
        refuse(self._source, place, f"expected {expected}, found {f'`{token.text}`' if token else 'the end of the rule'}.")

    def alternatives(self, depth: int) -> Expression:
        """Sequences with ``|`` between them."""
        if depth > _MAX_DEPTH:
            self._refuse(f"brackets at most {_MAX_DEPTH} deep")
        items = [self._sequence(depth)]
        while self._skip("|"):
            items.append(self._sequence(depth))
        return items[0] if len(items) == 1 else Alternatives(tuple(items))

    def _sequence(self, depth: int) -> Expression:
        items: list[Expression] = []
        while (token := self.peek()) is not None and (token.kind in ("text", "name") or token.text in ("(", "[")):
            items.append(self._repeated(depth))
        if not items:
            self._refuse('a quoted text, the name of a rule, `(` or `[` (nothing at all is `""`)')
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _repeated(self, depth: int) -> Expression:
        item = self._item(depth)
        while (token := self.peek()) is not None:
            if token.kind == "count":
                item = Repeat(item, *self._count(token))
            elif token.kind == "weight":
                item = Weighted(item, self._weight(token))
            elif token.text == "*":
                item = Repeat(item, 0, None)
            elif token.text == "+" and token.kind == "sign":
                item = Repeat(item, 1, None)
            else:
                break
            self._at += 1
        return item

    def _item(self, depth: int) -> Expression:
        token = self.peek()
        if token is None:
            self._refuse("a quoted text")
        self._at += 1
        if token.kind == "name":
            return Reference(token.text, token.place)
        if token.text == "(":
            inner = self.alternatives(depth + 1)
            self.expect(")")
            return inner
        if token.text == "[":
            inner = self.alternatives(depth + 1)
            self.expect("]")
            return Repeat(inner, 0, 1)
        text = _unquote(token.text)
        if self._skip(".."):
            last = _unquote(self.take("text", "the range's last symbol in quotes").text)
            if len(text) != 1 or len(last) != 1 or text > last:
                refuse(self._source, token.place, f'expected a range such as "0".."9", found {token.text}.."{last}".')
            return Symbols(tuple(map(chr, range(ord(text), ord(last) + 1))))
        return Sequence(tuple(Symbols((symbol,)) for symbol in text))

    def _count(self, token: _Token) -> tuple[int, int | None]:
        found = _COUNT.fullmatch(token.text)
        low = int(found[1]) if found else 0
        high = low if found and not found[2] else int(found[3]) if found and found[3] else None
        if found is None or max(low, high or 0) > _MAX_REPEATS or (high is not None and (high < low or high == 0)):
            expected = f"{{m}}, {{m,}} or {{m,n}} with m <= n, n from 1 to {_MAX_REPEATS}"
            refuse(self._source, token.place, f"expected {expected}, found `{token.text}`.")
        return low, high

    def _weight(self, token: _Token) -> float:
        try:
            weight = float(token.text[1:])
        except ValueError:
            weight = math.nan
        if not 0 < weight <= 1:
            refuse(self._source, token.place, f"expected a weight above 0 and at most 1, found `{token.text}`.")
        return math.log(weight)
