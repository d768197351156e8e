"""What the loop tells while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from convoy.training.transfer import TakeOver


class EpochRecord(BaseModel):
    """What an epoch brought. Errors are fractions in [0, 1].

    Attributes:
        epoch: Its number, from 1.
        train_loss: Mean over the epoch's batches, augmented, while the weights moved: above what the final weights would give.
        train_top1_error: Likewise.
        validation_loss: On the validation split, after the epoch.
        validation_top1_error: Likewise.
        learning_rate: At the epoch's last step.
        seconds: What the epoch took, evaluation included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    train_loss: float
    train_top1_error: float
    validation_loss: float
    validation_top1_error: float
    learning_rate: float
    seconds: float


class Listener:
    """Is told how training goes; does nothing by itself. Override what you want to hear."""

    def on_take_over(self, report: TakeOver) -> None:
        """Weights from other data are taken over; told before training starts."""

    def on_start(self, *, epochs: int, images_per_epoch: int) -> None:
        """Training starts."""

    def on_resume(self, *, epochs_done: int, n_images: int) -> None:
        """It goes on where another run was stopped: after so many epochs and so many images, told after ``on_start``."""

    def on_step(self, *, n_images: int) -> None:
        """A step on ``n_images`` images is done."""

    def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
        """An epoch is done."""


class Listeners(Listener):
    """Several listeners as one; they are told in their order."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def on_take_over(self, report: TakeOver) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.on_take_over(report)

    def on_start(self, *, epochs: int, images_per_epoch: int) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.on_start(epochs=epochs, images_per_epoch=images_per_epoch)

    def on_resume(self, *, epochs_done: int, n_images: int) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.on_resume(epochs_done=epochs_done, n_images=n_images)

    def on_step(self, *, n_images: int) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.on_step(n_images=n_images)

    def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.on_epoch(record, is_best=is_best)
