"""The random numbers that distort a batch, apart from the images that they distort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """What was drawn for each of N images; None where a distortion is off.

    Processes that share a batch all draw for the whole of it, so that their generators stay in step, and each applies its part:
    ``augment.apply(images[part], draws[part])``.

    Attributes:
        affine: (N, 6) from -1 to 1: rotation, slant, scale along x and y, shift along x and y.
        fade: (N, 2) from 0 to 1: how much of the range is lost, the level towards which it shrinks.
        padded_crop: (N, 2) whole pixels along x and y.
        resized_crop: (N, 4): share of the area and logarithm of the aspect, from 0 to 1 and -1 to 1; place along x and y.
        flip: (N, 1), 1 where the image is mirrored and 0 where not.
        elastic: int8 (N, 2, w, h): noise at the nodes of a coarse grid, of displacements along x and y.
        colour: (N, 3) from -1 to 1: brightness, saturation, hue.
        operations: (N, operations, 2): the index of an operation of RandAugment, and its sign.
    """

    affine: Tensor | None = None
    fade: Tensor | None = None
    padded_crop: Tensor | None = None
    resized_crop: Tensor | None = None
    flip: Tensor | None = None
    elastic: Tensor | None = None
    colour: Tensor | None = None
    operations: Tensor | None = None

    def __getitem__(self, which: slice | Tensor) -> Draws:
        """Those of some of the images: a slice or an index tensor."""
        return self._each(lambda values: values[which])

    def pin_memory(self) -> Draws:
        """The same in memory from which a GPU copies while the CPU goes on."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Draws:
        drawn = {field.name: getattr(self, field.name) for field in fields(self)}
        return Draws(**{name: change(values) for name, values in drawn.items() if values is not None})


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """float32 from -1 to 1."""
    return 2 * torch.rand(shape, generator=generator) - 1
