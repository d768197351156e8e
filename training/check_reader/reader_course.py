"""The course of a reader's training: phases, epochs and steps, and everything that it takes to go on from between two steps."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from convoy.training.check_reader.criterion import losses
from convoy.training.check_reader.distorting import distort
from convoy.training.check_reader.examples import Batch, Example, shuffled
from convoy.training.check_reader.reader import AmountReader
from convoy.training.check_reader.splicing import Splicer, locate
from convoy.training.recipes.reader import NO_DISTORTION, ReaderRecipe

_MAX_NORM: Final = 5.0


@dataclass(frozen=True)
class ReaderEpoch:
    """What an epoch brought.

    Attributes:
        phase: ``synthetic`` or ``real``.
        epoch: Its number in the phase, from 1.
        loss: Mean over the fields, distorted, while the weights moved.
        seconds: What it took.
    """

    phase: Literal["synthetic", "real"]
    epoch: int
    loss: float
    seconds: float


class _Phase(NamedTuple):
    name: Literal["synthetic", "real"]
    epochs: int
    learning_rate: float


class ReaderCourse:
    """A reader's training, step by step. Its state may be taken between any two steps.

    Args:
        reader: On the device where the work shall run; in training mode from now on.
        recipe: How.
        synthetic: Synthetic fields.
        real: Real ones; may be none.
        seed: Of orders and distortions.
    """

    def __init__(
        self, reader: AmountReader, recipe: ReaderRecipe, synthetic: Sequence[Example], real: Sequence[Example], *, seed: int
    ) -> None:
        self._reader, self._recipe, self._synthetic, self._real = reader, recipe, synthetic, real
        self._device = reader.device
        self._orders = np.random.default_rng(seed)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        phases = (
            _Phase("synthetic", recipe.epochs, recipe.learning_rate),
            _Phase("real", recipe.real_epochs if real else 0, recipe.real_learning_rate),
        )
        self._phases = [phase for phase in phases if phase.epochs]
        self.history: list[ReaderEpoch] = []
        self._order_state: dict[str, Any] | None = None  # of the generator of orders at the beginning of this epoch
        self._n_batches = 0  # that this epoch has seen
        self._total, self._n, self._seconds = 0.0, 0, 0.0
        self._ascent: _Ascent | None = None
        self._splicer: Splicer | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.history) == sum(phase.epochs for phase in self._phases)

    @property
    def n_seen(self) -> int:
        """Fields that all steps so far have seen."""
        done = sum(self._n_fields(phase) * epochs for phase, epochs in self._done())
        return done + self._n

    @property
    def n_all(self) -> int:
        """Fields that all steps together see."""
        return sum(self._n_fields(phase) * phase.epochs for phase in self._phases)

    def steps(self) -> Generator[int, None, None]:
        """Take the steps that are left of this epoch; gives how many fields each saw."""
        ascent = self._ascent or self._enter(splicer=None)
        if self._order_state is None:
            self._order_state = self._orders.bit_generator.state  # type: ignore[assignment] # numpy says Mapping
        self._orders.bit_generator.state = self._order_state  # type: ignore[assignment]
        n_before = self._n_batches
        for number, batch in enumerate(self._batches()):
            if number < n_before:  # the steps of before a stop
                continue
            began = time.perf_counter()
            loss = self._loss(batch)
            ascent.step(loss.mean())
            self._total, self._n, self._n_batches = self._total + float(loss.detach().sum()), self._n + len(loss), number + 1
            self._seconds += time.perf_counter() - began
            yield len(loss)

    def end_epoch(self) -> ReaderEpoch:
        """Note what the epoch brought; at the end of a phase the reader gets its averaged weights."""
        phase, epoch = self._now()
        record = ReaderEpoch(phase.name, epoch, self._total / self._n, self._seconds)
        self.history.append(record)
        self._order_state, self._n_batches, self._total, self._n, self._seconds = None, 0, 0.0, 0, 0.0
        if epoch == phase.epochs:
            assert self._ascent is not None
            self._ascent.finish()
            self._ascent = self._splicer = None
        return record

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from: tensors, numbers, strings, and lists and dicts of them."""
        cuda = self._device.type == "cuda"
        return {
            "weights": self._reader.network.state_dict(),
            "ascent": None if self._ascent is None else self._ascent.state_dict(),
            "splicer": None if self._splicer is None else self._splicer.to_list(),
            "history": [asdict(epoch) for epoch in self.history],
            "orders": self._orders.bit_generator.state,
            "order_state": self._order_state,
            "n_batches": self._n_batches,
            "sums": [self._total, self._n, self._seconds],
            "generator": self._generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self._device) if cuda else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another stood."""
        self.history = [ReaderEpoch(**epoch) for epoch in state["history"]]
        self._reader.network.load_state_dict(state["weights"])
        self._ascent = self._splicer = None
        if state["ascent"] is not None:
            located = state["splicer"]
            splicer = None if located is None else Splicer.from_list(self._reader.lattice.grammar, self._real, located)
            self._enter(splicer).load_state_dict(state["ascent"])
        self._orders.bit_generator.state = state["orders"]
        self._order_state, self._n_batches = state["order_state"], state["n_batches"]
        self._total, self._n, self._seconds = state["sums"]
        self._generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self._device)

    def _done(self) -> Iterator[tuple[_Phase, int]]:
        """The phases and how many epochs of each are done."""
        left = len(self.history)
        for phase in self._phases:
            yield phase, min(left, phase.epochs)
            left -= min(left, phase.epochs)

    def _now(self) -> tuple[_Phase, int]:
        """The phase, and the number of the epoch in it, from 1."""
        return next((phase, done + 1) for phase, done in self._done() if done < phase.epochs)

    def _enter(self, splicer: Splicer | None) -> _Ascent:
        """Begin the phase that comes now, or go on with it where its splicer is known."""
        phase, _ = self._now()
        ascent = _Ascent(self._reader, self._recipe, phase.learning_rate, phase.epochs * self._n_steps(phase))
        self._splicer = splicer
        if splicer is None and phase.name == "real" and self._recipe.splice_share:
            self._splicer = Splicer(self._reader.lattice.grammar, locate(self._reader, self._real))
        self._reader.train()
        self._ascent = ascent
        return ascent

    def _loss(self, batch: Batch) -> Tensor:
        recipe = self._recipe
        real = self._now()[0].name == "real"
        criterion = "forward" if real and recipe.criterion == "frames" else recipe.criterion  # nobody knows where characters stand
        image, width = batch.image.to(self._device), batch.width.to(self._device)
        if criterion != "frames" and recipe.distortion != NO_DISTORTION:
            image, width = distort(image, width, recipe.distortion, self._generator)
        scores, lengths = self._reader.scores(image, width)
        return losses(criterion, scores, lengths, batch.examples, self._reader.lattice)

    def _batches(self) -> Iterator[Batch]:
        """This epoch's, from its beginning; the same ones whenever the generator of orders stands where it stood."""
        if self._now()[0].name == "synthetic":
            return shuffled(self._synthetic, self._recipe.batch_size, self._orders)
        among = self._orders.permutation(len(self._synthetic))[: self._n_among].tolist()
        seen = list(self._real)
        if self._splicer is not None:
            for place in np.flatnonzero(self._orders.random(len(seen)) < self._recipe.splice_share).tolist():
                seen[place] = self._splicer.splice(place, self._orders)
        return shuffled([*seen, *(self._synthetic[place] for place in among)], self._recipe.batch_size, self._orders)

    @property
    def _n_among(self) -> int:
        """How many synthetic fields are seen among the real ones of an epoch."""
        share = self._recipe.synthetic_share
        return min(round(len(self._real) * share / (1 - share)), len(self._synthetic))

    def _n_fields(self, phase: _Phase) -> int:
        return len(self._synthetic) if phase.name == "synthetic" else len(self._real) + self._n_among

    def _n_steps(self, phase: _Phase) -> int:
        some = 16 * self._recipe.batch_size
        return self._n_fields(phase) // some * 16 + -(-(self._n_fields(phase) % some) // self._recipe.batch_size)


