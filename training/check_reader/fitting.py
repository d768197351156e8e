"""Train a reader: on synthetic fields first, then on real ones where there are any."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from convoy.contract.errors import TrainingError
from convoy.training.check_reader.criterion import losses
from convoy.training.check_reader.distorting import distort
from convoy.training.check_reader.examples import Batch, Example, shuffled
from convoy.training.check_reader.reader import AmountReader
from convoy.training.recipes.reader import NO_DISTORTION, ReaderRecipe

_log = logging.getLogger(__name__)
_MAX_NORM = 5.0


@dataclass(frozen=True)
class ReaderEpoch:
    """What an epoch brought.

    Attributes:
        phase: ``synthetic`` or ``real``.
        epoch: Its number in the phase, from 1.
        loss: Mean over the fields, distorted, while the weights moved.
        seconds: What it took.
    """

    phase: str
    epoch: int
    loss: float
    seconds: float


OnEpoch = Callable[[ReaderEpoch], None]
OnStep = Callable[[int], None]


def fit_reader(
    reader: AmountReader,
    recipe: ReaderRecipe,
    synthetic: Sequence[Example],
    real: Sequence[Example],
    *,
    seed: int,
    on_step: OnStep = lambda _: None,
    on_epoch: OnEpoch = lambda _: None,
) -> tuple[ReaderEpoch, ...]:
    """Train ``reader`` in place; it is left in evaluation mode, with the average of its weights where the recipe asks for one.

    Args:
        reader: Its network has random weights, or those of another training.
        recipe: How.
        synthetic: Synthetic fields.
        real: Real ones; may be none.
        seed: Of orders and distortions.
        on_step: Told how many fields a step saw.
        on_epoch: Told what an epoch brought.

    Raises:
        TrainingError: The loss is not finite any more.
    """
    reader.network.to(memory_format=torch.channels_last)
    orders = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    history: list[ReaderEpoch] = []
    phases = [
        ("synthetic", recipe.epochs, recipe.learning_rate),
        ("real", recipe.real_epochs if real else 0, recipe.real_learning_rate),
    ]
    for phase, epochs, rate in phases:
        if not epochs:
            continue
        criterion = recipe.criterion if phase == "synthetic" or recipe.criterion != "frames" else "forward"
        course = _Course(reader, recipe, rate, epochs * _n_steps(phase, recipe, synthetic, real))
        for epoch in range(1, epochs + 1):
            began, total, n = time.perf_counter(), 0.0, 0
            for batch in _batches(phase, recipe, synthetic, real, orders):
                amounts = NO_DISTORTION if criterion == "frames" else recipe.distortion
                image, width = (
                    (batch.image, batch.width)
                    if amounts == NO_DISTORTION
                    else distort(batch.image, batch.width, amounts, generator)
                )
                scores, lengths = reader.scores(image, width)
                loss = losses(criterion, scores, lengths, batch.examples, reader.lattice)
                total, n = total + float(loss.detach().sum()), n + len(loss)
                course.step(loss.mean())
                on_step(len(loss))
            record = ReaderEpoch(phase, epoch, total / n, time.perf_counter() - began)
            if not math.isfinite(record.loss):
                raise TrainingError(
                    f"{phase} fields, epoch {epoch}: expected a finite loss, found {record.loss}. "
                    f"Try a smaller learning rate, such as --set learning_rate={recipe.learning_rate / 10:g}."
                )
            history.append(record)
            _log.info("%s fields, epoch %d: loss %.4f, %.1f s", record.phase, record.epoch, record.loss, record.seconds)
            on_epoch(record)
        course.finish()
    reader.network.to(memory_format=torch.contiguous_format)
    reader.eval()
    return tuple(history)


def _n_steps(phase: str, recipe: ReaderRecipe, synthetic: Sequence[Example], real: Sequence[Example]) -> int:
    n = len(synthetic) if phase == "synthetic" else len(real) + _n_among(recipe, synthetic, real)
    some = 16 * recipe.batch_size
    return n // some * 16 + -(-(n % some) // recipe.batch_size)


def _n_among(recipe: ReaderRecipe, synthetic: Sequence[Example], real: Sequence[Example]) -> int:
    """How many synthetic fields are seen among the real ones of an epoch."""
    return min(round(len(real) * recipe.synthetic_share / (1 - recipe.synthetic_share)), len(synthetic))


def _batches(
    phase: str, recipe: ReaderRecipe, synthetic: Sequence[Example], real: Sequence[Example], orders: np.random.Generator
) -> Iterator[Batch]:
    if phase == "synthetic":
        return shuffled(synthetic, recipe.batch_size, orders)
    among = orders.permutation(len(synthetic))[: _n_among(recipe, synthetic, real)].tolist()
    return shuffled([*real, *(synthetic[place] for place in among)], recipe.batch_size, orders)


class _Course:
    """One phase's optimizer, learning rate and average of the weights."""

    def __init__(self, reader: AmountReader, recipe: ReaderRecipe, rate: float, n_steps: int) -> None:
        self._reader, self._decay = reader, recipe.averaging_decay
        matrices = [parameter for parameter in reader.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in reader.parameters() if parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))
        warmup = max(1, round(recipe.warmup_fraction * n_steps))

        def at(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return (1 + math.cos(math.pi * (step - warmup) / max(n_steps - warmup, 1))) / 2

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, at)
        self._mean: nn.Module | None = copy.deepcopy(reader.network).requires_grad_(False) if self._decay else None
        self._n = 0
        reader.train()

    def step(self, loss: torch.Tensor) -> None:
        """Move the weights."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch has no types here
        nn.utils.clip_grad_norm_(self._reader.parameters(), _MAX_NORM)
        self._optimizer.step()
        self._schedule.step()
        if self._mean is not None:
            decay = min(self._decay, (1 + self._n) / (10 + self._n))
            with torch.no_grad():
                for mean, now in zip(self._mean.state_dict().values(), self._reader.network.state_dict().values(), strict=True):
                    if mean.is_floating_point():
                        mean.lerp_(now, 1 - decay)
                    else:
                        mean.copy_(now)
        self._n += 1

    def finish(self) -> None:
        """Leave the averaged weights."""
        if self._mean is not None:
            self._reader.network.load_state_dict(self._mean.state_dict())
