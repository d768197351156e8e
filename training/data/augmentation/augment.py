"""The distortions of a recipe, drawn and applied."""

from __future__ import annotations

import torch
from torch import Tensor

from convoy.training.data.augmentation import colour, geometry, randaugment
from convoy.training.data.augmentation.draws import Draws, uniform
from convoy.training.recipes.recipe import Augmentation


class Augment:
    """Move, bend, crop, mirror, fade and colour each image of a batch by random amounts.

    What moves in from outside has the colour of the image's own background: the median of its border. All draws come from
    one generator on the CPU, so that the same seed distorts alike on every device. Everything that moves pixels is one
    resampling; RandAugment's operations follow one after another, as they are defined on 8-bit images.
    """

    def __init__(self, amounts: Augmentation, generator: torch.Generator) -> None:
        self.amounts = amounts
        self.generator = generator
        self.is_off = amounts.model_copy(update={"mixup_alpha": 0.0}).is_off  # labels are blended elsewhere

    def __call__(self, images: Tensor) -> Tensor:
        """Distort a batch.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            uint8 of the same shape; ``images`` itself where nothing is to be distorted.
        """
        if self.is_off:
            return images
        _, height, width, _ = images.shape
        return self.apply(images, self.draw(len(images), height_px=height, width_px=width))

    def draw(self, n: int, *, height_px: int, width_px: int) -> Draws:
        """Draw for ``n`` images.

        The order is fixed, and what is off draws nothing: a recipe that leaves the later distortions off draws as it did
        before there were any.
        """
        amounts, generator = self.amounts, self.generator
        return Draws(
            affine=uniform(generator, 6, n).T if geometry.is_affine(amounts) else None,
            fade=torch.rand(2, n, generator=generator).T if amounts.contrast_fraction else None,
            padded_crop=geometry.draw_padded_crop(amounts, n, generator) if amounts.crop_px else None,
            resized_crop=torch.rand(n, 4, generator=generator) if amounts.crop_area_fraction < 1 else None,
            flip=torch.rand(n, 1, generator=generator) < amounts.flip_probability if amounts.flip_probability else None,
            elastic=geometry.draw_elastic(amounts, n, height_px, width_px, generator) if amounts.elastic_px else None,
            colour=uniform(generator, n, 3) if colour.is_on(amounts) else None,
            operations=randaugment.draw(amounts, n, generator) if amounts.randaugment_operations else None,
        )

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Distort a batch by what was drawn for it.

        Args:
            images: uint8 (N, H, W, C).
            draws: For N images of this size.

        Returns:
            uint8 of the same shape.
        """
        pixels = images.permute(0, 3, 1, 2)  # (N, C, H, W)
        pixels = colour.recolour(geometry.move(pixels, self.amounts, draws), self.amounts, draws)
        if pixels.is_floating_point():
            pixels = pixels.round_().clamp_(0, 255).to(torch.uint8)
        pixels = randaugment.operate(pixels, self.amounts, draws)
        return pixels.permute(0, 2, 3, 1)
