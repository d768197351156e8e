"""The training loop: seeds, the device, the schedule, early stopping, evaluation."""

from __future__ import annotations

from convoy.training.loop.device import choose_device as choose_device
from convoy.training.loop.evaluation import Score as Score
from convoy.training.loop.evaluation import evaluate as evaluate
from convoy.training.loop.fit import Fit as Fit
from convoy.training.loop.fit import fit as fit
from convoy.training.loop.listener import EpochRecord as EpochRecord
from convoy.training.loop.listener import Listener as Listener
from convoy.training.loop.seeding import seeded as seeded
