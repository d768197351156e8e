"""Fit a classifier to the training split; keep the weights of the best epoch."""

from __future__ import annotations

import logging
import math
import signal
from contextlib import closing
from dataclasses import dataclass

import torch

from convoy.contract.errors import TrainingError
from convoy.training.data.dataset import Dataset
from convoy.training.loop.checkpoint import Checkpoints
from convoy.training.loop.course import Course
from convoy.training.loop.evaluation import Score
from convoy.training.loop.hardware import Hardware, connect, exact_products
from convoy.training.loop.interrupt import Interrupt, deferred_interrupt
from convoy.training.loop.listener import EpochRecord, Listener
from convoy.training.networks.classifier import ImageClassifier
from convoy.training.recipes.recipe import Recipe

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """How training went.

    Attributes:
        history: A record an epoch.
        best_epoch: The epoch whose weights the classifier has now, from 1.
        validation: Its score on the validation split.
    """

    history: tuple[EpochRecord, ...]
    best_epoch: int
    validation: Score


def fit(
    classifier: ImageClassifier,
    dataset: Dataset,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    hardware: Hardware | None = None,
    listener: Listener | None = None,
    checkpoints: Checkpoints | None = None,
    stop_signal: signal.Signals = signal.SIGINT,
) -> Fit:
    """Train ``classifier`` in place, in this process.

    Each epoch goes through the training split once in a new order, in mini-batches. What is validated is the average of the
    weights where the recipe asks for one. The best epoch has the lowest validation error, among equals the lowest validation
    loss, among equals the first; training stops ``recipe.patience_epochs`` after it, and the classifier is left with its
    weights, in evaluation mode.

    With ``checkpoints`` the run goes on where an earlier one was stopped, and reaches the same weights; the first
    ``stop_signal`` then waits for the end of the step and leaves a checkpoint.

    Args:
        classifier: On the device where the work shall run.
        dataset: Where the training and validation splits come from.
        recipe: How.
        generator: Draws orders and distortions; on the CPU.
        hardware: What it runs on; None: the device of ``classifier``.
        listener: Is told how it goes.
        checkpoints: Where it leaves what it goes on from; begun already.
        stop_signal: What asks for the end: Ctrl-C.

    Raises:
        TrainingError: The loss is not finite any more, or no checkpoint can be written.
        KeyboardInterrupt: Somebody asked for the end.
    """
    listener = listener or Listener()
    hardware = hardware or Hardware(device=str(next(classifier.parameters()).device))
    fabric = connect(hardware, some_parameters_rest=recipe.transfer is not None)
    keeper = checkpoints if fabric.is_global_zero else None
    with exact_products(), deferred_interrupt(on=checkpoints is not None, signum=stop_signal) as interrupt:
        course = Course(classifier, dataset, recipe, generator=generator, fabric=fabric, hardware=hardware)
        listener.on_start(epochs=recipe.epochs, images_per_epoch=course.n_images)
        if checkpoints is not None and (state := checkpoints.load()) is not None:
            course.load_state_dict(state)
            listener.on_resume(epochs_done=len(course.history), n_images=course.n_images_seen)
        while not course.is_over:
            with closing(course.steps()) as steps:
                for n_images in steps:
                    listener.on_step(n_images=n_images)
                    _keep(course, keeper, interrupt)
            record, is_best = course.end_epoch()
            _check_finite(record, recipe)
            _log.info(
                "epoch %d: loss %.4f, validation loss %.4f, validation error %.2f %%%s",
                *(record.epoch, record.train_loss, record.validation_loss, 100 * record.validation_top1_error),
                ", the best so far" if is_best else "",
            )
            listener.on_epoch(record, is_best=is_best)
            _keep(course, keeper, interrupt)
        classifier.load_state_dict(course.best_weights)
    classifier.eval()
    return Fit(tuple(course.history), course.best_epoch, course.best_score)


def _keep(course: Course, keeper: Checkpoints | None, interrupt: Interrupt) -> None:
    """Between two steps: leave a checkpoint where one is due, and end where that is asked for."""
    if keeper is not None and (interrupt.requested or keeper.is_due()):
        keeper.save(course.state_dict())
    if interrupt.requested:
        raise KeyboardInterrupt


def _check_finite(record: EpochRecord, recipe: Recipe) -> None:
    if not (math.isfinite(record.train_loss) and math.isfinite(record.validation_loss)):
        raise TrainingError(
            f"epoch {record.epoch}: expected a finite loss, found {record.train_loss} in training and {record.validation_loss} in "
            f"validation. Try a smaller learning rate, such as --set learning_rate={recipe.learning_rate / 10:g}."
        )
