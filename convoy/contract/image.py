"""The one way from an image to a model's pixels: what the client sends and what training reads.

Everything after the pixels (scaling, normalisation, polarity) is inside the ONNX graph.
"""

from __future__ import annotations

import io
import os
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from typing_extensions import Self

from convoy.contract.errors import ImageError

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""uint8, shape (height, width, channels)."""

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | npt.NDArray[np.generic]"
"""A path, an encoded image or an open file of one, a PIL image, or an array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""

MAX_IMAGE_PIXELS = 178_956_970
"""Images of more pixels are refused before they are decoded (PIL's own limit for a decompression bomb)."""

_DARK = 127  # the highest luminance that counts as dark ink
_DARK_PARTS = 200  # where 1 part in so many of what is visible is dark, it is dark ink on a light page

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class ImageSpec(BaseModel):
    """How an image of any size becomes the pixels that a model takes.

    Transparency is laid on white, as ink on paper; on black where the visible ink is light: its luminance, weighted by alpha, is
    above 127 in the mean, and next to none of it (1 part in 200) is dark, which would make it a light page with ink of its own.

    Attributes:
        height_px: The model's image height.
        width_px: The model's image width.
        channels: 1 for grey, 3 for RGB.
        resize: ``stretch`` ignores the aspect ratio; ``fit`` keeps it and pads what is left over with the median of the image's
            border; ``crop`` keeps it and cuts what sticks out, centred; ``height`` is for fields of writing of any width: the
            aspect ratio is kept, and what ``to_field`` gives is as wide as the first of ``widths_px`` that holds it.
        interpolation: The resampling filter, PIL's (antialiased when it shrinks).
        widths_px: With ``height``: the widths that there are, ascending, the last one ``width_px``; else empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height_px: int = Field(ge=1, le=16_384)
    width_px: int = Field(ge=1, le=16_384)
    channels: Literal[1, 3]
    resize: Literal["stretch", "fit", "crop", "height"] = "fit"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    widths_px: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.resize == "height") != bool(self.widths_px):
            raise ValueError("widths_px: go with resize 'height', and with no other")
        ascending = all(0 < narrow < wide for narrow, wide in pairwise(self.widths_px))
        if self.widths_px and not (ascending and self.widths_px[-1] == self.width_px):
            raise ValueError(f"widths_px: expected ascending widths from 1, the last one {self.width_px}; found {self.widths_px}")
        return self

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without widths where there are none: clients from before there were any read it too."""
        fields: dict[str, Any] = handler(self)
        if not self.widths_px:
            fields.pop("widths_px", None)
        return fields

    @property
    def dims(self) -> tuple[int, int, int]:
        """Height, width (the largest, where there are several), channels."""
        return self.height_px, self.width_px, self.channels


def open_image(image: ImageLike) -> Image.Image:
    """Decode ``image`` whole and turn it upright (EXIF orientation).

    Raises:
        ImageError: It is not an image, is damaged, is too large, or is an array of another shape or dtype.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    name = "the image"
    try:
        if isinstance(image, Image.Image):
            return _decode(image, name)
        if not isinstance(image, (str, os.PathLike)):
            data = bytes(image) if isinstance(image, (bytes, bytearray, memoryview)) else image.read()
            if not data:
                raise empty_image(name, "empty data")
            name = f"the image ({len(data)} bytes)"
            return _decode(Image.open(io.BytesIO(data)), name)
        name = os.fspath(image)
        with Path(image).open("rb") as file:  # opened here: PIL leaves the file of a damaged image open
            if not file.peek(1):
                raise empty_image(name)
            return _decode(Image.open(file), name)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: expected an image (PNG, JPEG, ...), found something else.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too large: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: expected an image, found a folder.") from error
    except AttributeError as error:
        raise ImageError(
            f"{name}: expected a path, bytes, an open file, a PIL image or an array, found {type(image).__name__}."
        ) from error
    except Exception as error:  # PIL's decoders raise SyntaxError, ValueError, EOFError, struct.error ... on damaged files
        raise ImageError(f"{name}: cannot be read as an image: {error}") from error


def to_pixels(image: ImageLike, spec: ImageSpec) -> Pixels:
    """Bring ``image`` to the size and channels of ``spec``.

    Transparency becomes white, or black behind light ink; ``ImageSpec`` says when.

    Args:
        image: A path, an encoded image, a PIL image, or an array (see ``ImageLike``). Float arrays are refused: their range is
            anyone's guess.
        spec: The model's image.

    Returns:
        uint8, shape (height, width, channels), raw pixels.

    Raises:
        ImageError: It cannot be read.
    """
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == spec.dims:
        return image.astype(np.uint8, copy=False)
    resized = _resize(open_flat(image, spec.channels), spec)
    return np.asarray(resized, dtype=np.uint8).reshape(spec.dims)


def open_flat(image: ImageLike, channels: Literal[1, 3]) -> Image.Image:
    """Decode ``image``, 8 bits a channel, grey or RGB, nothing of it transparent.

    Raises:
        ImageError: It cannot be read.
    """
    opened = open_image(image)
    try:
        return _flatten(opened).convert("L" if channels == 1 else "RGB")
    except Exception as error:  # PIL refuses some conversions of odd modes with errors of its own
        raise ImageError(f"{name_of(image)}: cannot be read as an image: {error}") from error


def name_of(image: ImageLike) -> str:
    """What messages call an image: its path where it has one."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else "the image"


