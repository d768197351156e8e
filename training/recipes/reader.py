"""The frozen configuration of a reader's training: a network that is swept over fields of writing, with a grammar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from convoy.contract.errors import UsageError
from convoy.training.recipes.overrides import override

Criterion = Literal["forward", "ctc", "viterbi", "frames"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Distortion(_Part):
    """Random distortions of the training fields, drawn anew each time that a field is seen; 0 switches one off.

    Attributes:
        scale_fraction: Width and height each change by a factor of up to 1 + this (or 1 / (1 + this)).
        slant: The tops of letters move by up to this many heights of the field.
        rotation_deg: The line turns by up to this many degrees.
        shift_fraction: The line moves up or down by up to this share of the height.
        elastic_px: The standard deviation of smooth random displacements, pixels.
        stroke: How far strokes may become thicker or thinner: 1 is by about a pixel on each side.
        contrast_fraction: Ink may fade by up to this fraction.
        noise: The largest standard deviation of noise, in grey levels.
        blur_px: The largest sigma of a blur, pixels.
    """

    scale_fraction: float = Field(default=0.2, ge=0, le=1, description="width and height each change by up to this fraction")
    slant: float = Field(default=0.3, ge=0, le=1, description="tops of letters move by up to this many heights")
    rotation_deg: float = Field(default=3.0, ge=0, le=30, description="the line turns by up to this, degrees")
    shift_fraction: float = Field(default=0.08, ge=0, le=0.5, description="the line moves up or down by up to this share")
    elastic_px: float = Field(default=0.7, ge=0, le=8, description="standard deviation of smooth displacements, pixels")
    stroke: float = Field(default=0.6, ge=0, le=1, description="strokes become thicker or thinner, 1: by about a pixel a side")
    contrast_fraction: float = Field(default=0.4, ge=0, lt=1, description="ink fades by up to this fraction")
    noise: float = Field(default=10.0, ge=0, le=100, description="largest standard deviation of noise, grey levels")
    blur_px: float = Field(default=0.8, ge=0, le=4, description="largest sigma of a blur, pixels")


NO_DISTORTION: Final = Distortion(
    scale_fraction=0.0, slant=0.0, rotation_deg=0.0, shift_fraction=0.0, elastic_px=0.0, stroke=0.0,
    contrast_fraction=0.0, noise=0.0, blur_px=0.0,
)  # fmt: skip


class ReaderRecipe(_Part):
    """Everything that decides what reader is trained and how; seed and device come from the call.

    Attributes:
        name: Its name.
        title: What it is, in a few words.
        source: The paper and the section that it follows.
        network: ``lenet5`` swept over the field, or a small ``residual`` network.
        channels: Of the network's four layers: C1, C3, C5, F6; or of the residual network's four stages.
        blocks: Of the residual network's stages: residual blocks of each.
        height_px: Height of the fields; LeNet5 takes 32.
        batch_norm: Of ``lenet5``; the residual network has it always.
        dropout: Share of the last features left out in training.
        grammar: Which amounts there are: a name, or a file of rules.
        decimal: The character before the decimals; empty where amounts are whole.
        style: How synthetic amounts are written.
        handwriting: The data set whose digits they are written with, ``digits`` or ``mnist``.
        n_synthetic: How many synthetic fields there are.
        void_share: The share of them that hold no amount, where the grammar has the empty one: paper, lines of a form, lone signs,
            print, what a wrong cut leaves.
        criterion: ``forward``: minus the log-posterior of the right amount among all that the grammar allows (the paper's
            discriminative forward training, section VI.E); ``viterbi``: the same of best paths in place of sums (section VI.D);
            ``ctc``: among all strings (Graves and others 2006); ``frames``: each frame by itself, on synthetic fields alone.
        epochs: Passes over the synthetic fields, before real ones are seen.
        real_epochs: Passes over the real fields, where there are any.
        synthetic_share: The share of synthetic fields in the batches of that phase.
        splice_share: The share of the real fields that get the end of another each time they are seen.
        distortion: Random distortions of the training fields.
        batch_size: Fields a step.
        learning_rate: The largest learning rate.
        real_learning_rate: The largest of the phase with real fields.
        weight_decay: AdamW's.
        warmup_fraction: The share of all steps of a phase over which the learning rate rises.
        averaging_decay: Of the exponential moving average of the weights that is kept, a step; 0: the last weights are.
        n_best: How many amounts the reader gives.
        accepted_error: The share of accepted amounts that may be wrong: what the threshold is chosen for.
        validation_fraction: The share of the real fields, a block of neighbours, that is held back for threshold and calibration.
    """

    name: str = Field(description="its name")
    title: str = Field(description="what it is")
    source: str = Field(description="the paper and the section that it follows")
    network: Literal["lenet5", "residual"] = Field(description="lenet5, or a small residual network")
    channels: tuple[int, int, int, int] = Field(description="of C1, C3, C5 and F6, or of the four stages")
    blocks: tuple[int, int, int] = Field(default=(0, 2, 1), description="of residual: blocks of each stage")
    height_px: int = Field(default=32, ge=8, le=256, description="height of the fields; lenet5 takes 32")
    batch_norm: bool = Field(default=False, description="of lenet5; the residual network has it always")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the last features left out in training")
    grammar: str = Field(default="chilean", description="which amounts there are: a name, or a file of rules")
    decimal: Literal["", ".", ","] = Field(default="", description="the character before the decimals; empty: none")
    style: str = Field(default="chilean", description="how synthetic amounts are written: chilean, us, french, digits")
    handwriting: Literal["digits", "mnist"] = Field(default="digits", description="whose digits they are written with")
    n_synthetic: int = Field(default=12_000, ge=1, le=10_000_000, description="synthetic fields")
    void_share: float = Field(default=0.1, ge=0, lt=1, description="share of synthetic fields that hold no amount")
    criterion: Criterion = Field(default="forward", description="what training makes smaller: forward, viterbi, ctc or frames")
    epochs: int = Field(default=4, ge=0, le=10_000, description="passes over the synthetic fields")
    real_epochs: int = Field(default=40, ge=0, le=10_000, description="passes over the real fields, where there are any")
    synthetic_share: float = Field(default=0.3, ge=0, lt=1, description="share of synthetic fields among the real ones")
    splice_share: float = Field(default=0.5, ge=0, le=1, description="share of real fields that get the end of another")
    distortion: Distortion = Distortion()
    batch_size: int = Field(default=32, ge=1, le=4096, description="fields a step")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="the largest learning rate")
    real_learning_rate: float = Field(default=2e-3, gt=0, le=1, description="the largest in the phase with real fields")
    weight_decay: float = Field(default=0.01, ge=0, le=10, description="AdamW's")
    warmup_fraction: float = Field(default=0.1, gt=0, lt=1, description="share of a phase's steps over which the rate rises")
    averaging_decay: float = Field(default=0.995, ge=0, lt=1, description="of the average of the weights, a step; 0: none")
    n_best: int = Field(default=3, ge=1, le=20, description="amounts for each field")
    accepted_error: float = Field(default=0.01, gt=0, lt=1, description="share of accepted amounts that may be wrong")
    validation_fraction: float = Field(default=0.15, gt=0, lt=0.5, description="share of real fields held back, a block")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.network == "lenet5" and self.height_px != 32:
            raise ValueError(f"height_px: lenet5 takes fields of 32 pixels, found {self.height_px}")
        if self.network == "residual" and self.height_px % 8:
            raise ValueError(f"height_px: expected a multiple of 8, found {self.height_px}")
        if self.network == "residual" and (min(self.blocks[1:]) < 1 or self.blocks[0] < 0):
            raise ValueError("blocks: expected one at least in the second and in the third stage")
        return self


_LECTURE: Final = "LeCun, Bottou, Bengio, Haffner 1998, sections VI to VIII and X"
READER_RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        ReaderRecipe(
            name="check-reader",
            title="amounts of checks: a small residual network, swept, with a grammar and one loss",
            source=f"{_LECTURE}; the network after He and others 2015",
            network="residual",
            channels=(24, 48, 96, 192),
            height_px=48,
            dropout=0.2,
        ),
        ReaderRecipe(
            name="check-reader-small",
            title="the same with fewer than 100,000 parameters",
            source=f"{_LECTURE}; the network after He and others 2015",
            network="residual",
            channels=(16, 24, 40, 56),
            blocks=(1, 2, 1),
            height_px=48,
            dropout=0.1,
        ),
        ReaderRecipe(
            name="check-reader-lenet5",
            title="amounts of checks: the lecture's LeNet5, swept, with a grammar and one loss",
            source=_LECTURE,
            network="lenet5",
            channels=(6, 16, 120, 84),
        ),
    )
}
"""The readers that `convoy train` knows, by name."""


def get_reader_recipe(name: str, assignments: Iterable[str] = ()) -> ReaderRecipe:
    """The recipe of a name, with fields changed.

    Args:
        name: One of ``READER_RECIPES``.
        assignments: ``key=value`` each, as ``--set`` takes them.

    Raises:
        UsageError: There is no such recipe or field, or a value does not fit.
    """
    if name not in READER_RECIPES:
        raise UsageError(f"expected a reader, one of {', '.join(READER_RECIPES)}; found {name!r}.")
    return override(READER_RECIPES[name], assignments)
