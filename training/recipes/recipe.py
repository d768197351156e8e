"""The frozen configuration of one training run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self


class _Part(BaseModel):
    # strict: "12" is no integer and True is no number; what `--set` reads is checked as JSON
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Normalisation(_Part):
    """What the graph does with the pixels before the network.

    Attributes:
        polarity: ``auto`` turns images whose border is light (ink on paper) into light strokes on dark, image by image.
        mean: One value a channel on the scale [0, 1]; None measures it on the training split.
        std: One value a channel on the scale [0, 1]; None measures it on the training split.
    """

    polarity: Literal["as-is", "auto"] = Field(
        default="as-is", description="auto: images with a light border (ink on paper) are inverted; as-is: none is"
    )
    mean: tuple[float, ...] | None = Field(
        default=None, description="subtracted from pixels in [0, 1], a value a channel; null: measured on the training split"
    )
    std: tuple[float, ...] | None = Field(
        default=None, description="then divided by, a value a channel; null: measured on the training split"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.mean is None) != (self.std is None) or (
            self.mean is not None and self.std is not None and len(self.mean) != len(self.std)
        ):
            raise ValueError("mean and std go together: give both, one value a channel each, or neither")
        if self.std is not None and min(self.std, default=0.0) <= 0:
            raise ValueError("std: each value must be above 0")
        return self


class Augmentation(_Part):
    """Random distortions of the training images, drawn anew for every image in every epoch; 0 switches one off.

    Attributes:
        shift_px: Each image moves by up to this many pixels along each axis.
        rotation_deg: It turns by up to this many degrees either way.
        scale_fraction: Each axis grows or shrinks by a factor of up to 1 + this (or 1 / (1 + this)).
        shear_deg: It slants by up to this many degrees either way.
        contrast_fraction: Its range of values shrinks by up to this fraction, towards a level drawn from the whole range.
    """

    shift_px: float = Field(default=0.0, ge=0, le=64, description="largest shift along each axis, pixels")
    rotation_deg: float = Field(default=0.0, ge=0, le=180, description="largest rotation either way, degrees")
    scale_fraction: float = Field(default=0.0, ge=0, le=1, description="each axis is scaled by up to 1 + this, or 1 / (1 + this)")
    shear_deg: float = Field(default=0.0, ge=0, le=45, description="largest slant either way, degrees")
    # below one half, so that a dark background stays on the dark side and `polarity` decides as it does without
    contrast_fraction: float = Field(
        default=0.0, ge=0, lt=0.5, description="the range of values shrinks by up to this fraction (faint ink, grey paper)"
    )

    @property
    def is_off(self) -> bool:
        """Whether nothing is distorted."""
        return not any(self.model_dump().values())


class Recipe(_Part):
    """Everything that decides what is trained and how; the seed and the device come from the call.

    Attributes:
        name: Its name in the registry.
        title: What it is, in a few words.
        source: The paper and the section that it follows.
        network: The network's name in ``convoy.training.networks``.
        data: The data set's name in ``convoy.training.data``.
        normalisation: What the graph does with the pixels.
        augmentation: Random distortions of the training images.
        validation_fraction: The share of the images outside the test split that is held back to choose the epoch by.
        epochs: Passes over the training split at the most.
        patience_epochs: Training stops after this many epochs without a better validation error.
        batch_size: Images a step.
        optimizer: ``sgd`` (with Nesterov's momentum) or ``adamw``.
        learning_rate: The largest learning rate.
        momentum: Of ``sgd``; the first beta of ``adamw``.
        weight_decay: Decoupled for ``adamw``, L2 for ``sgd``; biases and scales are left out.
        schedule: ``one-cycle`` rises over ``warmup_fraction`` of all steps and falls to 0 along a cosine; ``cosine`` falls
            from the start; ``constant`` stays.
        warmup_fraction: The share of all steps over which ``one-cycle`` rises.
        label_smoothing: This much of each target is spread over all classes.
    """

    name: str = Field(description="its name")
    title: str = Field(description="what it is")
    source: str = Field(description="the paper and the section that it follows")
    network: Literal["lenet5"] = Field(description="the network's name")
    data: str = Field(description="the data set's name")
    normalisation: Normalisation = Normalisation()
    augmentation: Augmentation = Augmentation()
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of the images outside the test split that chooses the best epoch"
    )
    epochs: int = Field(default=20, ge=1, le=100_000, description="passes over the training split at the most")
    patience_epochs: int = Field(
        default=20, ge=1, le=100_000, description="stop after this many epochs without a better validation error"
    )
    batch_size: int = Field(default=128, ge=1, le=65_536, description="images a step")
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="sgd: with Nesterov's momentum; adamw")
    learning_rate: float = Field(default=1e-3, gt=0, le=100, description="the largest learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd; the first beta of adamw")
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="decoupled for adamw, L2 for sgd; biases are left out")
    schedule: Literal["one-cycle", "cosine", "constant"] = Field(
        default="one-cycle", description="how the learning rate goes over all steps"
    )
    warmup_fraction: float = Field(default=0.2, ge=0, lt=1, description="share of all steps over which one-cycle rises")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of each target that is spread over all classes")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule == "one-cycle" and self.warmup_fraction == 0:
            raise ValueError("warmup_fraction: one-cycle rises first, so expected more than 0; schedule=cosine does not")
        return self
