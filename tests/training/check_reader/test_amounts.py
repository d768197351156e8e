from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from convoy.contract.errors import DataError
from convoy.training.check_reader.amounts import Amount, amount_styles, sample_amount
from convoy.training.check_reader.grammar import grammar_names, load_grammar


def test_there_is_a_style_for_each_shipped_grammar() -> None:
    assert amount_styles() == grammar_names()


@pytest.mark.parametrize("style", amount_styles())
def test_the_grammar_of_a_style_accepts_its_amounts(style: str) -> None:
    generator, grammar = np.random.default_rng(1), load_grammar(style)
    amounts = [sample_amount(style, generator) for _ in range(2000)]
    assert [amount.text for amount in amounts if not grammar.accepts(amount.text)] == []
    assert len({amount.text for amount in amounts}) > 1200
    for amount in amounts:
        assert amount.digits == "".join(c for c in amount.text if c not in grammar.silent and c not in "xXno")


@pytest.mark.parametrize("style", ["chilean", "french", "us"])
def test_a_style_uses_every_symbol_that_its_grammar_has(style: str) -> None:
    generator = np.random.default_rng(2)
    seen = set("".join(sample_amount(style, generator).text for _ in range(4000)))
    assert seen == set(load_grammar(style).alphabet)


def test_lengths_and_round_numbers_are_about_those_of_real_checks() -> None:
    generator = np.random.default_rng(3)
    digits = [sample_amount("chilean", generator).digits for _ in range(4000)]
    lengths = Counter(map(len, digits))
    assert lengths[4] + lengths[5] > 0.6 * len(digits)
    assert max(lengths) <= 9
    assert 0.1 < np.mean([amount.endswith("000") for amount in digits]) < 0.2
    assert 0.25 < np.mean([amount.endswith("0") for amount in digits]) < 0.45
    assert not any(amount.startswith("0") for amount in digits)


def test_a_seed_gives_the_same_amounts_again() -> None:
    first, again, other = ([sample_amount("us", np.random.default_rng(seed)) for _ in range(3)] for seed in (5, 5, 6))
    assert first == again != other


def test_the_digits_of_a_fraction_are_among_them() -> None:
    assert Amount("$1,234 56/100").digits == "123456100"
    assert Amount("13.254.-").digits == "13254"


def test_another_style_is_refused() -> None:
    with pytest.raises(DataError, match="one of chilean, digits, french, us; found 'dutch'"):
        sample_amount("dutch", np.random.default_rng(0))
