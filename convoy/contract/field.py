"""From an image of a field of writing, or of the form that it lies on, to what a network takes that is swept over fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from convoy.contract.errors import ImageError
from convoy.contract.image import RESAMPLING, ImageLike, ImageSpec, Pixels, name_of, open_flat


class Box(NamedTuple):
    """Where a field lies on a larger image, in pixels from the top left corner of the image as it is seen (upright)."""

    left_px: int
    top_px: int
    width_px: int
    height_px: int


@dataclass(frozen=True, eq=False)
class FieldPixels:
    """A field at the model's height.

    Attributes:
        pixels: uint8 (height, width of a bucket, channels); what lies right of ``width_px`` is 0 and changes no answer.
        width_px: How much of it is the field.
        scale: Columns here over columns of the image, as it came out once whole columns were made.
        left_px: Where the field begins on the image, in the image's pixels.
    """

    pixels: Pixels
    width_px: int
    scale: float
    left_px: int = 0


def to_field(image: ImageLike, spec: ImageSpec, box: Box | tuple[int, int, int, int] | None = None) -> FieldPixels:
    """Cut a field out, scale it to the model's height, and lay it at the left of the narrowest width that holds it.

    Args:
        image: A path, an encoded image, a PIL image, or an array (see ``ImageLike``).
        spec: The model's image, with ``resize`` ``height``.
        box: The field on a larger image: left, top, width, height; None: all of it.

    Raises:
        ImageError: It cannot be read, it is wider than the model takes, or the box does not lie on it.
    """
    flat = open_flat(image, spec.channels)
    left = 0
    if box is not None:
        left, top, width, height = box
        if width < 1 or height < 1 or left < 0 or top < 0 or left + width > flat.width or top + height > flat.height:
            raise ImageError(
                f"{name_of(image)}: expected a box (left, top, width, height) on the image of {flat.width}x{flat.height} pixels, "
                f"found {tuple(box)}."
            )
        flat = flat.crop((left, top, left + width, top + height))
    field_width_px = flat.width
    width_px = max(1, round(field_width_px * spec.height_px / flat.height))
    if width_px > spec.width_px:
        raise ImageError(
            f"{name_of(image)}: expected a field at most {spec.width_px / spec.height_px:g} times as wide as high, found "
            f"{flat.width}x{flat.height} pixels. Cut the amount out, or say where it is (box in Python, --box on the command line)."
        )
    if flat.size != (width_px, spec.height_px):
        flat = flat.resize((width_px, spec.height_px), RESAMPLING[spec.interpolation])
    bucket = next(width for width in spec.widths_px if width >= width_px)
    pixels = np.zeros((spec.height_px, bucket, spec.channels), np.uint8)
    pixels[:, :width_px] = np.asarray(flat, np.uint8).reshape(spec.height_px, width_px, spec.channels)
    return FieldPixels(pixels, width_px, width_px / field_width_px, left)
