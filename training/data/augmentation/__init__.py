"""Random distortions of training batches: batched tensor operations, drawn anew for every image each time."""

from __future__ import annotations

from convoy.training.data.augmentation.augment import Augment as Augment
from convoy.training.data.augmentation.draws import Draws as Draws
from convoy.training.data.augmentation.flips import flip_warning as flip_warning
