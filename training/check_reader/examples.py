"""Fields to learn from and to measure on, at a network's height, and batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from convoy.contract.errors import DataError, ImageError
from convoy.contract.field import to_field
from convoy.contract.image import ImageSpec, name_of
from convoy.training.check_reader.field_image import SyntheticField
from convoy.training.check_reader.fields import Field
from convoy.training.check_reader.sliding import STRIDE

MAX_ASPECT: Final = 24
"""A field may be this many times as wide as high."""
STEP_PX: Final = 32
"""Batches are a multiple of this wide: for each new shape PyTorch prepares its convolutions anew, which takes as long as a step."""


def field_spec(height_px: int) -> ImageSpec:
    """The image of a reader: fields of this height, in widths from 2 to ``MAX_ASPECT`` times it.

    Steps of about a quarter: at most a fifth of what is computed is padding, and there are few shapes to batch apart.
    """
    widths = (2, 2.5, 3, 4, 5, 6, 8, 12, 16, MAX_ASPECT)
    exact = tuple(int(-(-height_px * width // STRIDE)) * STRIDE for width in widths)
    return ImageSpec(height_px=height_px, width_px=exact[-1], channels=1, resize="height", widths_px=exact)


@dataclass(frozen=True, eq=False)
class Example:
    """A field at a network's height.

    Attributes:
        name: What messages call it.
        pixels: uint8 (height, width).
        label: What is known of its amount.
        latent: The label holds digits alone: separators and signs may stand anywhere that the grammar allows.
        spans: Of each character of the label the columns that it takes; empty where nobody knows.
    """

    name: str
    pixels: npt.NDArray[np.uint8]
    label: str
    latent: bool
    spans: tuple[tuple[float, float], ...] = ()


def from_real(fields: Iterable[Field], spec: ImageSpec) -> list[Example]:
    """Real fields, with what is known of their amounts.

    Raises:
        DataError: One is wider than readers take.
    """
    examples = []
    for field in fields:
        try:
            pixels, _ = _scaled(field.image, spec)
        except ImageError as error:
            raise DataError(f"{field.name}{str(error).removeprefix(name_of(field.image))}") from error
        examples.append(Example(field.name, pixels, field.label, latent=not field.text))
    return examples


def from_synthetic(fields: Iterable[SyntheticField], spec: ImageSpec) -> list[Example]:
    """Synthetic fields, with all their characters."""
    examples = []
    for field in fields:
        pixels, scale = _scaled(field.image, spec)
        spans = tuple((first * scale, behind * scale) for first, behind in field.spans)
        examples.append(Example(f"synthetic {field.text}", pixels, field.text, latent=False, spans=spans))
    return examples


def _scaled(image: npt.NDArray[np.uint8], spec: ImageSpec) -> tuple[npt.NDArray[np.uint8], float]:
    made = to_field(image, spec)
    return made.pixels[:, : made.width_px, 0].copy(), made.scale


class Batch(NamedTuple):
    """Fields side by side, padded to one width.

    Attributes:
        image: uint8 (B, H, W, 1); W is a multiple of 32.
        width: int64 (B,), columns of each field.
        examples: Where they come from.
    """

    image: Tensor
    width: Tensor
    examples: tuple[Example, ...]


def collate(examples: Sequence[Example]) -> Batch:
    """Put fields into one batch."""
    width = np.array([example.pixels.shape[1] for example in examples], np.int64)
    columns = -(-int(width.max()) // STEP_PX) * STEP_PX
    image = np.zeros((len(examples), examples[0].pixels.shape[0], columns, 1), np.uint8)
    for row, example in zip(image, examples, strict=True):
        row[:, : example.pixels.shape[1], 0] = example.pixels
    return Batch(torch.from_numpy(image), torch.from_numpy(width), tuple(examples))


def in_order(examples: Sequence[Example], batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """All fields, those of like width together: the places of a batch's fields, and the batch."""
    order = sorted(range(len(examples)), key=lambda place: examples[place].pixels.shape[1])
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        yield places, collate([examples[place] for place in places])


def shuffled(examples: Sequence[Example], batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
    """All fields in a new order; within some batches those of like width go together, so that little is padding."""
    order = generator.permutation(len(examples))
    some = 16 * batch_size
    for start in range(0, len(order), some):
        part = sorted(order[start : start + some].tolist(), key=lambda place: examples[place].pixels.shape[1])
        starts = range(0, len(part), batch_size)
        for first in generator.permutation(len(starts)).tolist():
            yield collate([examples[place] for place in part[starts[first] : starts[first] + batch_size]])
