"""The fields that the gate of a reader runs: real ones with their amounts, and edge cases that real ones seldom hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import UsageError
from convoy.contract.field import FieldPixels
from convoy.contract.goldens import Arrays
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INPUT_NAME
from convoy.contract.reading import WIDTH_NAME

EDGES: Final = (
    "blank paper", "black", "noise", "one column of pixels", "ink and paper exchanged", "as wide as can be",
    "a stroke of one column", "checkerboard",
)  # fmt: skip
UNKNOWN_TEXT: Final = ""


@dataclass(frozen=True, eq=False)
class FieldSet:
    """Fields on which both sides are compared.

    Attributes:
        split: Where they come from, for people ("orand-car-a test").
        fields: As ``to_field`` gives them, for one and the same image rule.
        texts: The amount of each; empty where nobody knows.
        digits: An amount is right where its digits are: some of the texts hold digits alone, whatever else stands on the paper.

    Raises:
        UsageError: They are not that.
    """

    split: str
    fields: tuple[FieldPixels, ...]
    texts: tuple[str, ...]
    digits: bool = False

    def __post_init__(self) -> None:
        if not self.fields:
            raise UsageError("evaluation fields: expected some, found none.")
        if len(self.texts) != len(self.fields):
            raise UsageError(f"evaluation texts: expected one for each of {len(self.fields)} fields, found {len(self.texts)}.")
        for index, field in enumerate(self.fields):
            if field.pixels.dtype != np.uint8 or field.pixels.ndim != 3 or not 0 < field.width_px <= field.pixels.shape[1]:
                raise UsageError(
                    "evaluation fields: expected pixels as `to_field` gives them, uint8 of shape (height, width, channels), "
                    f"found {field.pixels.dtype} {field.pixels.shape} with a width of {field.width_px} (field {index})."
                )

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def labelled(self) -> npt.NDArray[np.int64]:
        """Indices of the fields whose amounts are known."""
        return np.flatnonzero([text != UNKNOWN_TEXT for text in self.texts])

    def right(self, index: int, text: str) -> bool:
        """Whether ``text`` is the amount of a field, as far as its label tells."""
        told, known = text, self.texts[index]
        if self.digits:
            told, known = ("".join(filter(str.isdecimal, one)) for one in (told, known))
        return told == known

    def check(self, image: ImageSpec) -> None:
        """Raise where the fields are not of a model's image rule.

        Raises:
            UsageError: They are not.
        """
        for index, field in enumerate(self.fields):
            height, width, channels = field.pixels.shape
            if (height, channels) != (image.height_px, image.channels) or width not in image.widths_px:
                raise UsageError(
                    f"evaluation fields: expected {image.height_px} pixels high, {image.channels} channels, and a width of "
                    f"{', '.join(map(str, image.widths_px))}, found {height}, {channels} and {width} (field {index})."
                )


def edge_fields(image: ImageSpec, real: FieldPixels) -> tuple[FieldPixels, ...]:
    """Fields as ``EDGES`` names them.

    Args:
        image: The model's image.
        real: One that is turned dark, and repeated until it is as wide as can be.
    """
    height, widest = image.height_px, image.width_px
    narrow = min(3 * height, widest)
    ink: npt.NDArray[np.uint8] = real.pixels[:, : real.width_px, 0]
    turned: npt.NDArray[np.uint8] = np.invert(ink)
    stroke = np.full((height, narrow), 255, np.uint8)
    stroke[height // 4 : -height // 4 or None, narrow // 2] = 0
    levels = np.random.default_rng(0).integers(0, 256, (height, narrow), dtype=np.uint8)
    repeated: npt.NDArray[np.uint8] = np.tile(ink, (1, -(-widest // ink.shape[1])))[:, :widest]
    squares = (np.indices((height, narrow)).sum(axis=0) % 2 * 255).astype(np.uint8)
    paper, black = np.full((height, narrow), 255, np.uint8), np.zeros((height, narrow), np.uint8)
    drawn: tuple[npt.NDArray[np.uint8], ...] = (paper, black, levels, levels[:, :1], turned, repeated, stroke, squares)
    return tuple(as_field(pixels, image) for pixels in drawn)


def as_field(pixels: npt.NDArray[np.uint8], image: ImageSpec) -> FieldPixels:
    """A field that has the model's height already, uint8 (height, width), as ``to_field`` lays it on its image."""
    height, width = pixels.shape
    bucket = next(bucket for bucket in image.widths_px if bucket >= width)
    laid = np.zeros((height, bucket, image.channels), np.uint8)
    laid[:, :width] = pixels[..., None]
    return FieldPixels(laid, width, 1.0)


@dataclass(frozen=True, eq=False)
class FieldExhibits:
    """Everything that both sides are asked about: the real fields, then the edge fields.

    Attributes:
        evidence: The real fields.
        fields: They, then the edge fields.
        widest_px: Of all images.
    """

    evidence: FieldSet
    fields: tuple[FieldPixels, ...]
    widest_px: int

    @classmethod
    def of(cls, evidence: FieldSet, image: ImageSpec) -> FieldExhibits:
        """The evidence with the edge fields of ``image`` behind it."""
        return cls(evidence, (*evidence.fields, *edge_fields(image, evidence.fields[0])), image.width_px)

    def __len__(self) -> int:
        return len(self.fields)

    def name(self, index: int) -> str:
        """What a field is called in reports."""
        n = len(self.evidence)
        return f"field {index} of {self.evidence.split}" if index < n else f"edge field: {EDGES[index - n]}"

    def sample(self, n: int) -> npt.NDArray[np.int64]:
        """Indices of all edge fields and of ``n`` real ones, spread evenly over the set."""
        real = len(self.evidence)
        spread = np.unique(np.linspace(0, real - 1, min(n, real)).round().astype(np.int64))
        return np.concatenate([spread, np.arange(real, len(self))])

    def inputs(self, indices: Sequence[int] | npt.NDArray[np.int64], columns_px: int = 0) -> dict[str, npt.NDArray[np.generic]]:
        """One batch.

        Args:
            indices: Which fields, of one width of image.
            columns_px: Make each image so wide, with noise behind what it had: nothing there may change an answer. 0: as they are.
        """
        fields = [self.fields[index] for index in indices]
        images = [field.pixels for field in fields]
        if columns_px:
            rng = np.random.default_rng(columns_px)
            images = [
                np.concatenate([field.pixels[:, : field.width_px], _noise(rng, field, columns_px - field.width_px)], axis=1)
                for field in fields
            ]
        return {INPUT_NAME: np.stack(images), WIDTH_NAME: np.array([[field.width_px] for field in fields], np.int64)}

    def batches(
        self, indices: npt.NDArray[np.int64], size: int, *, mixed: bool = False
    ) -> Iterator[tuple[npt.NDArray[np.int64], Arrays]]:
        """The fields in batches, each with the places of its fields in ``indices``.

        Args:
            indices: Which fields.
            size: How many go together.
            mixed: Fields of all widths together in the order of ``indices``, on images as wide as there are, with noise behind
                each; else those of one width of image together.
        """
        widths = np.array([0 if mixed else self.fields[index].pixels.shape[1] for index in indices])
        for width in np.unique(widths):
            places = np.flatnonzero(widths == width)
            for start in range(0, len(places), size):
                rows = places[start : start + size]
                yield rows, self.inputs(indices[rows], self.widest_px if mixed else 0)


def _noise(rng: np.random.Generator, field: FieldPixels, columns_px: int) -> npt.NDArray[np.uint8]:
    height, _, channels = field.pixels.shape
    return rng.integers(0, 256, (height, columns_px, channels), dtype=np.uint8)
