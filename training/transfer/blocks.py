"""A network as a row of blocks, from the input to the head."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from convoy.contract.errors import UsageError

_log = logging.getLogger(__name__)

_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DROPOUTS: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_SMALL_PX: Final = (32, 28, 64)  # most networks take one of these, and need a hundredth of the time for it
_USUAL_PX: Final = (96, 128, 224, 256, 299, 384, 518)

_Calls: TypeAlias = "dict[str, tuple[int, int]]"
"""When each module was called first and last, by its name; counted from 0."""


@dataclass(frozen=True)
class Block:
    """Layers of a network that learn together or not at all.

    Attributes:
        name: The module that it begins with.
        modules: Names of modules; what lies below them belongs to the block too.
        parameters: Names of all its parameters, as the network's ``named_parameters()`` has them.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Blocks:
    """All blocks of a network.

    Attributes:
        row: In the order in which an image passes them; each parameter is in one of them, and the last is the head.
        outputs: The layers that give the logits: the last of the network and, where it has auxiliary heads, the last of each.
    """

    row: tuple[Block, ...]
    outputs: tuple[str, ...]

    @property
    def head(self) -> Block:
        """The last block: it ends with the layer whose outputs are the logits; auxiliary heads belong to it."""
        return self.row[-1]


@dataclass(frozen=True)
class _Unit:
    """A module that is not taken apart.

    Attributes:
        name: Its name.
        module: It.
        layers: Names of the layers in it that have a matrix of weights; it may be one itself.
        own: Parameters of modules around it that learn with it.
    """

    name: str
    module: nn.Module
    layers: tuple[str, ...]
    own: tuple[str, ...] = ()


def find_blocks(network: nn.Module, *, channels: int = 3, image_size_px: int | None = None) -> Blocks:
    """Take a network apart.

    The network itself, containers (``Sequential`` and the like) and modules that stack several of several layers each (a
    transformer's encoder, a backbone in a wrapper) are taken apart; every other module is a block whole: a residual block, a
    dense layer, an inception module, an encoder layer. A single convolution or fully connected layer begins a block, and what
    has no matrix of its own (batch norm, activation) belongs to the one before it; dropout belongs to the layer behind it.
    A container with one such layer (convolution, norm, activation) is a block too.

    The order is that in which a forward pass calls the modules. It takes one
    black image, in evaluation mode. What it does not call is auxiliary and belongs to the head. Where no such pass succeeds, the
    order is that in which the modules were registered.

    Args:
        network: Takes float (N, channels, H, W), gives logits.
        channels: Of its images.
        image_size_px: Height and width of its images; None tries usual ones.

    Raises:
        UsageError: There is nothing in it that learns.
    """
    calls = _trace(network, channels, image_size_px)
    units = list(_units(network))
    auxiliary: list[_Unit] = []
    if calls:
        auxiliary = [unit for unit in units if unit.layers and _position(unit, calls) is None]
        units = _in_order([unit for unit in units if unit not in auxiliary], calls)
    groups = _group(units)
    if not groups:
        raise UsageError("expected a network with a convolution or a fully connected layer, found none.")
    output = _last_layer(groups[-1], calls)
    groups[-1] += auxiliary
    row = tuple(_block(network, group) for group in groups)
    covered = {name for block in row for name in block.parameters}
    if left := tuple(name for name, _ in network.named_parameters() if name not in covered):
        row = (replace(row[0], parameters=(*row[0].parameters, *left)), *row[1:])
    return Blocks(row, (output, *_auxiliary_outputs(network, output, auxiliary)))


def _units(module: nn.Module, name: str = "") -> Iterator[_Unit]:
    children = list(module.named_children())
    if not children or not (name == "" or _is_taken_apart(module)):
        yield _Unit(name, module, tuple(_layers(module, name)))
        return
    own = tuple(_join(name, key) for key, _ in module.named_parameters(recurse=False))
    for key, child in children:
        for unit in _units(child, _join(name, key)):
            if own and unit.layers:  # such as a class token: it learns with what it is put into
                yield replace(unit, own=(*unit.own, *own))
                own = ()
            else:
                yield unit


