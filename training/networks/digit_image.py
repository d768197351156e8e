"""The images that the LeNets take: 28x28, or 32x32 with room around."""

from __future__ import annotations

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec


def padding_to_32(network: str, image: ImageSpec) -> int:
    """How many pixels must be added on each side of an image to make it 32x32.

    Raises:
        UsageError: It is neither 28x28 nor 32x32.
    """
    paddings = {(28, 28): 2, (32, 32): 0}
    size = image.height_px, image.width_px
    if size not in paddings:
        raise UsageError(
            f"{network} takes images of 28x28 or 32x32 pixels; the data has {size[0]}x{size[1]}: "
            "--set image_size_px=28 or 32 brings them there."
        )
    return paddings[size]
