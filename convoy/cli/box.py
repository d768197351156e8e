"""``--box``: where the field with the amount lies on each image."""

from __future__ import annotations

from typing import Final

import click


def _box(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    try:
        left, top, width, height = map(int, parts)
    except ValueError as error:
        raise click.BadParameter(f"expected four whole numbers, LEFT,TOP,WIDTH,HEIGHT, found {text!r}.") from error
    if min(left, top) < 0 or min(width, height) < 1:
        raise click.BadParameter(f"expected LEFT and TOP from 0, WIDTH and HEIGHT from 1, found {text!r}.")
    return left, top, width, height


box_option: Final = click.option(
    "--box",
    metavar="LEFT,TOP,WIDTH,HEIGHT",
    callback=lambda _context, _parameter, value: _box(value),
    help="Where the amount lies on each image, in pixels; of models that read amounts.",
)
"""The option; its value is ``(left, top, width, height)``, or None."""
