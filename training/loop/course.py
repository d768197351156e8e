"""Where a run stands: all that changes from step to step, what a step and an epoch do to it, and how it goes on later."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convoy.training.data.augmentation import Augment
from convoy.training.data.dataset import Dataset
from convoy.training.loop.averaging import Average
from convoy.training.loop.batches import Batch, Batches
from convoy.training.loop.compilation import set_up
from convoy.training.loop.evaluation import Score, evaluate_split, evaluation_batch_size
from convoy.training.loop.feeding import Feeder
from convoy.training.loop.hardware import Hardware
from convoy.training.loop.listener import EpochRecord
from convoy.training.loop.objective import count_wrong, objective
from convoy.training.loop.optimization import make_optimizer, set_learning_rate
from convoy.training.loop.sampling import Share, draw_order, slices
from convoy.training.loop.schedule import Plateau, learning_rate_at
from convoy.training.networks.classifier import ImageClassifier
from convoy.training.recipes.recipe import Recipe
from convoy.training.transfer import Plan

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_IMAGES_FOR_BATCH_NORMS = 10_000


class Course:
    """One run, step by step. ``state_dict`` between any two steps holds all that the rest of it depends on.

    Attributes:
        history: A record an epoch that is done.
        best_epoch: The best of them, from 1; 0 before there is one.
        best_score: Its score on the validation split.
        best_weights: The weights that had it.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        dataset: Dataset,
        recipe: Recipe,
        *,
        generator: torch.Generator,
        fabric: Fabric,
        hardware: Hardware,
    ) -> None:
        self.history: list[EpochRecord] = []
        self.best_epoch, self.best_score, self.best_weights = 0, Score(math.inf, math.inf), _copy_weights(classifier)
        self._classifier = classifier
        self._recipe = recipe
        self._generator = generator
        self._fabric = fabric
        self._share = Share(fabric.global_rank, fabric.world_size)
        self._train, self._validation = Feeder(dataset.train, fabric.device), Feeder(dataset.validation, fabric.device)
        self._batches = Batches(
            self._train,
            Augment(recipe.augmentation, generator),
            n_classes=len(dataset.labels),
            generator=generator,
            share=self._share,
        )
        self._parts = slices(self.n_images, recipe.batch_size)
        self._plan = Plan(classifier, recipe)
        self._optimizer = make_optimizer(classifier, recipe, self._plan.factor)
        self._plateau = Plateau(recipe.schedule_epochs)
        self._average = Average(classifier, recipe)
        self._network, self._stepper = set_up(
            fabric, classifier, self._optimizer, hardware=hardware, n_steps=recipe.epochs * len(self._parts), batch=self._zeros()
        )
        # of the epoch that is going on
        self._n_steps_done = 0
        self._order_state: Tensor | None = None
        self._loss_sum = torch.zeros((), device=fabric.device)
        self._n_wrong = torch.zeros((), dtype=torch.int64, device=fabric.device)
        self._learning_rate = recipe.learning_rate
        self._seconds = 0.0

    @property
    def n_images(self) -> int:
        """Images in an epoch."""
        return len(self._train)

    @property
    def n_images_seen(self) -> int:
        """Images in all steps so far."""
        begun = self._parts[self._n_steps_done - 1].stop if self._n_steps_done else 0
        return len(self.history) * self.n_images + begun

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left, or none was better for too long."""
        n_done = len(self.history)
        return n_done >= self._recipe.epochs or n_done - self.best_epoch >= self._recipe.patience_epochs

    def steps(self) -> Generator[int, None, None]:
        """Do the steps of an epoch that are left, and yield after each how many images it had.

        Close the iterator where it is not used up.
        """
        started = time.perf_counter() - self._seconds
        self._plan.begin_epoch(len(self.history) + 1)
        with closing(self._batches(self._draw_order(), self._parts[self._n_steps_done :])) as batches:
            for batch in batches:
                self._step(batch)
                self._seconds = time.perf_counter() - started
                yield batch.n_step

    def end_epoch(self) -> tuple[EpochRecord, bool]:
        """Validate; returns the epoch's record and whether it is the best so far."""
        started = time.perf_counter() - self._seconds
        epoch = len(self.history) + 1
        loss, n_wrong = self._loss_sum.item(), self._n_wrong.item()
        with closing(self._images_for_batch_norms()) as images:
            candidate = self._average.end_epoch(epoch, images)
        with self._fabric.autocast():
            score = evaluate_split(candidate, self._validation, self._fabric.device, share=self._share, add_up=self._add_up)
        self._plateau.end_epoch(score.loss)
        record = EpochRecord(
            epoch=epoch,
            train_loss=loss / self.n_images,
            train_top1_error=n_wrong / self.n_images,
            validation_loss=score.loss,
            validation_top1_error=score.top1_error,
            learning_rate=self._learning_rate,
            seconds=time.perf_counter() - started,
        )
        self.history.append(record)
        is_best = (score.top1_error, score.loss) < (self.best_score.top1_error, self.best_score.loss)
        if is_best:
            self.best_epoch, self.best_score, self.best_weights = epoch, score, _copy_weights(candidate)
        self._n_steps_done, self._order_state, self._seconds = 0, None, 0.0
        self._loss_sum.zero_()
        self._n_wrong.zero_()
        return record, is_best

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from: tensors, numbers, strings, and lists and dicts of them."""
        return {
            "weights": self._classifier.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.state_dict(),
            "plateau": self._plateau.state_dict(),
            "history": [record.model_dump(mode="json") for record in self.history],
            "best_epoch": self.best_epoch,
            "best_score": [self.best_score.loss, self.best_score.top1_error],
            "best_weights": self.best_weights,
            "n_steps_done": self._n_steps_done,
            "order_state": self._order_state,
            "loss_sum": self._loss_sum,
            "n_wrong": self._n_wrong,
            "learning_rate": self._learning_rate,
            "seconds": self._seconds,
            "generator": self._generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self._fabric.device) if self._fabric.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another stood."""
        device = self._fabric.device
        self._classifier.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._average.load_state_dict(state["average"])
        self._plateau.load_state_dict(state["plateau"])
        self.history = [EpochRecord.model_validate(record) for record in state["history"]]
        self.best_epoch, self.best_score = state["best_epoch"], Score(*state["best_score"])
        self.best_weights = {name: tensor.to(device) for name, tensor in state["best_weights"].items()}
        self._n_steps_done, self._order_state = state["n_steps_done"], state["order_state"]
        self._loss_sum.copy_(state["loss_sum"])
        self._n_wrong.copy_(state["n_wrong"])
        self._learning_rate, self._seconds = state["learning_rate"], state["seconds"]
        self._generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], device)

    def _step(self, batch: Batch) -> None:
        recipe, n_ranks = self._recipe, self._share.n_ranks
        n_steps = recipe.epochs * len(self._parts)
        step = len(self.history) * len(self._parts) + self._n_steps_done
        self._learning_rate = learning_rate_at(step, n_steps, recipe, n_falls=self._plateau.n_falls)
        set_learning_rate(self._optimizer, self._learning_rate)
        if n_ranks > 1:  # dropout differs between processes, and goes on alike when the run does
            torch.manual_seed(hash((self._generator.initial_seed(), step, self._share.rank)))
        loss, logits = objective(self._network(batch.images), batch.targets, label_smoothing=recipe.label_smoothing)
        self._optimizer.zero_grad()
        # the processes' gradients are averaged, though their shares may differ in size
        self._fabric.backward(loss if n_ranks == 1 else loss * (batch.n_images * n_ranks / batch.n_step))
        self._stepper.step()
        self._average.end_step(step)
        # sums stay on the device: reading them each step would make a GPU wait
        loss_sum, n_wrong = loss.detach() * batch.n_images, count_wrong(logits, batch.targets) * min(batch.n_images, 1)
        if n_ranks > 1:  # now, not when the epoch ends: so a checkpoint of one process holds the sums of all
            both = self._add_up(torch.stack([loss_sum.double(), n_wrong.double()]))
            loss_sum, n_wrong = both[0], both[1].long()
        self._loss_sum += loss_sum
        self._n_wrong += n_wrong
        self._n_steps_done += 1

    def _draw_order(self) -> Tensor:
        """The order of the epoch: drawn where it begins, drawn again from the same state where it goes on."""
        now = self._generator.get_state()
        if self._order_state is not None:
            self._generator.set_state(self._order_state)
        else:
            self._order_state = now
        order = draw_order(self._train.labels, self._recipe.sampling, self._generator)
        if self._n_steps_done:
            self._generator.set_state(now)
        return order

    def _images_for_batch_norms(self) -> Generator[Tensor, None, None]:
        order = torch.randperm(self.n_images, generator=torch.Generator().manual_seed(0))[:_IMAGES_FOR_BATCH_NORMS]
        with closing(self._train.batches(order, slices(len(order), evaluation_batch_size(self._train.dims)))) as batches:
            for images, _ in batches:
                yield images

    def _add_up(self, sums: Tensor) -> Tensor:
        if self._share.n_ranks == 1:
            return sums
        total = self._fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _zeros(self) -> Tensor:
        """A batch without content: what the network is compiled on."""
        n = self._share.of(slice(0, min(self._recipe.batch_size, self.n_images))).stop
        return torch.zeros((max(n, 1), *self._train.dims), dtype=torch.uint8, device=self._fabric.device)


def _copy_weights(classifier: ImageClassifier) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in classifier.state_dict().items()}
