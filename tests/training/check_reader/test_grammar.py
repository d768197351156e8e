from __future__ import annotations

import itertools
import math
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.contract.errors import DataError
from convoy.training.check_reader import notation
from convoy.training.check_reader.grammar import compile_grammar, grammar_names, load_grammar

CHILEAN = (
    "0",
    "12",
    "123456789",
    "1.234",
    "12.345.678",
    "$1.234",
    "$ 123.-",
    "#$12.345#",
    "1234-",
    "999=",
    "7/",
    "1,234",
    "5.",
    "12:=",
)
NOT_CHILEAN = ("$", "-", "1234567890", "1.23", "12.34", "1234.567", ".123", "1,50", "12:-", "1..234", "--", "12 345")
US = ("5", "1234.56", "1,234.56", "$ 1,234 56/100", "*12-", "12 xx/100", "12no/100", "1,234,567.00", "12.-")
NOT_US = ("$", "1.2", "1,23", "12,345,67", "1.234.56", "1,2345", "56/", "12 xX/100")
FRENCH = ("12", "12,50", "1 234,56", "1.234.567,00", "#12,50#", "12,50 €", "1234F", "12,-", "12,50 €=")
NOT_FRENCH = ("#", "12,5", "1 23", "1.234 567", ",50", "12.50", "€12")


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("chilean", CHILEAN, NOT_CHILEAN),
        ("us", US, NOT_US),
        ("french", FRENCH, NOT_FRENCH),
        ("digits", ("0", "007", "9" * 15), ("9" * 16, "1.0")),
    ],
)
def test_a_shipped_grammar_accepts_what_people_write_and_nothing_else(
    name: str, right: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    grammar = load_grammar(name)
    assert name in grammar_names()
    assert [text for text in ("", *right) if not grammar.accepts(text)] == []  # a field may hold no amount
    assert [text for text in wrong if grammar.accepts(text)] == []


@pytest.mark.parametrize("name", grammar_names())
def test_a_shipped_grammar_is_small_and_its_symbols_beside_the_digits_are_silent(name: str) -> None:
    grammar = load_grammar(name)
    assert len(grammar.automaton.arcs) < 50
    assert (grammar.automaton.max_length() or 99) < 30
    assert {symbol for symbol in grammar.alphabet if not symbol.isdigit()} - grammar.silent <= set("xXno")
    assert grammar.accepts("1")


def test_a_grammar_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text('amount = "€" digit+   # euros\ndigit = "0".."9"\n', encoding="utf-8")
    grammar = load_grammar(path)
    assert grammar.name == "mine"
    assert grammar.accepts("€12")
    with pytest.raises(DataError, match=r"expected one of chilean, digits, .*found 'absent'"):
        load_grammar("absent")


def test_the_example_in_the_notations_own_words_is_a_grammar() -> None:
    example = (notation.__doc__ or "").split("::\n\n")[1].split("\n\nThe sentences")[0]
    grammar = compile_grammar(textwrap.dedent(example))
    assert grammar.silent == {"$", ".", "-", " "}
    assert math.exp(grammar.automaton.score("$12.345-")) == pytest.approx(0.5)
    assert grammar.accepts("1.234.567.-")
    assert not grammar.accepts("1234")


def test_sentences_come_once_each_the_shorter_first() -> None:
    grammar = compile_grammar('amount = ("b" | "a" | "a" ["b"]){1,2} | "a" "b"')
    assert list(grammar.sentences(7)) == ["a", "b", "aa", "ab", "ba", "bb", "aab"]
    assert list(compile_grammar('amount = "x"*').sentences(3)) == ["", "x", "xx"]
    assert list(compile_grammar('amount = ["1"]').sentences(9)) == ["", "1"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('amount = "0" | whole', r"line 1, column 16: expected one of the rules amount; found `whole`"),
        ('\n\namount = "0', r"line 3, column 10: expected a quoted text that ends on its line"),
        ('amount = ("0" | ("1")', r"line 1, column 22: expected `\)`, found the end of the rule"),
        ('amount = "0" ]', r"line 1, column 14: expected the end of the rule `amount`, found `\]`"),
        ('amount = "0" | ', r"line 1, column 15: expected a quoted text"),
        ('amount = "0"{3,2}', r"line 1, column 13: expected \{m\}.* found `\{3,2\}`"),
        ('amount = "0"{,2}', r"column 13: expected \{m\}"),
        ('amount = "0"{1001}', r"column 13: expected \{m\}"),
        ('amount = "0"@1.5', r"column 13: expected a weight above 0 and at most 1, found `@1.5`"),
        ('amount = "0"@0', r"expected a weight above 0"),
        ('amount = "9".."0"', r'column 10: expected a range such as "0".."9", found "9".."0"'),
        ('amount = "10".."20"', r"expected a range"),
        ('amount = "0"\namount = "1"', r"line 2, column 1: expected each rule once"),
        (' amount = "0"', r"line 1, column 2: expected a rule that begins at the start of its line"),
        ('amount "0"', r"column 8: expected `=`, found"),
        ("silent 0", r"column 8: expected one of|column 8: expected a name"),
        ("silent x", r"column 8: expected a quoted symbol, found `x`"),
        ("amount = %", r"column 10: expected a name, a quoted text"),
        ('digit = "0"', r"expected a rule `amount = ...`"),
        ("", r"expected a rule `amount = ...`"),
        ("amount = " + "(" * 99 + '"0"' + ")" * 99, r"brackets at most 50 deep"),
        ('amount = (("0"{900}){900}){900}', r"too large"),
        ('amount = ("0"@0.5)* | ("0"@0.9)*', r"at most 5000 states"),
        ('amount = ("0"{0,150}){0,150}', r"at most 5000 states"),
        ('amount = "0"' + "*" * 5000, r"rules within rules"),
        ("".join(f"r{n} = r{n + 1}\n" for n in range(2000)) + 'r2000 = "0"\namount = r0', r"rules within rules"),
        ("".join(f"r{n} = r{n + 1} | r{n + 1}\n" for n in range(40)) + 'r40 = ""\namount = r0', r"too large"),
    ],
)
def test_what_is_no_grammar_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        compile_grammar(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('amount = "(" amount ")" | "x"', r"line 1, column 14: .*found `amount` elsewhere"),
        ('amount = half "1" | "x"\nhalf = "0" amount', r"elsewhere"),
        ('amount = amount "0" | "1" amount | "2"', r"elsewhere"),
        ('amount = ("0" amount)* "1"', r"elsewhere"),
    ],
)
def test_rules_that_refer_to_themselves_in_the_middle_are_refused(text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        compile_grammar(text)


@pytest.mark.parametrize(
    "text", ["amount = amount", 'amount = "0" amount', 'amount = amount "0"', 'amount = a\na = "1" b\nb = "0" a']
)
def test_a_grammar_with_no_sentence_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"expected a sentence at least, found none"):
        compile_grammar(text)