def _is_taken_apart(module: nn.Module) -> bool:
    if isinstance(module, _CONTAINERS):
        return _n_layers(module) > 1
    return sum(_n_layers(part) > 1 for part in _parts(module)) > 1


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in a module that are no containers, those in its containers among them."""
    for child in module.children():
        if isinstance(child, _CONTAINERS):
            yield from _parts(child)
        else:
            yield child


def _layers(module: nn.Module, name: str = "") -> Iterator[str]:
    """Names of the layers with a weight of two axes or more; attention counts as one, a norm over several axes as none."""
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        return
    if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
        yield name
    if not isinstance(module, nn.MultiheadAttention):
        for key, child in module.named_children():
            yield from _layers(child, _join(name, key))


def _n_layers(module: nn.Module) -> int:
    return sum(1 for _ in _layers(module))


def _in_order(units: Sequence[_Unit], calls: _Calls) -> list[_Unit]:
    """By first call; what is not called (an activation used as a function) stays behind what it was registered behind."""
    keyed: list[tuple[int, _Unit]] = []
    last = -1
    for unit in units:
        position = _position(unit, calls)
        last = last if position is None else position
        keyed.append((last, unit))
    return [unit for _, unit in sorted(keyed, key=lambda pair: pair[0])]


def _position(unit: _Unit, calls: _Calls) -> int | None:
    names = (_join(unit.name, name) for name, _ in unit.module.named_modules())
    inside = [calls[name] for name in names if name in calls]
    if not inside:
        return None
    # one dropout that stands in several places acts in the last: there it is the head's, which learns
    return max(last for _, last in inside) if isinstance(unit.module, _DROPOUTS) else min(first for first, _ in inside)


def _group(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """Blocks as lists of units: a unit with a matrix begins one, dropout waits for the next, the rest joins the one before."""
    groups: list[list[_Unit]] = []
    waiting: list[_Unit] = []
    for unit in units:
        if unit.layers:
            groups.append([unit, *waiting])
            waiting = []
        elif isinstance(unit.module, _DROPOUTS) or not groups:
            waiting.append(unit)
        else:
            groups[-1].append(unit)
    if groups:
        groups[-1] += waiting
    return groups


def _block(network: nn.Module, group: Sequence[_Unit]) -> Block:
    names = {_join(unit.name, name) for unit in group for name, _ in unit.module.named_parameters()}
    names.update(name for unit in group for name in unit.own)
    parameters = tuple(name for name, _ in network.named_parameters() if name in names)
    return Block(group[0].name, tuple(unit.name for unit in group), parameters)


def _last_layer(group: Sequence[_Unit], calls: _Calls) -> str:
    """The layer of the last block that is called last, or was registered last where the calls are not known.

    A layer of fixed weights, such as LeNet5's radial basis functions of 1998, is one too.
    """
    layers = [name for unit in group for name in unit.layers]
    layers += [unit.name for unit in group if not unit.layers and any(buffer.ndim > 1 for buffer in unit.module.buffers())]
    return max(layers, key=lambda name: calls.get(name, (-1, -1))[1]) if calls else layers[-1]


def _auxiliary_outputs(network: nn.Module, output: str, auxiliary: Sequence[_Unit]) -> Iterator[str]:
    if not auxiliary:
        return
    n_outputs = _n_outputs(network.get_submodule(output))
    for unit in auxiliary:
        same = [name for name in unit.layers if _n_outputs(network.get_submodule(name)) == n_outputs]
        yield from same[-1:]


def _n_outputs(layer: nn.Module) -> int:
    return next(parameter.shape[0] for parameter in layer.parameters(recurse=False) if parameter.ndim > 1)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _trace(network: nn.Module, channels: int, image_size_px: int | None) -> _Calls:
    """When a forward pass in evaluation mode calls each module first and last; empty where none succeeds."""
    sizes = (*_SMALL_PX, *(() if image_size_px is None else (image_size_px,)), *_USUAL_PX)
    modes = [(module, module.training) for module in network.modules()]
    numbers = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), torch.empty(0))
    network.eval()
    try:
        for size in sizes:
            calls: _Calls = {}
            clock = itertools.count()
            hooks = [
                module.register_forward_pre_hook(functools.partial(_note, calls, clock, name))
                for name, module in network.named_modules()
                if name
            ]
            try:
                with torch.no_grad():
                    network(numbers.new_zeros(1, channels, size, size))
            except Exception as error:  # noqa: BLE001 - a person's network may refuse a size in any way
                _log.debug("the network does not take %d x %d pixels: %s", size, size, error)
                continue
            finally:
                for hook in hooks:
                    hook.remove()
            return calls
    finally:
        for module, mode in modes:
            module.training = mode
    return {}


def _note(calls: _Calls, clock: Iterator[int], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
    now = next(clock)
    first, _ = calls.get(name, (now, now))
    calls[name] = (first, now)
