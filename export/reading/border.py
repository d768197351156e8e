"""The border of a reader of amounts, as its manifest says it."""

from __future__ import annotations

from dataclasses import dataclass

from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INPUT_NAME, TensorSpec
from convoy.contract.reading import (
    CHARACTERS_NAME,
    CONFIDENCE_NAME,
    N_CHARACTERS_NAME,
    POSITIONS_NAME,
    POSTERIORS_NAME,
    WIDTH_NAME,
    ReadingSpec,
)
from convoy.export.gate.gate import batch_sizes


@dataclass(frozen=True)
class ReadingBorder:
    """What the manifest says of a reader's border.

    Attributes:
        image: The model's image, with ``resize`` ``height``.
        labels: The characters, in their order.
        reading: What it answers.
        max_batch_size: The largest batch that the server may form.
    """

    image: ImageSpec
    labels: tuple[str, ...]
    reading: ReadingSpec
    max_batch_size: int

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """1, 2, an odd one, and the largest: all that is run."""
        return batch_sizes(self.max_batch_size)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Pixels of any number of columns, and how many of them are the field."""
        height, width, channels = self.image.dims
        return (
            TensorSpec(name=INPUT_NAME, datatype="UINT8", dims=(height, -1, channels), value_range=(0, 255)),
            TensorSpec(name=WIDTH_NAME, datatype="INT64", dims=(1,), value_range=(1, width)),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The amounts, the likeliest first, where their characters stand, and how sure the first one is."""
        n, length = self.reading.n_best, self.reading.max_characters
        return (
            TensorSpec(name=CHARACTERS_NAME, datatype="INT64", dims=(n, length), value_range=(-1, len(self.labels) - 1)),
            TensorSpec(name=N_CHARACTERS_NAME, datatype="INT64", dims=(n,), value_range=(0, length)),
            TensorSpec(name=POSITIONS_NAME, datatype="INT64", dims=(n, length, 2), value_range=(-1, self.image.width_px)),
            TensorSpec(name=POSTERIORS_NAME, datatype="FP32", dims=(n,), value_range=(0, 1)),
            TensorSpec(name=CONFIDENCE_NAME, datatype="FP32", dims=(1,), value_range=(0, 1)),
        )