@pytest.mark.parametrize(
    ("text", "regex"),
    [
        ('amount = "0" amount | "1"', "0*1"),
        ('amount = amount "0" | "1"', "10*"),
        ('amount = ["0" amount]', "0*"),
        ('amount = even | odd\neven = "0" odd | "1"\nodd = "0" even', "0*1"),
        ('amount = left "," right\nleft = left "0" | "1"\nright = "1" right | ""', "10*,1*"),
        ('amount = amount "0"@0.5 | "1"', "10*"),
    ],
)
def test_rules_that_refer_to_themselves_at_an_end_are_repetitions(text: str, regex: str) -> None:
    grammar = compile_grammar(text)
    for length in range(6):
        for symbols in itertools.product("01,", repeat=length):
            string = "".join(symbols)
            assert grammar.accepts(string) == bool(re.fullmatch(regex, string)), string


def test_weights_multiply_and_the_best_way_to_a_string_counts() -> None:
    grammar = compile_grammar('amount = ("a"@0.5 | "a"@0.25) ("b"@0.5)* | "a" "b"@0.1 | amount2\namount2 = "c"@0.5@0.5')
    assert math.exp(grammar.automaton.score("a")) == pytest.approx(0.5)
    assert math.exp(grammar.automaton.score("ab")) == pytest.approx(0.25)
    assert math.exp(grammar.automaton.score("abb")) == pytest.approx(0.125)
    assert math.exp(grammar.automaton.score("c")) == pytest.approx(0.25)
    assert grammar.automaton.score("b") == -math.inf
    again = compile_grammar('amount = amount "0"@0.5 | "1"@0.5')
    assert math.exp(again.automaton.score("100")) == pytest.approx(0.125)


def test_to_write_a_rule_twice_changes_nothing() -> None:
    once, twice = compile_grammar('amount = "0".."9"{1,3}'), compile_grammar('amount = n | n\nn = "0".."9"{1,3} | "0".."9"{2}')
    assert once.automaton.arcs == twice.automaton.arcs
    assert once.automaton.finals == twice.automaton.finals


