"""How the answers to images are shown, as they come: rows of a table for people, or JSON lines."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import click

from convoy.cli.console import stdout_console
from convoy.cli.images import Found, printable

if TYPE_CHECKING:
    from convoy.serving.client import Prediction

_BAR_WIDTH = 20  # characters for a probability of 1
_SHORT_BAR_WIDTH = 8  # where long names leave no more
_ROOMY = 40  # characters for name, label and bar: with fewer, there is no bar
_GAP = 2  # characters between columns
_CONTROL = (
    "Cc",
    "Zl",
    "Zp",
    "Cs",
)  # categories of Unicode: control characters, line and paragraph separators, halves of characters


@dataclass(frozen=True)
class Answer:
    """What is on an image, or why there is no answer.

    Attributes:
        found: The image.
        prediction: What the model says.
        error: Why it says nothing.
    """

    found: Found
    prediction: Prediction | None
    error: str | None


class Display(Protocol):
    """Shows answers."""

    def show(self, answers: Sequence[Answer]) -> None:
        """Show some more."""


class JsonLines:
    """One JSON object an image on stdout.

    Args:
        model_name: The model that is asked.
    """

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    def show(self, answers: Sequence[Answer]) -> None:
        """Print a line an answer."""
        for answer in answers:
            prediction = asdict(answer.prediction) if answer.prediction is not None else {}
            line = {
                "image": answer.found.name,
                **{key: prediction.get(key) for key in ("label", "index", "probability", "top_k")},
                "model_name": self._model_name,
                "model_version": prediction.get("model_version"),
                "error": None if answer.error is None else printable(answer.error),
            }
            click.echo(json.dumps(line, ensure_ascii=not is_utf8(sys.stdout.encoding)))


@dataclass(frozen=True)
class _Row:
    image: str
    label: str
    probability: float
    version: str


class Table:
    """Rows on stdout, under headings that are printed once; why there is no answer goes to stderr.

    What comes later is not known when the first rows are printed: a column is as wide as what it has shown so far, and grows.
    """

    def __init__(self) -> None:
        self._console = stdout_console()
        self._block = "█" if is_utf8(self._console.encoding) else "#"
        self._widths: dict[str, int] = {}  # by column, of what was shown so far; empty: nothing was
        self._bar_width = 0

    def show(self, answers: Sequence[Answer]) -> None:
        """Print a row a candidate."""
        rows = [row for answer in answers if answer.prediction is not None for row in self._rows(answer.found, answer.prediction)]
        if rows:
            self._print(rows)
        for answer in answers:
            if answer.error is not None:
                click.echo(f"convoy: {visible(answer.error, 'utf-8')}", err=True)

    def _rows(self, found: Found, prediction: Prediction) -> list[_Row]:
        def shown(text: str) -> str:
            return visible(text, self._console.encoding)

        first, *others = prediction.top_k
        top = _Row(shown(found.name), shown(first.label), first.probability, shown(prediction.model_version))
        return [top, *(_Row("", shown(other.label), other.probability, "") for other in others)]

    def _print(self, rows: Sequence[_Row]) -> None:
        from rich.table import Table as RichTable
        from rich.text import Text

        is_first = not self._widths
        columns = self._columns(rows)
        table = RichTable(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0), show_header=is_first)
        for heading, width in columns.items():
            table.add_column(heading, width=width, justify="right" if heading == "probability" else "left")
        for row in rows:
            cells = {
                "image": row.image,
                "label": row.label,
                "probability": f"{row.probability:.2%}",
                "": self._block * round(row.probability * columns.get("", 0)),
                "version": row.version,
            }
            table.add_row(*(Text(cells[heading], overflow="fold") for heading in columns))  # Text: a name may look like markup
        self._console.print(table)

    def _columns(self, rows: Sequence[_Row]) -> dict[str, int]:
        """The headings with the widths of their columns, in characters.

        Where a terminal is too narrow for it all, the bar is shorter or left out, and then names and labels are folded.
        """
        from rich.cells import cell_len

        is_first = not self._widths
        for column in ("image", "label", "version"):
            widest = max(cell_len(getattr(row, column)) for row in rows)
            self._widths[column] = max(self._widths.get(column, len(column)), widest)
        room = self._console.width - self._widths["version"] - len("probability") - 3 * _GAP  # for name, label and bar
        if is_first:  # bars of all rows have one scale
            beside = room - self._widths["image"] - self._widths["label"] - _GAP
            self._bar_width = min(_BAR_WIDTH, max(beside, _SHORT_BAR_WIDTH)) if room >= _ROOMY else 0
        room -= self._bar_width + _GAP if self._bar_width else 0
        label = max(1, min(self._widths["label"], max(room - self._widths["image"], room // 2)))
        image = max(1, min(self._widths["image"], room - label))
        bar = {"": self._bar_width} if self._bar_width else {}
        return {"image": image, "label": label, "probability": len("probability"), **bar, "version": self._widths["version"]}


def visible(text: str, encoding: str) -> str:
    """``text`` as it can be shown in a line of a terminal: what would move the cursor is written as an escape."""
    text = "".join(_escaped(c) if unicodedata.category(c) in _CONTROL else c for c in printable(text))
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def is_utf8(encoding: str | None) -> bool:
    """Whether a stream can say everything."""
    return (encoding or "").lower().replace("-", "").startswith("utf8")
