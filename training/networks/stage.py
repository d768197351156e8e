"""What stands between two convolutions: the activation, the pool and batch normalisation, in the order that is chosen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from torch import nn

from convoy.training.networks.activation import make_activation
from convoy.training.networks.choices import Choices
from convoy.training.recipes.recipe import BatchNorm

_Part = Literal["activation", "pool", "batch_norm"]

_ORDERS: Final[Mapping[BatchNorm, tuple[_Part, ...]]] = MappingProxyType(
    {
        "none": ("activation", "pool"),
        "conv-bn-relu": ("batch_norm", "activation", "pool"),  # Ioffe and Szegedy 2015, section 3.2
        "conv-relu-pool-bn": ("activation", "pool", "batch_norm"),  # the lecture's first order
        "conv-pool-bn-relu": ("pool", "batch_norm", "activation"),  # and its second
    }
)


def after_convolution(maps: int, choices: Choices, *, halves: bool = True) -> nn.Sequential:
    """What follows a convolution.

    Args:
        maps: How many maps it gives.
        choices: Activation, kind of pool, and where batch normalisation stands. Where downsampling is by stride, there is no pool:
            ``stride_of`` is for the convolution before.
        halves: Whether the maps are to be halved here at all.

    Returns:
        From (N, maps, H, W) to (N, maps, H / 2, W / 2) where it pools 2x2, else to the same shape.
    """
    made: dict[_Part, nn.Module] = {"activation": make_activation(choices.activation)}
    if choices.batch_norm != "none":
        made["batch_norm"] = nn.BatchNorm2d(maps)
    if halves and choices.downsampling == "pool":
        made["pool"] = nn.MaxPool2d(2) if choices.pooling == "max" else nn.AvgPool2d(2)
    return nn.Sequential(OrderedDict((part, made[part]) for part in _ORDERS[choices.batch_norm] if part in made))


def stride_of(choices: Choices) -> int:
    """The stride of a convolution whose maps are to be halved: 2 where no pool does it."""
    return 2 if choices.downsampling == "stride" else 1


def after_hidden(choices: Choices) -> nn.Sequential:
    """What follows a fully connected hidden layer: the activation and, where there is some, dropout."""
    after = nn.Sequential(OrderedDict(activation=make_activation(choices.activation)))
    if choices.dropout:
        after.add_module("dropout", nn.Dropout(choices.dropout))
    return after
