"""Activations by name: the non-linearities between layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from convoy.training.recipes.recipe import Activation


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x / 3): close to linear within +-1, where it passes through (1, 1) and (-1, -1).

    Source: LeCun, Bottou, Bengio, Haffner 1998, section II.B and appendix A.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape, element by element."""
        return 1.7159 * torch.tanh(x * (2 / 3))


ACTIVATIONS: Final[Mapping[Activation, Callable[[], nn.Module]]] = MappingProxyType(
    {
        "identity": nn.Identity,
        "logistic": nn.Sigmoid,
        "tanh": nn.Tanh,
        "scaled-tanh": ScaledTanh,
        "relu": nn.ReLU,
        "leaky-relu": lambda: nn.LeakyReLU(0.01),
        "parametric-relu": nn.PReLU,  # one slope for all maps, learnt from 0.25 on (He and others 2015, Delving Deep)
        "elu": nn.ELU,
        "softplus": nn.Softplus,
    }
)


def make_activation(name: Activation) -> nn.Module:
    """A new module for one place in a network: a parametric ReLU learns a slope for each place."""
    return ACTIVATIONS[name]()
