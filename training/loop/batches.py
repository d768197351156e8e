"""The batches that the steps of an epoch compute on: distorted, blended, and of several processes each its share."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.training.data.augmentation import Augment
from convoy.training.data.mixup import mix
from convoy.training.loop.feeding import Feeder
from convoy.training.loop.sampling import Share


@dataclass(frozen=True)
class Batch:
    """What one process computes in one step.

    Attributes:
        images: uint8 (n, H, W, C).
        targets: Labels, int64 (n,), or shares of classes, float (n, classes).
        n_images: How many images count here; 0 where the step has fewer images than there are processes: then one image comes
            along all the same, so that all processes step together.
        n_step: How many images the step has in all processes.
    """

    images: Tensor
    targets: Tensor
    n_images: int
    n_step: int


class Batches:
    """Draws and makes batches, the same ones however many processes share them.

    All draws are for a step's whole batch, from one generator that stands alike in all processes, and each process takes its
    share of them: the same images are distorted alike with one process and with several. Blending needs both images of a
    pair, which may lie in two shares: with it each process makes the whole batch and then takes its share.
    """

    def __init__(
        self,
        feeder: Feeder,
        augment: Augment,
        *,
        n_classes: int,
        generator: torch.Generator,
        share: Share = Share(),  # noqa: B008
    ) -> None:
        self._feeder = feeder
        self._augment = augment
        self._n_classes = n_classes
        self._generator = generator
        self._share = share

    def __call__(self, order: Tensor, steps: Sequence[slice]) -> Generator[Batch, None, None]:
        """The batches of some steps; close the iterator where it is not used up.

        Args:
            order: All images of the epoch, as ``draw_order`` gives them.
            steps: Of each step, which places in ``order`` it sees.
        """
        alpha = self._augment.amounts.mixup_alpha
        mine = [_at_least_one(self._share.of(step)) for step in steps]
        with closing(self._feeder.batches(order, steps if alpha else mine)) as fed:
            for step, part, (images, labels) in zip(steps, mine, fed, strict=True):
                n_step = step.stop - step.start
                within = slice(part.start - step.start, part.stop - step.start)
                n_images = n_step if self._share.n_ranks == 1 else _length(self._share.of(step))
                if alpha:
                    blended, shares = mix(
                        self._augment(images), labels, n_classes=self._n_classes, alpha=alpha, generator=self._generator
                    )
                    yield Batch(blended[within], shares[within], n_images, n_step)
                else:
                    yield Batch(self._distort(images, n_step, within), labels, n_images, n_step)

    def _distort(self, images: Tensor, n_step: int, within: slice) -> Tensor:
        if self._share.n_ranks == 1 or self._augment.amounts.is_off:
            return self._augment(images)
        height_px, width_px = images.shape[1:3]
        return self._augment.apply(images, self._augment.draw(n_step, height_px=height_px, width_px=width_px)[within])


def _at_least_one(part: slice) -> slice:
    """An empty part becomes the image before it: parts are empty only behind others that are not."""
    return part if _length(part) else slice(part.start - 1, part.stop)


def _length(part: slice) -> int:
    return int(part.stop - part.start)