def test_a_label_of_digits_means_every_way_to_write_them() -> None:
    chilean = load_grammar("chilean")
    meant = chilean.spelled("1234", latent=True)
    assert meant.score("1234") == 0
    assert meant.score("$ 1.234.-") == 0
    assert meant.score("12.34") == meant.score("1235") == -math.inf
    assert list(chilean.spelled("1.234", latent=False).sentences()) == ["1.234"]
    with pytest.raises(DataError, match=r"label '1\.234': expected none of the symbols .* found \['\.'\]"):
        chilean.spelled("1.234", latent=True)
    with pytest.raises(DataError, match=r"label '1234567890123': grammar chilean has no such amount"):
        chilean.spelled("1234567890123", latent=True)
    with pytest.raises(DataError, match=r"has no such amount"):
        chilean.spelled("12.34", latent=False)


STRINGS = ["".join(symbols) for length in range(5) for symbols in itertools.product("ab", repeat=length)]
Language = dict[str, float]
Piece = tuple[str, str, Language]  # the rule, the same as Python's regular expression, and its strings by enumeration


def joined(left: Language, right: Language) -> Language:
    found: Language = {}
    for (a, x), (b, y) in itertools.product(left.items(), right.items()):
        if len(a + b) <= 4:
            found[a + b] = max(found.get(a + b, 0), x * y)
    return found


def either(left: Language, right: Language) -> Language:
    return {text: max(left.get(text, 0), right.get(text, 0)) for text in left | right}


def times(piece: Piece, low: int, high: int | None) -> Piece:
    rule, regex, language = piece
    found: Language = {}
    power: Language = {"": 1.0}
    for count in range((low + 5 if high is None else high) + 1):
        if count >= low:
            found = either(found, power)
        power = joined(power, language)
    mark = {(0, None): "*", (1, None): "+"}.get((low, high), f"{{{low},{'' if high is None else high}}}")
    return f"({rule}){mark}", f"(?:{regex}){mark}", found


def alike(strategy: st.SearchStrategy[Piece]) -> st.SearchStrategy[Piece]:
    pair = st.tuples(strategy, strategy)
    return (
        pair.map(lambda p: (f"{p[0][0]} {p[1][0]}", p[0][1] + p[1][1], joined(p[0][2], p[1][2])))
        | pair.map(lambda p: (f"({p[0][0]} | {p[1][0]})", f"(?:{p[0][1]}|{p[1][1]})", either(p[0][2], p[1][2])))
        | strategy.map(lambda p: (f"[{p[0]}]", f"(?:{p[1]})?", either(p[2], {"": 1.0})))
        | st.tuples(strategy, st.integers(0, 2), st.integers(1, 3)).map(lambda p: times(p[0], p[1], max(p[1], p[2])))
    )


LETTERS: st.SearchStrategy[Piece] = st.sampled_from([('"a"', "a", {"a": 1.0}), ('"b"', "b", {"b": 1.0}), ('""', "", {"": 1.0})])
PLAIN = st.recursive(
    LETTERS, lambda s: alike(s) | st.tuples(s, st.integers(0, 2)).map(lambda p: times(p[0], p[1], None)), max_leaves=8
)
WEIGHTED = st.recursive(
    LETTERS,
    lambda s: (
        alike(s)
        | st.tuples(s, st.sampled_from([0.5, 0.3])).map(
            lambda p: (f"({p[0][0]})@{p[1]}", p[0][1], {text: weight * p[1] for text, weight in p[0][2].items()})
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(PLAIN)
def test_a_grammar_accepts_what_the_same_regular_expression_matches(piece: Piece) -> None:
    grammar = compile_grammar(f"amount = {piece[0]}")
    assert [text for text in STRINGS if grammar.accepts(text) != bool(re.fullmatch(piece[1], text))] == []


@settings(max_examples=150)
@given(WEIGHTED)
def test_a_string_has_the_weight_of_its_best_derivation(piece: Piece) -> None:
    grammar = compile_grammar(f"amount = {piece[0]}")
    actual = [math.exp(grammar.automaton.score(text)) for text in STRINGS]
    assert actual == pytest.approx([piece[2].get(text, 0.0) for text in STRINGS], rel=1e-6)
    short = [text for text in grammar.sentences(31) if len(text) <= 4]
    assert set(short) <= piece[2].keys()
    assert len(set(short)) == len(short)
