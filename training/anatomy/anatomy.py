"""What a network is made of: its layers, what they cost and what of the image reaches them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from convoy.contract.errors import UsageError
from convoy.training.anatomy.formula import count, name_of, name_of_operation, parameter_formula
from convoy.training.anatomy.operations import Followed, Lost
from convoy.training.anatomy.reach import COLUMNS, ROWS, Reach
from convoy.training.anatomy.tracer import Step, trace

_SMALL_PIXELS: Final = 64 * 64
_CONVOLUTION: Final = "convolution"
_FULLY_CONNECTED: Final = "fully connected"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReceptiveField(_Part):
    """Which pixels reach a layer's features. Pairs are rows, then columns.

    Attributes:
        is_map: Whether features have places; else all of them see the same pixels, or are the flattened features of a map.
        size_px: How far a field extends, as if the image had no border; of what is no map, and where fields are not shifted
            copies of each other, the largest within the image.
        jump_px: How many pixels lie between the fields of neighbours (the product of the strides); None where it varies, or
            there is one place only.
        start_px: The first pixel of the field of the first feature, below 0 where it sees padding; None as for ``jump_px``.
        centre_px: The middle of that field.
        least_pixels_share: The share of the image's pixels that reach the feature which fewest reach; those at borders.
        most_pixels_share: The share of those that reach the feature which most reach.
        least_features: How many places of the map the pixel reaches that reaches fewest.
        most_features: How many the pixel reaches that reaches most.
        is_exact: False where the last four may count pixels that do not reach.
    """

    is_map: bool
    size_px: tuple[int, int]
    jump_px: tuple[int, int] | None
    start_px: tuple[int, int] | None
    centre_px: tuple[float, float] | None
    least_pixels_share: float
    most_pixels_share: float
    least_features: int
    most_features: int
    is_exact: bool


class Layer(_Part):
    """One layer, or one operation between layers, in the order in which they run.

    Attributes:
        name: Its path in the network; of an operation that of the module around it, "" at the top.
        kind: What it is: ``Conv-6 5x5 pad 2``.
        is_operation: Whether it is an operation between layers.
        is_minor: Whether it only rescales or bends what the layer before it gives: a norm, an activation, dropout.
        role: ``convolution`` and ``fully connected`` for layers with weights of this sort, else None.
        dims: What it gives for one image: (C, H, W) of maps.
        parameters: How many numbers it trains.
        formula: How they come about, in the lecture's notation; None where there are none.
        macs: Multiply-accumulates of its convolutions and matrix products for one image; other arithmetic counts for nothing.
        field: Its receptive field; None where no pixel reaches it, or that is not known.
        not_followed: Why it is not known; else None.
    """

    name: str
    kind: str
    is_operation: bool
    is_minor: bool
    role: str | None
    dims: tuple[int, ...]
    parameters: int
    formula: str | None
    macs: int
    field: ReceptiveField | None
    not_followed: str | None


@dataclass(frozen=True)
class Anatomy:
    """A network, taken apart.

    Attributes:
        network: The network itself, on whatever device it was built.
        image_dims: Channels, height, width of what it takes.
        layers: Its layers and operations, as they run in evaluation.
        reaches: What reaches each of them; None where that is not known.
        training_only_parameters: How many of its parameters evaluation does not use (auxiliary heads).
    """

    network: nn.Module
    image_dims: tuple[int, int, int]
    layers: tuple[Layer, ...]
    reaches: tuple[Reach | None, ...]
    training_only_parameters: int

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(layer.parameters for layer in self.layers) + self.training_only_parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def last_map(self) -> int | None:
        """The index of the last layer whose features have places; None where there is none, or it is not known."""
        if any(layer.not_followed for layer in self.layers):
            return None
        maps = [index for index, layer in enumerate(self.layers) if layer.field and layer.field.is_map]
        return maps[-1] if maps else None

    def of_role(self, role: str) -> tuple[Layer, ...]:
        """The layers that are ``convolution`` or ``fully connected``."""
        return tuple(layer for layer in self.layers if layer.role == role)


def examine(build: Callable[[], nn.Module], *, channels: int, height_px: int, width_px: int) -> Anatomy:
    """Build a network, run one image through it and take it apart.

    Both happen on torch's meta device, where tensors have shapes and no values: nothing is computed, and a network of any size
    needs no memory. On small images it is built and run for real, which is faster than to load what the meta device needs; so is
    a network that does not build on the meta device, because it reads values while it does.

    Args:
        build: Gives the network; takes float (N, C, H, W).
        channels: Of the image.
        height_px: Of the image.
        width_px: Of the image.

    Raises:
        UsageError: The network does not take such images.
    """
    shape = (1, channels, height_px, width_px)
    first, second = ("cpu", "meta") if height_px * width_px <= _SMALL_PIXELS else ("meta", "cpu")
    try:
        network, steps = _run(build, first, shape)
    except RuntimeError:
        try:
            network, steps = _run(build, second, shape)
        except RuntimeError as error:
            raise UsageError(
                f"expected a network that takes images of {height_px}x{width_px}x{channels}; it failed: {error} "
                "Choose another size with --image-size."
            ) from error
    layers = tuple(_layer(step) for step in steps)
    used = sum(layer.parameters for layer in layers)
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    reaches = tuple(step.knowledge.reach if isinstance(step.knowledge, Followed) else None for step in steps)
    return Anatomy(network, (channels, height_px, width_px), layers, reaches, n_parameters - used)


def _run(build: Callable[[], nn.Module], device: str, shape: tuple[int, ...]) -> tuple[nn.Module, list[Step]]:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        network = build()
    return network, trace(network, torch.zeros(shape, device=device))


def _layer(step: Step) -> Layer:
    is_operation = bool(step.operation)
    is_leaf = next(step.module.children(), None) is None
    known = step.knowledge
    return Layer(
        name=step.path,
        kind=name_of_operation(step.operation, step.arguments)
        if is_operation
        else name_of(step.module, step.dims)
        if is_leaf
        else f"weights of {type(step.module).__name__}",
        is_operation=is_operation,
        is_minor=_is_minor(step),
        role=_role(step),
        dims=step.dims,
        parameters=count(step.parameters),
        formula=parameter_formula(step.module, step.parameters),
        macs=step.macs,
        field=_field(known) if isinstance(known, Followed) else None,
        not_followed=known.reason if isinstance(known, Lost) else None,
    )


def _is_minor(step: Step) -> bool:
    """Whether it gives features of the same places with the same fields, at no cost."""
    if step.operation or step.macs or step.dims != step.given_dims:
        return False
    given, gives = step.given, step.knowledge
    if isinstance(given, Followed) and isinstance(gives, Followed):
        return given.reach is gives.reach
    return given is gives


def _role(step: Step) -> str | None:
    if "convolution" in step.costly:
        return _CONVOLUTION
    return _FULLY_CONNECTED if step.costly else None


def _field(known: Followed) -> ReceptiveField:
    reach = known.reach
    rows, columns = reach.spans
    jump = start = centre = None
    if known.is_map:
        if rows.jump_px is not None and columns.jump_px is not None:
            jump = (rows.jump_px, columns.jump_px)
        if rows.start_px is not None and rows.end_px is not None and columns.start_px is not None and columns.end_px is not None:
            start = (rows.start_px, columns.start_px)
            centre = ((rows.start_px + rows.end_px) / 2, (columns.start_px + columns.end_px) / 2)
    n_pixels = reach.dims_px[ROWS] * reach.dims_px[COLUMNS]
    pixels, features = reach.pixels_per_feature(), reach.features_per_pixel()
    return ReceptiveField(
        is_map=known.is_map,
        size_px=(_size(reach, ROWS, known), _size(reach, COLUMNS, known)),
        jump_px=jump,
        start_px=start,
        centre_px=centre,
        least_pixels_share=int(pixels.min()) / n_pixels,
        most_pixels_share=int(pixels.max()) / n_pixels,
        least_features=int(features.min()),
        most_features=int(features.max()),
        is_exact=reach.is_exact,
    )


def _size(reach: Reach, axis: int, known: Followed) -> int:
    return reach.size_px(axis) if known.is_map else reach.largest_px(axis)
