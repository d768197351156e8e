"""Fit a classifier to the training split; keep the weights of the best epoch."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from convoy.contract.errors import TrainingError
from convoy.training.data.augmentation import Augment
from convoy.training.data.dataset import Dataset, Split
from convoy.training.loop.evaluation import Score, evaluate
from convoy.training.loop.listener import EpochRecord, Listener
from convoy.training.loop.optimization import learning_rate_at, make_optimizer
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
    listener: Listener | None = None,
) -> Fit:
    """Train ``classifier`` in place.

    Each epoch goes through the training split once in a new order, in mini-batches taken by index from one tensor in memory.
    The best epoch has the lowest validation error, among equals the lowest validation loss, among equals the first; training
    stops ``recipe.patience_epochs`` after it, and the classifier is left with its weights, in evaluation mode.

    Args:
        classifier: On the device where the work shall run.
        dataset: Where the training and validation splits come from.
        recipe: How.
        generator: Draws orders and distortions; on the CPU.
        listener: Is told how it goes.

    Raises:
        TrainingError: The loss is not finite any more.
    """
    listener = listener or Listener()
    device = next(classifier.parameters()).device
    images, labels = _to_tensors(dataset.train, device)
    validation_images, validation_labels = _to_tensors(dataset.validation, device)
    augment = Augment(recipe.augmentation, generator)
    optimizer = make_optimizer(classifier, recipe)
    steps_per_epoch = math.ceil(len(labels) / recipe.batch_size)
    n_steps = recipe.epochs * steps_per_epoch

    history: list[EpochRecord] = []
    best_epoch, best_score, best_weights = 0, Score(math.inf, math.inf), _copy_weights(classifier)
    listener.on_start(epochs=recipe.epochs, images_per_epoch=len(labels))
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        started = time.perf_counter()
        classifier.train()
        loss_sum = torch.zeros((), device=device)
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        learning_rate = recipe.learning_rate
        order = torch.randperm(len(labels), generator=generator).to(device)
        for start in range(0, len(labels), recipe.batch_size):
            indices = order[start : start + recipe.batch_size]
            learning_rate = learning_rate_at(step, n_steps, recipe)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            targets = labels[indices]
            logits = classifier(augment(images[indices]))
            loss = functional.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            # sums stay on the device: reading them each step would make a GPU wait
            loss_sum += loss.detach() * len(indices)
            wrong += (logits.detach().argmax(dim=1) != targets).sum()
            step += 1
            listener.on_step(n_images=len(indices))
        train = Score(loss_sum.item() / len(labels), wrong.item() / len(labels))
        score = evaluate(classifier, validation_images, validation_labels)
        if not (math.isfinite(train.loss) and math.isfinite(score.loss)):
            raise TrainingError(
                f"epoch {epoch}: expected a finite loss, found {train.loss} in training and {score.loss} in validation. "
                f"Try a smaller learning rate, such as --set learning_rate={recipe.learning_rate / 10:g}."
            )
        record = EpochRecord(
            epoch=epoch,
            train_loss=train.loss,
            train_top1_error=train.top1_error,
            validation_loss=score.loss,
            validation_top1_error=score.top1_error,
            learning_rate=learning_rate,
            seconds=time.perf_counter() - started,
        )
        history.append(record)
        is_best = (score.top1_error, score.loss) < (best_score.top1_error, best_score.loss)
        if is_best:
            best_epoch, best_score, best_weights = epoch, score, _copy_weights(classifier)
        _log.info(
            "epoch %d: loss %.4f, validation loss %.4f, validation error %.2f %%%s",
            *(epoch, train.loss, score.loss, 100 * score.top1_error, ", the best so far" if is_best else ""),
        )
        listener.on_epoch(record, is_best=is_best)
        if epoch - best_epoch >= recipe.patience_epochs:
            break
    classifier.load_state_dict(best_weights)
    classifier.eval()
    return Fit(tuple(history), best_epoch, best_score)


def _to_tensors(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(split.images[:]).to(device), torch.from_numpy(split.labels).to(device)


def _copy_weights(classifier: ImageClassifier) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in classifier.state_dict().items()}
