"""The frozen configuration of one training run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

Activation = Literal["identity", "logistic", "tanh", "scaled-tanh", "relu", "leaky-relu", "parametric-relu", "elu", "softplus"]
BatchNorm = Literal["none", "conv-bn-relu", "conv-relu-pool-bn", "conv-pool-bn-relu"]


class _Part(BaseModel):
    # strict: "12" is no integer and True is no number; what `--set` reads is checked as JSON
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Normalisation(_Part):
    """What the graph does with the pixels before the network.

    Attributes:
        polarity: ``auto`` turns images whose border is light (ink on paper) into light strokes on dark, image by image.
        mean: One value a channel on the scale [0, 1]; None: as the weights taken over saw it, else measured.
        std: One value a channel on the scale [0, 1]; None: as the weights taken over saw it, else measured.
    """

    polarity: Literal["as-is", "auto"] = Field(
        default="as-is", description="auto: images with a light border (ink on paper) are inverted; as-is: none is"
    )
    mean: tuple[float, ...] | None = Field(
        default=None, description="subtracted from pixels in [0, 1]; null: as taken-over weights saw it, else measured"
    )
    std: tuple[float, ...] | None = Field(
        default=None, description="then divided by; null: as taken-over weights saw it, else measured"
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


class Architecture(_Part):
    """What can be chosen about a network; null where the recipe's network does not offer the choice.

    Attributes:
        activation: The non-linearity between layers.
        pooling: What a pool computes: the largest value or the mean.
        downsampling: ``pool`` convolves, then pools; ``stride`` convolves at every second place and pools nothing.
        batch_norm: Where batch normalisation stands (Ioffe and Szegedy 2015), if at all; the two orders of the lecture by their
            names, and ``conv-bn-relu``, the paper's.
        dropout: The share of hidden units that are left out of each training step (Srivastava and others 2014).
    """

    activation: Activation | None = Field(default=None, description="the non-linearity between layers")
    pooling: Literal["max", "average"] | None = Field(default=None, description="what a pool computes")
    downsampling: Literal["pool", "stride"] | None = Field(
        default=None, description="pool: convolve, then pool; stride: convolve at every second place"
    )
    batch_norm: BatchNorm | None = Field(default=None, description="none, or the order in which it stands among its neighbours")
    dropout: float | None = Field(default=None, ge=0, lt=1, description="share of hidden units left out of each training step")


class Augmentation(_Part):
    """Random distortions of the training images, drawn anew for every image in every epoch; 0 switches one off.

    Attributes:
        shift_px: Each image moves by up to this many pixels along each axis.
        rotation_deg: It turns by up to this many degrees either way.
        scale_fraction: Each axis grows or shrinks by a factor of up to 1 + this (or 1 / (1 + this)).
        shear_deg: It slants by up to this many degrees either way.
        elastic_px: Elastic distortion: its pixels are displaced by smooth random fields of this standard deviation (Simard,
            Steinkraus and Platt 2003, section 2).
        elastic_sigma_px: How smooth these fields are: the standard deviation of the Gaussian that smooths them.
        crop_px: It is padded by this many pixels and cut to its size again at a random place.
        crop_area_fraction: A random part of at least this share of its area is cut out and brought to its size again (Szegedy
            and others 2014, section 6); 1 leaves it whole.
        flip_probability: How often it is mirrored left to right. Not for digits, which it turns into other signs.
        brightness_fraction: Its values are multiplied by up to 1 + this (or 1 - this).
        saturation_fraction: Its colours move by up to this fraction towards grey or away from it.
        hue_fraction: Its hue turns by up to this fraction of the circle of colours.
        contrast_fraction: Its range of values shrinks by up to this fraction, towards a level drawn from the whole range.
        randaugment_operations: As many operations of RandAugment (Cubuk and others 2019) are drawn for each image.
        randaugment_magnitude: Their strength, from 0 to 30.
        mixup_alpha: Pairs of images and of their labels are blended by shares from Beta(alpha, alpha) (Zhang and others 2017).
    """

    shift_px: float = Field(default=0.0, ge=0, le=64, description="largest shift along each axis, pixels")
    rotation_deg: float = Field(default=0.0, ge=0, le=180, description="largest rotation either way, degrees")
    scale_fraction: float = Field(default=0.0, ge=0, le=1, description="each axis is scaled by up to 1 + this, or 1 / (1 + this)")
    shear_deg: float = Field(default=0.0, ge=0, le=45, description="largest slant either way, degrees")
    elastic_px: float = Field(default=0.0, ge=0, le=64, description="standard deviation of smooth random displacements, pixels")
    elastic_sigma_px: float = Field(default=4.0, gt=0, le=64, description="how smooth these are: sigma of the Gaussian, pixels")
    crop_px: int = Field(default=0, ge=0, le=512, description="padded by this and cut to size at a random place, pixels")
    crop_area_fraction: float = Field(
        default=1.0, gt=0, le=1, description="a random part of at least this share of the area is brought to size; 1: none"
    )
    flip_probability: float = Field(default=0.0, ge=0, le=1, description="how often mirrored left to right; not for digits")
    brightness_fraction: float = Field(default=0.0, ge=0, lt=1, description="values are multiplied by up to 1 +- this")
    saturation_fraction: float = Field(default=0.0, ge=0, le=1, description="colours move to grey or away by up to this")
    hue_fraction: float = Field(default=0.0, ge=0, le=0.5, description="the hue turns by up to this share of the circle")
    # below one half, so that a dark background stays on the dark side and `polarity` decides as it does without
    contrast_fraction: float = Field(
        default=0.0, ge=0, lt=0.5, description="the range of values shrinks by up to this fraction (faint ink, grey paper)"
    )

    randaugment_operations: int = Field(default=0, ge=0, le=8, description="operations of RandAugment an image")
    randaugment_magnitude: int = Field(default=9, ge=0, le=30, description="their strength")
    mixup_alpha: float = Field(default=0.0, ge=0, le=8, description="pairs are blended by shares from Beta(this, this)")

    @property
    def is_off(self) -> bool:
        """Whether nothing is distorted."""
        off = Augmentation(elastic_sigma_px=self.elastic_sigma_px, randaugment_magnitude=self.randaugment_magnitude)
        return self == off


class Transfer(_Part):
    """How a network that was trained on other data is taken over (the lecture's transfer learning).

    The first phase trains the new head alone; the second refines the layers that are not frozen, the earlier the slower.

    Attributes:
        weights: ``imagenet``: torchvision's; ``file``: those of ``--weights``; ``none``: random ones, to compare with.
        head_epochs: Epochs of the first phase; they count among ``epochs``.
        frozen_fraction: The share of the network's blocks, from the input on, that stay as they are, statistics of batch norms
            included; 1 trains the head alone.
        layer_decay: The learning rate of a block over that of the block behind it.
    """

    weights: Literal["imagenet", "file", "none"] = Field(default="imagenet", description="where the weights come from")
    head_epochs: int = Field(default=2, ge=0, le=100_000, description="epochs in which the new head alone is trained")
    frozen_fraction: float = Field(default=0.5, ge=0, le=1, description="share of the blocks, from the input on, that stay fixed")
    layer_decay: float = Field(default=0.7, gt=0, le=1, description="learning rate of a block over that of the block behind it")


class Recipe(_Part):
    """Everything that decides what is trained and how; the seed and the device come from the call.

    Attributes:
        name: Its name in the registry.
        title: What it is, in a few words.
        source: The paper and the section that it follows.
        network: The network's name in ``convoy.training.networks``.
        architecture: What can be chosen about it.
        transfer: How weights from other data are taken over; None where they start at random.
        data: The data set's name in ``convoy.training.data``, or a folder of images.
        image_size_px: Height and width to which images are brought; None leaves them as the data set has them.
        normalisation: What the graph does with the pixels.
        augmentation: Random distortions of the training images.
        sampling: ``shuffled`` sees each training image once an epoch; ``balanced`` draws as many images, each class as often.
        validation_fraction: The share of the images outside the test split that is held back to choose the epoch by.
        epochs: Passes over the training split at the most.
        patience_epochs: Training stops after this many epochs without a better validation error.
        batch_size: Images a step.
        optimizer: ``sgd`` (with momentum) or ``adamw``.
        learning_rate: The largest learning rate.
        momentum: Of ``sgd``; the first beta of ``adamw``.
        nesterov: Whether the momentum of ``sgd`` is Nesterov's.
        weight_decay: Decoupled for ``adamw``, L2 for ``sgd``; biases and scales are left out.
        schedule: ``one-cycle`` rises over ``warmup_fraction`` of all steps and falls to 0 along a cosine; ``cosine`` falls
            from the start; ``step`` is multiplied by ``schedule_factor`` every ``schedule_epochs`` epochs; ``plateau`` whenever
            the validation loss has not fallen for so many; ``constant`` stays.
        warmup_fraction: The share of all steps over which ``one-cycle`` rises.
        schedule_epochs: Of ``step`` and ``plateau``.
        schedule_factor: Of ``step`` and ``plateau``.
        label_smoothing: This much of each target is spread over all classes.
        averaging: ``none``; ``ema``: validated and kept is an exponential moving average of the weights; ``swa``: their mean over
            the last epochs (Izmailov and others 2018).
        averaging_decay: Of ``ema``, a step.
        averaging_fraction: The share of all epochs over which ``swa`` averages, at the end.
    """

    name: str = Field(description="its name")
    title: str = Field(description="what it is")
    source: str = Field(description="the paper and the section that it follows")
    network: str = Field(description="the network's name")
    architecture: Architecture = Architecture()
    transfer: Transfer | None = None
    data: str = Field(description="the data set's name, or a folder of images")
    image_size_px: int | None = Field(
        default=None, ge=1, le=2048, description="height and width that images are brought to; null: as the data set has them"
    )
    normalisation: Normalisation = Normalisation()
    augmentation: Augmentation = Augmentation()
    sampling: Literal["shuffled", "balanced"] = Field(
        default="shuffled", description="shuffled: each image once an epoch; balanced: each class as often"
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of the images outside the test split that chooses the best epoch"
    )
    epochs: int = Field(default=20, ge=1, le=100_000, description="passes over the training split at the most")
    patience_epochs: int = Field(
        default=20, ge=1, le=100_000, description="stop after this many epochs without a better validation error"
    )
    batch_size: int = Field(default=128, ge=1, le=65_536, description="images a step")
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="sgd (with momentum) or adamw")
    learning_rate: float = Field(default=1e-3, gt=0, le=100, description="the largest learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd; the first beta of adamw")
    nesterov: bool = Field(default=True, description="whether the momentum of sgd is Nesterov's")
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="decoupled for adamw, L2 for sgd; biases are left out")
    schedule: Literal["one-cycle", "cosine", "step", "plateau", "constant"] = Field(
        default="one-cycle", description="how the learning rate goes over all steps"
    )
    warmup_fraction: float = Field(default=0.2, ge=0, lt=1, description="share of all steps over which one-cycle rises")
    schedule_epochs: int = Field(default=10, ge=1, le=100_000, description="of step and plateau: epochs until it falls")
    schedule_factor: float = Field(default=0.1, gt=0, lt=1, description="of step and plateau: what it is multiplied by")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of each target that is spread over all classes")
    averaging: Literal["none", "ema", "swa"] = Field(default="none", description="which mean of the weights is kept, if any")
    averaging_decay: float = Field(default=0.999, ge=0, lt=1, description="of ema, a step")
    averaging_fraction: float = Field(default=0.25, gt=0, le=1, description="of swa: share of all epochs, at the end")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule == "one-cycle" and self.warmup_fraction == 0:
            raise ValueError("warmup_fraction: one-cycle rises first, so expected more than 0; schedule=cosine does not")
        if self.augmentation.mixup_alpha and self.label_smoothing:
            raise ValueError("mixup_alpha and label_smoothing both soften the targets: expected one of them above 0")
        if self.transfer is not None and self.transfer.head_epochs > self.epochs:
            raise ValueError(
                f"head_epochs: expected at most epochs, {self.epochs}, found {self.transfer.head_epochs} (add --set head_epochs=0)"
            )
        return self
