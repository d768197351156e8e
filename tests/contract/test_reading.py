"""What an amount is worth."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from convoy.contract.reading import OperatingPoint, ReadingSpec, value_of

CENTS = st.integers(0, 10**14)


@pytest.mark.parametrize(
    ("text", "decimal", "value"),
    [
        ("$ 1.234.567.-", "", "1234567"),
        ("1,234 56/100", ".", "1234.56"),
        ("1,234 xx/100", ".", "1234.00"),
        ("1,234 XX/100 DOLLARS", ".", "1234.00"),
        ("12 no/100", ".", "12.00"),
        ("1,234.56", ".", "1234.56"),
        ("1.234,56", ",", "1234.56"),
        ("**1.234,56**", ",", "1234.56"),
        ("1.234,56", "", "123456"),
        ("007", "", "7"),
        (".50", ".", "0.50"),
        ("5.", ".", "5"),
        ("5.-", ".", "5"),
        ("$-", ".", None),
        ("", "", None),
        (".", ".", None),
    ],
)
def test_an_amount_is_worth_what_it_says(text: str, decimal: str, value: str | None) -> None:
    found = value_of(text, decimal)
    assert found == (None if value is None else Decimal(value))
    assert str(found) == str(None if value is None else Decimal(value))


@given(
    cents=CENTS,
    decimal=st.sampled_from(".,"),
    before=st.sampled_from(["", "$", "$ ", "**", "CLP "]),
    after=st.sampled_from(["", "-", "**"]),
)
def test_writing_an_amount_and_reading_it_gives_the_amount(cents: int, decimal: str, before: str, after: str) -> None:
    grouped = f"{cents // 100:,}".replace(",", "." if decimal == "," else ",")
    value = Decimal(cents) / 100
    assert value_of(f"{before}{grouped}{decimal}{cents % 100:02}{after}", decimal) == value
    assert value_of(f"{before}{grouped} {cents % 100:02}/100", decimal) == value
    assert value_of(f"{before}{grouped}{after}", "") == cents // 100


@given(text=st.text(alphabet="0123456789.,$-*# /xX", max_size=24), decimal=st.sampled_from(["", ".", ","]))
def test_any_text_with_a_digit_is_worth_something_finite(text: str, decimal: str) -> None:
    value = value_of(text, decimal)
    assert (value is not None) == any(character.isdigit() for character in text)
    if value is not None:
        assert value.is_finite()
        assert value >= 0


@given(text=st.text(max_size=9), decimal=st.sampled_from(["", ".", ","]))
def test_no_text_whatsoever_breaks_it(text: str, decimal: str) -> None:
    value = value_of(text, decimal)
    assert value is None or value.is_finite()
    assert value_of("5²", "") == 5


def test_what_makes_no_sense_is_refused() -> None:
    for fields in ({"threshold": 1.1}, {"coverage": -0.1}, {"error": 2}, {"n": 0}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            OperatingPoint(**{"threshold": 0.5, "coverage": 0.5, "error": 0.5, "n": 1, **fields})
    for fields in ({"n_best": 0}, {"max_characters": 0}, {"decimal": ";"}):
        with pytest.raises(ValidationError):
            ReadingSpec(**{"grammar": "g", "n_best": 1, "max_characters": 9, **fields})
