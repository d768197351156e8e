"""The pieces of a page about a scored set: tables, bars, histograms, texts that others gave. All of them give HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.contract.figures import percent
from convoy.serving.scoring.source import printable

MOST_BARS: Final = 20
"""Rows that a table shows at once; the others on demand."""
MOST_ROWS: Final = 1000
"""Rows that a page holds: one of ten thousand could not be opened."""
DASH: Final = "–"


def bars(counts: npt.NDArray[np.int64], title: str) -> str:
    """A histogram over 0 to 100 %."""
    width, height, left, bottom = 480, 220, 56, 28
    most = max(1, int(counts.max()))
    step = (width - left) / len(counts)
    parts = [f'<line class="axis" x1="{left}" y1="{height - bottom}" x2="{width}" y2="{height - bottom}"/>']
    for value in _ticks(most):
        y = height - bottom - value / most * (height - bottom - 14)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,}</text>')
    for b, count in enumerate(counts.tolist()):
        tall = count / most * (height - bottom - 14)
        tall = max(tall, 1.5) if count else 0  # a few among many are still seen
        parts.append(
            f'<rect class="bar" x="{left + b * step + 1:.1f}" y="{height - bottom - tall:.1f}" width="{step - 2:.1f}" '
            f'height="{tall:.1f}"/>'
        )
    for share in (0, 25, 50, 75, 100):
        x = left + share / 100 * (width - left)
        anchor = "start" if share == 0 else "end" if share == 100 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{share} %</text>')
    return svg(width, height, title, parts)


def _ticks(most: int) -> list[int]:
    """Round numbers to ``most``, two to five of them."""
    step = 1
    while most / step > 5:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return list(range(step, most + 1, step))


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def meter(share: float, mark: float | None = None) -> str:
    """A bar, and where another one would end."""
    tick = "" if mark is None else f'<rect class="tick" x="{min(98.8, 100 * mark):.2f}" width="1.2" height="8"/>'
    return (
        '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="8"/><rect class="fill" width="{100 * share:.2f}" height="8"/>{tick}</svg>'
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = (), meter: int = -1) -> str:
    """A table of cells that are HTML already; the first of a row is its head."""
    right = set(numbers)

    def kind(column: int) -> str:
        return ' class="n"' if column in right else ' class="meter-cell"' if column == meter else ""

    head = "".join(
        f'<th scope="col"{kind(i)}>{escape(text)}</th>' if text else f"<td{kind(i)}></td>" for i, text in enumerate(heads)
    )
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(row) if i) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def long_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Iterable[int], meter: int = -1, most: int = MOST_BARS
) -> str:
    """A table of which the first rows are seen at once, and the others on demand."""
    first = table(heads, rows[:most], numbers=numbers, meter=meter)
    more = rows[most:MOST_ROWS]
    if not more:
        return first
    left = f'<p class="soft">{len(rows) - MOST_ROWS:,} more are left out of this page.</p>' if len(rows) > MOST_ROWS else ""
    return (
        f"{first}<details><summary>{len(more):,} more</summary>{table(heads, more, numbers=numbers, meter=meter)}{left}</details>"
    )


def or_dash(fraction: float | None) -> str:
    return DASH if fraction is None else percent(fraction, 1)


def text(text: str) -> str:
    """A text that others gave, without control characters; its direction of writing stays its own."""
    return f"<bdi>{escape(shortened(printable(text), 400))}</bdi>"


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"
