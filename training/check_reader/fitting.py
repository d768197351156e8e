"""Train a reader: on synthetic fields first, then on real ones where there are any."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import closing

import torch

from convoy.contract.errors import TrainingError
from convoy.training.check_reader.examples import Example
from convoy.training.check_reader.reader import AmountReader
from convoy.training.check_reader.reader_course import ReaderCourse, ReaderEpoch
from convoy.training.loop.checkpoint import Checkpoints
from convoy.training.loop.hardware import exact_products
from convoy.training.loop.interrupt import Interrupt, deferred_interrupt
from convoy.training.recipes.reader import ReaderRecipe

_log = logging.getLogger(__name__)

OnEpoch = Callable[[ReaderEpoch], None]
OnStep = Callable[[int, int], None]


def fit_reader(
    reader: AmountReader,
    recipe: ReaderRecipe,
    synthetic: Sequence[Example],
    real: Sequence[Example],
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
    on_step: OnStep = lambda _, __: None,
    on_epoch: OnEpoch = lambda _: None,
) -> tuple[ReaderEpoch, ...]:
    """Train ``reader`` in place; it is left in evaluation mode, with the average of its weights where the recipe asks for one.

    With ``checkpoints`` the run goes on where an earlier one was stopped, and reaches the same weights; the first Ctrl-C then waits
    for the end of the step and leaves a checkpoint.

    Args:
        reader: On the device where the work shall run. Its network has random weights, or those of another training.
        recipe: How.
        synthetic: Synthetic fields.
        real: Real ones; may be none.
        seed: Of orders and distortions.
        checkpoints: Where it leaves what it goes on from; begun already.
        on_step: Told how many fields all steps so far have seen, and how many there are to see.
        on_epoch: Told what an epoch brought.

    Raises:
        TrainingError: The loss is not finite any more, or no checkpoint can be written.
        KeyboardInterrupt: Somebody asked for the end.
    """
    reader.network.to(memory_format=torch.channels_last)
    with exact_products(), deferred_interrupt(on=checkpoints is not None) as interrupt:
        course = ReaderCourse(reader, recipe, synthetic, real, seed=seed)
        if checkpoints is not None and (state := checkpoints.load()) is not None:
            course.load_state_dict(state)
        while not course.is_over:
            with closing(course.steps()) as steps:
                for _ in steps:
                    on_step(course.n_seen, course.n_all)
                    _keep(course, checkpoints, interrupt)
            record = course.end_epoch()
            if not math.isfinite(record.loss):
                raise TrainingError(
                    f"{record.phase} fields, epoch {record.epoch}: expected a finite loss, found {record.loss}. "
                    f"Try a smaller learning rate, such as --set learning_rate={recipe.learning_rate / 10:g}."
                )
            _log.info("%s fields, epoch %d: loss %.4f, %.1f s", record.phase, record.epoch, record.loss, record.seconds)
            on_epoch(record)
            _keep(course, checkpoints, interrupt)
    reader.network.to(memory_format=torch.contiguous_format)
    reader.eval()
    return tuple(course.history)


def _keep(course: ReaderCourse, checkpoints: Checkpoints | None, interrupt: Interrupt) -> None:
    """Between two steps: leave a checkpoint where one is due, and end where that is asked for."""
    if checkpoints is not None and (interrupt.requested or checkpoints.is_due()):
        checkpoints.save(course.state_dict())
    if interrupt.requested:
        raise KeyboardInterrupt
