"""How the amounts that are read in images are shown, as they come: rows of a table for people, JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.answers import is_utf8, visible
from convoy.cli.console import stdout_console
from convoy.cli.field_picture import draw_lines
from convoy.cli.images import Found, printable

if TYPE_CHECKING:
    from convoy.contract.field import FieldPixels
    from convoy.serving.client import Amount

_BAR_WIDTH: Final = 12  # characters for a confidence of 1
_GAP: Final = 2  # characters between columns
_LEAST: Final = 8  # characters of a name or an amount, before it is folded
_INDENT: Final = "  "  # before a drawing
_TO_THE_RIGHT: Final = ("amount", "confidence", "posterior")


@dataclass(frozen=True, eq=False)
class ReadAnswer:
    """What an image says, or why there is no answer.

    Attributes:
        found: The image.
        field: Its pixels as the model was given them.
        amount: What the model read.
        error: Why it read nothing.
    """

    found: Found
    field: FieldPixels | None
    amount: Amount | None
    error: str | None


class AmountLines:
    """One JSON object an image on stdout.

    Args:
        model_name: The model that is asked.
        top_k: How many alternatives to list.
    """

    def __init__(self, model_name: str, top_k: int) -> None:
        self._model_name = model_name
        self._top_k = top_k

    def show(self, answers: Sequence[ReadAnswer]) -> None:
        """Print a line an answer."""
        for answer in answers:
            line = {
                "image": answer.found.name,
                **self._read(answer.amount),
                "model_name": self._model_name,
                "model_version": None if answer.amount is None else answer.amount.model_version,
                "error": None if answer.error is None else printable(answer.error),
            }
            click.echo(json.dumps(line, ensure_ascii=not is_utf8(sys.stdout.encoding)))

    def _read(self, amount: Amount | None) -> dict[str, Any]:
        """The amounts as text, since JSON's numbers are not decimal."""
        if amount is None:
            return dict.fromkeys(("amount", "text", "confidence", "accepted", "characters", "alternatives"))
        return {
            "amount": _said(amount.value),
            "text": amount.text,
            "confidence": amount.confidence,
            "accepted": amount.accepted,
            "characters": [asdict(character) for character in amount.characters],
            "alternatives": [
                {"amount": _said(other.value), "text": other.text, "posterior": other.posterior}
                for other in amount.alternatives[: self._top_k]
            ],
        }


class AmountTable:
    """Rows on stdout, under headings that are printed once; why there is no answer goes to stderr.

    In a terminal each row has the field below it, with the characters under their places.

    Args:
        top_k: How many alternatives to list.
    """

    def __init__(self, top_k: int) -> None:
        self._console = stdout_console()
        self._unicode = is_utf8(self._console.encoding)
        self._top_k = top_k
        self._widths: dict[str, int] = {}  # by column, of what was shown so far; empty: nothing was

    def show(self, answers: Sequence[ReadAnswer]) -> None:
        """Print a row an answer, with a row an alternative below it."""
        rows = [self._rows(answer.found, answer.amount) for answer in answers if answer.amount is not None]
        if self._console.is_terminal:
            read = [answer for answer in answers if answer.amount is not None]
            for answer, some in zip(read, rows, strict=True):
                self._print(some)
                self._draw(answer)
        elif rows:
            self._print([row for some in rows for row in some])
        for answer in answers:
            if answer.error is not None:
                click.echo(f"convoy: {visible(answer.error, 'utf-8')}", err=True)

    def _rows(self, found: Found, amount: Amount) -> list[dict[str, str]]:
        encoding = self._console.encoding
        block = "█" if self._unicode else "#"
        top = {
            "image": visible(found.name, encoding),
            "amount": _said(amount.value) or "-",
            "text": visible(amount.text, encoding),
            "confidence": f"{amount.confidence:.2%}",
            "bar": block * round(amount.confidence * _BAR_WIDTH),
            "verdict": "accepted" if amount.accepted else "to a person",
            "version": visible(amount.model_version, encoding),
        }
        if self._top_k == 1:
            return [top]
        rows = [top]
        for i, other in enumerate(amount.alternatives[: self._top_k]):
            row = top if i == 0 else {"amount": _said(other.value) or "-"}
            row.update(text=visible(other.text, encoding), posterior=f"{other.posterior:.2%}")
            rows += [row] if i else []
        return rows

    def _print(self, rows: Sequence[dict[str, str]]) -> None:
        from rich.table import Table
        from rich.text import Text

        is_first = not self._widths
        columns = self._columns(rows)
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0), show_header=is_first)
        for name, width in columns.items():
            heading = "" if name in ("bar", "verdict") else name
            table.add_column(heading, width=width, justify="right" if name in _TO_THE_RIGHT else "left")
        for row in rows:
            table.add_row(*(Text(row.get(name, ""), overflow="fold") for name in columns))  # Text: a name may look like markup
        self._console.print(table)

    def _columns(self, rows: Sequence[dict[str, str]]) -> dict[str, int]:
        """The columns with their widths. Where a terminal is too narrow, the bar is left out, then names and texts are folded."""
        from rich.cells import cell_len

        names = ["image", "amount", "text", *(["posterior"] if self._top_k > 1 else []), "confidence", "bar", "verdict", "version"]
        for name in names:
            least = {"bar": _BAR_WIDTH, "verdict": len("to a person")}.get(name, len(name))
            self._widths[name] = max([self._widths.get(name, least), *(cell_len(row.get(name, "")) for row in rows)])
        columns = {name: self._widths[name] for name in names}
        most = self._console.width
        if _total(columns) > most:
            del columns["bar"]
        for name in ("image", "text"):
            columns[name] = max(min(_LEAST, columns[name]), columns[name] - max(0, _total(columns) - most))
        return columns

    def _draw(self, answer: ReadAnswer) -> None:
        assert answer.field is not None
        assert answer.amount is not None
        for line in draw_lines(
            answer.field,
            answer.amount,
            columns=self._console.width - 2 * len(_INDENT),
            in_colour=self._console.color_system in ("256", "truecolor") and not self._console.no_color,
            unicode=self._unicode,
        ):
            line.pad_left(len(_INDENT))
            self._console.print(line, no_wrap=True, overflow="crop")


def _said(value: Decimal | None) -> str | None:
    """A number without marks between its thousands, which the text beside it may have as marks before decimals."""
    return None if value is None else str(value)


def _total(columns: dict[str, int]) -> int:
    return sum(columns.values()) + _GAP * len(columns)