class _Ascent:
    """One phase's optimizer, learning rate and average of the weights."""

    def __init__(self, reader: AmountReader, recipe: ReaderRecipe, rate: float, n_steps: int) -> None:
        self._network, self._decay, self._rate, self._n_steps = reader.network, recipe.averaging_decay, rate, n_steps
        matrices = [parameter for parameter in reader.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in reader.parameters() if parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))
        self._warmup = max(1, round(recipe.warmup_fraction * n_steps))
        self._mean: nn.Module | None = copy.deepcopy(reader.network).requires_grad_(False) if self._decay else None
        self._n = 0

    def step(self, loss: Tensor) -> None:
        """Move the weights."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * self._factor()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch has no types here
        nn.utils.clip_grad_norm_(self._network.parameters(), _MAX_NORM)
        self._optimizer.step()
        if self._mean is not None:
            decay = min(self._decay, (1 + self._n) / (10 + self._n))
            with torch.no_grad():
                for mean, now in zip(self._mean.state_dict().values(), self._network.state_dict().values(), strict=True):
                    if mean.is_floating_point():
                        mean.lerp_(now, 1 - decay)
                    else:
                        mean.copy_(now)
        self._n += 1

    def finish(self) -> None:
        """Leave the averaged weights."""
        if self._mean is not None:
            self._network.load_state_dict(self._mean.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes."""
        mean = None if self._mean is None else self._mean.state_dict()
        return {"optimizer": self._optimizer.state_dict(), "mean": mean, "n": self._n}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another stood."""
        self._optimizer.load_state_dict(state["optimizer"])
        if self._mean is not None:
            self._mean.load_state_dict(state["mean"])
        self._n = state["n"]

    def _factor(self) -> float:
        """The learning rate over its largest: it rises in a line, then falls as a cosine."""
        if self._n < self._warmup:
            return (self._n + 1) / self._warmup
        return (1 + math.cos(math.pi * (self._n - self._warmup) / max(self._n_steps - self._warmup, 1))) / 2
