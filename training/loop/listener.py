"""What the loop tells while it runs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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

    def on_start(self, *, epochs: int, images_per_epoch: int) -> None:
        """Training starts."""

    def on_step(self, *, n_images: int) -> None:
        """A step on ``n_images`` images is done."""

    def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
        """An epoch is done."""
