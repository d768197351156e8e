"""Amounts as people write them: of realistic lengths, often round, with the separators and signs of a country."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from convoy.contract.errors import DataError


@dataclass(frozen=True)
class Amount:
    """One amount.

    Attributes:
        text: All its characters, such as ``13.254.-``.
    """

    text: str

    @property
    def digits(self) -> str:
        """Those of the text in their order, those of a written ``/100`` too: what a label of digits alone holds."""
        return "".join(character for character in self.text if character in _DIGITS)


_DIGITS: Final = "0123456789"


class _Odds:
    """Things with weights, drawn at once: ``Generator.choice`` takes 20 microseconds, this one."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._things = tuple(weights)
        total = sum(weights.values())
        self._below = tuple(sum_ / total for sum_ in accumulate(weights.values()))[:-1]

    def draw(self, generator: np.random.Generator) -> str:
        return self._things[bisect_right(self._below, generator.random())]


# Lengths and round numbers of ORAND-CAR-A (3 to 6 digits, 14 % end in 000, 20 % in 00, 31 % in 0), with wider tails.
_PESO_LENGTHS: Final = _Odds({"1": 0.005, "2": 0.02, "3": 0.11, "4": 0.32, "5": 0.40, "6": 0.11, "7": 0.03, "8": 0.005})
_WHOLE_LENGTHS: Final = _Odds({"1": 0.04, "2": 0.24, "3": 0.38, "4": 0.23, "5": 0.08, "6": 0.03})
_ZEROS: Final = _Odds({"0": 0.65, "1": 0.10, "2": 0.08, "3": 0.15, "4": 0.02})
_CENTS_ZEROS: Final = _Odds({"0": 0.55, "1": 0.12, "2": 0.33})
_FIRST: Final = _Odds({str(digit): float(np.log10(1 + 1 / digit)) for digit in range(1, 10)})  # Benford (1938)

_PESO_MARK: Final = _Odds({"": 0.915, "$": 0.035, "$ ": 0.015, "#": 0.02, "*": 0.01, "#$": 0.005})
_PESO_SEPARATOR: Final = _Odds({"": 0.6, ".": 0.33, ",": 0.07})
_PESO_CLOSE: Final = _Odds(
    {"": 0.60, "-": 0.17, ".-": 0.08, "=": 0.05, ".": 0.04, ",": 0.01, ":": 0.01, ":=": 0.01, "/": 0.01, "#": 0.015, "*": 0.005}
)
_DOLLAR_MARK: Final = _Odds({"": 0.55, "$": 0.25, "$ ": 0.12, "*": 0.03, "#": 0.02, "*$": 0.03})
_DOLLAR_CENTS: Final = _Odds(
    {
        "": 0.1,
        ".dd": 0.45,
        " dd/100": 0.13,
        "-dd/100": 0.05,
        " xx/100": 0.06,
        " XX/100": 0.03,
        " no/100": 0.06,
        ".-": 0.04,
        "-": 0.08,
    }
)
_EURO_CENTS: Final = _Odds({"": 0.2, ",dd": 0.66, ",-": 0.06, ",--": 0.05, ",=": 0.03})
_EURO_SIGN: Final = _Odds({"": 0.6, "€": 0.12, " €": 0.16, "F": 0.06, " F": 0.06})
_EURO_FILLS: Final = _Odds({"": 0.72, "# #": 0.1, "* *": 0.04, " #": 0.04, " -": 0.05, " =": 0.03, " /": 0.02})


def sample_amount(style: str, generator: np.random.Generator) -> Amount:
    """Draw an amount that the grammar of the same name accepts.

    Args:
        style: ``chilean``, ``us``, ``french`` or ``digits``.
        generator: Where the draws come from; nothing else decides.

    Raises:
        DataError: There is no such style.
    """
    if style not in _STYLES:
        raise DataError(f"expected a style of amounts, one of {', '.join(amount_styles())}; found {style!r}.")
    return Amount(_STYLES[style](generator))


def amount_styles() -> tuple[str, ...]:
    """The styles that there are."""
    return tuple(sorted(_STYLES))


def _chilean(generator: np.random.Generator) -> str:
    separator = _PESO_SEPARATOR.draw(generator)
    return _PESO_MARK.draw(generator) + _grouped(_whole(_PESO_LENGTHS, generator), separator) + _PESO_CLOSE.draw(generator)


def _us(generator: np.random.Generator) -> str:
    separator = "," if generator.random() < 0.7 else ""
    cents = _DOLLAR_CENTS.draw(generator).replace("dd", _cents(generator))
    return _DOLLAR_MARK.draw(generator) + _grouped(_whole(_WHOLE_LENGTHS, generator), separator) + cents


def _french(generator: np.random.Generator) -> str:
    separator = ("", " ", ".")[int(3 * generator.random())]
    cents = _EURO_CENTS.draw(generator).replace("dd", _cents(generator))
    before, after = (_EURO_FILLS.draw(generator) + "  ").split(" ")[:2]
    return before + _grouped(_whole(_WHOLE_LENGTHS, generator), separator) + cents + _EURO_SIGN.draw(generator) + after


def _digits(generator: np.random.Generator) -> str:
    return _whole(_PESO_LENGTHS, generator)


_STYLES: Final[Mapping[str, Callable[[np.random.Generator], str]]] = {
    "chilean": _chilean,
    "digits": _digits,
    "french": _french,
    "us": _us,
}


def _whole(lengths: _Odds, generator: np.random.Generator) -> str:
    length = int(lengths.draw(generator))
    zeros = min(int(_ZEROS.draw(generator)), length - 1)
    middle = generator.integers(10, size=length - 1 - zeros).tolist()
    return _FIRST.draw(generator) + "".join(map(str, middle)) + "0" * zeros


def _cents(generator: np.random.Generator) -> str:
    zeros = int(_CENTS_ZEROS.draw(generator))
    return "".join(map(str, generator.integers(10, size=2 - zeros).tolist())) + "0" * zeros


def _grouped(digits: str, separator: str) -> str:
    return f"{int(digits):,}".replace(",", separator)