def empty_image(name: object, found: str = "an empty file") -> ImageError:
    """The error of an image without a byte.

    Args:
        name: What to call the image.
        found: What is there instead.
    """
    return ImageError(f"{name}: expected an image, found {found} (zero bytes).")


def _decode(opened: Image.Image, name: str) -> Image.Image:
    if opened.width * opened.height > MAX_IMAGE_PIXELS:
        raise ImageError(f"{name}: {opened.width}x{opened.height} pixels are more than the {MAX_IMAGE_PIXELS:,} that are read.")
    opened.load()
    return ImageOps.exif_transpose(opened)


def _from_array(array: npt.NDArray[np.generic]) -> Image.Image:
    squeezed = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if (
        array.dtype != np.uint8
        or not (squeezed.ndim == 2 or (squeezed.ndim == 3 and squeezed.shape[2] in (3, 4)))
        or 0 in array.shape
    ):
        hint = " Scale floats to 0..255 and convert them first." if array.dtype.kind == "f" else ""
        raise ImageError(
            f"expected an image array of dtype uint8 and shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), "
            f"found {array.dtype} {array.shape}.{hint}"
        )
    return Image.fromarray(np.ascontiguousarray(squeezed))


def _flatten(image: Image.Image) -> Image.Image:
    """To 8 bits a channel, transparency laid on white or, behind light ink, on black."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N"):
        return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8))
    if image.mode == "I":  # 32-bit integers: PIL's mode for some 16-bit PNG files
        values = np.asarray(image)
        return Image.fromarray((values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _paper(rgba)), rgba).convert("RGB")
    return image


def _paper(rgba: Image.Image) -> Literal["white", "black"]:
    """What transparency is laid on so that the ink can be seen; the rule is in ``ImageSpec``."""
    alpha = np.asarray(rgba.getchannel("A"))
    luminance = np.asarray(rgba.convert("L"))
    visible = int(alpha.sum(dtype=np.int64))
    bright = int(np.einsum("ij,ij->", luminance, alpha, dtype=np.int64))
    dark = int(alpha.sum(dtype=np.int64, where=luminance <= _DARK))
    return "black" if bright > _DARK * visible and dark * _DARK_PARTS < visible else "white"


def _resize(image: Image.Image, spec: ImageSpec) -> Image.Image:
    size = (spec.width_px, spec.height_px)
    resample = RESAMPLING[spec.interpolation]
    if image.size == size:
        return image
    if spec.resize == "stretch":
        return image.resize(size, resample)
    if spec.resize == "crop":
        return ImageOps.fit(image, size, resample)
    scale = min(spec.width_px / image.width, spec.height_px / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.resize(inner, resample)
    canvas = Image.new(image.mode, size, _border_median(image))
    canvas.paste(resized, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas


def _border_median(image: Image.Image) -> int | tuple[int, ...]:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    median = np.median(border, axis=0)
    return int(median) if image.mode == "L" else tuple(int(value) for value in median)
