"""What a model that reads amounts takes and answers, and what an amount is worth.

The border of such a model, for a batch of B fields that are brought to H x W pixels, n amounts for each and at most L characters in
one:

================  =======  ============  ==================================================================================
``image``         uint8    (B, H, W, 1)  raw pixels, grey, of ``convoy.contract.field.to_field``; W is a multiple of 4
``width``         int64    (B, 1)        how many columns are the field; what stands right of them changes no answer
``characters``    int64    (B, n, L)     places in the labels, the likeliest amount first; -1 behind an amount's last character
``n_characters``  int64    (B, n)        of each amount
``positions``     int64    (B, n, L, 2)  columns of ``image``: the first of each character, and the one behind its last; -1 behind
``posteriors``    float32  (B, n)        the amount's share of all that the grammar allows; 0 where there is no such amount
``confidence``    float32  (B, 1)        the probability that the first amount is right, as calibrated on held-back fields; 0: none
================  =======  ============  ==================================================================================
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

WIDTH_NAME: Final = "width"
CHARACTERS_NAME: Final = "characters"
N_CHARACTERS_NAME: Final = "n_characters"
POSITIONS_NAME: Final = "positions"
POSTERIORS_NAME: Final = "posteriors"
CONFIDENCE_NAME: Final = "confidence"

OUTPUT_NAMES: Final = (CHARACTERS_NAME, N_CHARACTERS_NAME, POSITIONS_NAME, POSTERIORS_NAME, CONFIDENCE_NAME)

_HUNDREDTHS: Final = re.compile(r"(.*?)([0-9]{2}|xx|XX|no)/100[^0-9]*")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OperatingPoint(_Part):
    """What a threshold gave on fields that were held back.

    Attributes:
        threshold: Amounts of at least this confidence are accepted.
        coverage: The share of fields that is accepted.
        error: The share of those accepted that is wrong.
        n: How many fields it was measured on.
    """

    threshold: float = Field(ge=0, le=1)
    coverage: float = Field(ge=0, le=1)
    error: float = Field(ge=0, le=1)
    n: int = Field(ge=1)


class ReadingSpec(_Part):
    """What the outputs of a model that reads amounts mean, beside its labels, which are the characters in their order.

    Attributes:
        grammar: The grammar's name.
        decimal: The character before the decimals, such as ``.`` or ``,``; empty where amounts are whole.
        n_best: How many amounts the model gives for each field.
        max_characters: The most characters in one.
        accept: Which amounts are accepted; None: the model has no threshold, so that nothing is.
    """

    grammar: str
    decimal: Literal["", ".", ","] = ""
    n_best: int = Field(ge=1, le=100)
    max_characters: int = Field(ge=1, le=1000)
    accept: OperatingPoint | None = None


def value_of(text: str, decimal: str) -> Decimal | None:
    """The number that an amount says: ``$ 1.234.567.-`` is 1234567, ``1,234 56/100`` is 1234.56 where ``decimal`` is ``.``.

    Args:
        text: The amount as written.
        decimal: As ``ReadingSpec.decimal``.

    Returns:
        None where the text has no digit.
    """
    cents = ""
    if decimal and (split := _HUNDREDTHS.fullmatch(text)):
        text, cents = split[1], split[2] if split[2].isdigit() else "00"
    elif decimal and decimal in text:
        text, _, behind = text.rpartition(decimal)
        cents = "".join(character for character in behind if character.isdecimal())
    whole = "".join(character for character in text if character.isdecimal())
    if not whole and not cents:
        return None
    return Decimal(f"{whole or '0'}.{cents}" if cents else whole)
