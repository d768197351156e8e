"""The worst mistakes as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from convoy.training.report.canvas import plain
from convoy.training.report.exhibits import Mistake
from convoy.training.report.sheet import draw_sheet

_LETTERS = 12  # what fits under an image


def draw_mistakes(mistakes: Sequence[Mistake], *, title: str) -> bytes:
    """Draw the images with what each shows, what it was taken for and how surely.

    Args:
        mistakes: At least one, in the order in which they are to stand.
        title: What stands above.

    Returns:
        A PNG file.
    """
    captions = [
        f"shows {plain(mistake.shows, _LETTERS)}\nsaid {plain(mistake.taken_for, _LETTERS - 3)}, {_percent(mistake.probability)}"
        for mistake in mistakes
    ]
    return draw_sheet([mistake.image for mistake in mistakes], captions, columns=8, title=title)


def _percent(probability: float) -> str:
    """Whole percent, but never 100 for what is not certain."""
    return f"{100 * probability:.0f} %" if probability < 0.995 else f"{min(99.9, 100 * probability):.1f} %"
