"""The training loop: hardware, seeds, batches, schedules, averages, early stopping, checkpoints, evaluation."""

from __future__ import annotations

from convoy.training.loop.checkpoint import Checkpoints as Checkpoints
from convoy.training.loop.evaluation import Score as Score
from convoy.training.loop.evaluation import evaluate as evaluate
from convoy.training.loop.fit import Fit as Fit
from convoy.training.loop.fit import fit as fit
from convoy.training.loop.hardware import Hardware as Hardware
from convoy.training.loop.hardware import choose_device as choose_device
from convoy.training.loop.listener import EpochRecord as EpochRecord
from convoy.training.loop.listener import Listener as Listener
from convoy.training.loop.listener import Listeners as Listeners
from convoy.training.loop.seeding import seeded as seeded
