"""A network's layers as a table that fits a screen: blocks in place of their layers, norms and activations beside theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from torch import nn

from convoy.training.anatomy.anatomy import Anatomy, Layer, ReceptiveField

MAX_ROWS: Final = 40
"""Where nobody chooses a depth, it is the largest that gives no more rows than this."""
_NOTHING: Final = "Identity"  # a layer that does nothing: no row is about it


@dataclass(frozen=True)
class Row:
    """A layer with the norms and activations behind it, or a block of layers.

    Attributes:
        name: The layer's or the block's path.
        kind: What it is.
        dims: What it gives for one image.
        parameters: How many numbers it trains.
        formula: How they come about; None where there are none, or it is a block.
        macs: Its multiply-accumulates for one image.
        field: The receptive field of what it gives; None where it is not known.
        last: The index of its last layer.
    """

    name: str
    kind: str
    dims: tuple[int, ...]
    parameters: int
    formula: str | None
    macs: int
    field: ReceptiveField | None
    last: int


def outline(anatomy: Anatomy, depth: int | None = None) -> tuple[Row, ...]:
    """The rows of the table.

    Args:
        anatomy: The network.
        depth: Blocks that lie deeper than so many names (``layer1.0`` is 2 deep) are one row each; None chooses.
    """
    if depth is not None:
        return tuple(_rows(anatomy, depth))
    deepest = depth_of(anatomy)
    return next(
        (rows for d in range(deepest, 1, -1) if len(rows := tuple(_rows(anatomy, d))) <= MAX_ROWS), tuple(_rows(anatomy, 1))
    )


def depth_of(anatomy: Anatomy) -> int:
    """How deep the deepest layer lies."""
    return max((layer.name.count(".") + 1 for layer in anatomy.layers), default=1)


def _rows(anatomy: Anatomy, depth: int) -> Iterator[Row]:
    indexed = [(index, layer) for index, layer in enumerate(anatomy.layers) if layer.kind != _NOTHING]
    pending: list[tuple[int, Layer]] = []
    for block, group in groupby(indexed, key=lambda item: _block(item[1], depth)):
        members = list(group)
        if block is not None:
            if pending:
                yield _joined(pending)
            pending = []
            if len(list(_chains(anatomy, members))) == 1:
                yield replace(_joined(members), name=block)  # one layer and its norm are told as such
            else:
                yield _summary(block, anatomy.network.get_submodule(block), members)
            continue
        *whole, pending = _chains(anatomy, [*pending, *members])
        yield from map(_joined, whole)
    if pending:
        yield _joined(pending)


def _chains(anatomy: Anatomy, members: Sequence[tuple[int, Layer]]) -> Iterator[list[tuple[int, Layer]]]:
    """Each layer with what only rescales or bends what it gives."""
    chain: list[tuple[int, Layer]] = []
    for index, layer in members:
        # what is minor on a branch of its own, such as a norm on the way around a block, has other fields than the layer before
        if chain and not (layer.is_minor and anatomy.reaches[index] is anatomy.reaches[chain[-1][0]]):
            yield chain
            chain = []
        chain.append((index, layer))
    if chain:
        yield chain


def _block(layer: Layer, depth: int) -> str | None:
    """The block that stands for the layer; None where it stands for itself."""
    names = layer.name.split(".")
    # an operation is named after the module around it: with that module it goes where its layers go
    is_inside = len(names) > depth or (len(names) == depth and layer.name != "" and layer.is_operation)
    return ".".join(names[:depth]) if is_inside else None


def _joined(members: Sequence[tuple[int, Layer]]) -> Row:
    layers = [layer for _, layer in members]
    formulas = [layer.formula for layer in layers if layer.formula]
    parameters = sum(layer.parameters for layer in layers)
    if len(formulas) > 1:
        formulas = [" + ".join(formula.partition(" = ")[0] for formula in formulas) + f" = {parameters:,}"]
    return Row(
        name=layers[0].name,
        kind=", ".join(layer.kind for layer in layers),
        dims=layers[-1].dims,
        parameters=parameters,
        formula=formulas[0] if formulas else None,
        macs=sum(layer.macs for layer in layers),
        field=layers[-1].field,
        last=members[-1][0],
    )


def _summary(block: str, module: nn.Module, members: Sequence[tuple[int, Layer]]) -> Row:
    layers = [layer for _, layer in members]
    kinds = {type(child).__name__ for child in module.children()}
    kind = type(module).__name__
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        kind = f"{len(module)} x {kinds.pop()}" if len(kinds) == 1 else f"{len(module)} layers"
    return Row(
        name=block,
        kind=kind,
        dims=layers[-1].dims,
        parameters=sum(layer.parameters for layer in layers),
        formula=None,
        macs=sum(layer.macs for layer in layers),
        field=layers[-1].field,
        last=members[-1][0],
    )
