"""What the anatomy is checked against: gradients and hooks on the built network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

Place: TypeAlias = tuple[int, int]
MeasureReach: TypeAlias = Callable[[nn.Module, str, Sequence[int], Sequence[Place]], dict[Place, npt.NDArray[np.bool_]]]


def make_transparent(network: nn.Module) -> nn.Module:
    """The network with weights that are all positive and let every gradient through; in place.

    A filter takes the mean of what it sees, maximum pools become average pools, activations and norms change nothing: what has
    no gradient then has no connection. float64, since the far ends of a deep network's field count for 1e-60.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, ceil_mode=child.ceil_mode)
                setattr(module, name, pool)
            elif isinstance(child, nn.LocalResponseNorm) or type(child).__module__.endswith("activation"):
                setattr(module, name, nn.Identity())
    for parameter in network.parameters():
        nn.init.constant_(parameter, 1 / max(1, parameter[0].numel()) if parameter.dim() > 1 else 0.25)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
            if module.affine:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
    return network.double().eval()


@pytest.fixture
def measure_reach() -> MeasureReach:
    """Which pixels have a gradient: for the module at a path, by place in its map, bool (height, width)."""

    def measure(network: nn.Module, path: str, dims: Sequence[int], places: Sequence[Place]) -> dict[Place, npt.NDArray[np.bool_]]:
        maps: list[Tensor] = []
        module = network.get_submodule(path)
        handle = module.register_forward_hook(lambda module, inputs, result: maps.append(result))
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand((1, *dims), generator=generator, dtype=torch.float64, requires_grad=True)
        network(pixels)
        handle.remove()
        found = {}
        for row, column in places:
            (gradient,) = torch.autograd.grad(maps[-1][0, :, row, column].sum(), pixels, retain_graph=True)
            found[row, column] = (gradient[0] != 0).any(dim=0).numpy()
        return found

    return measure


@pytest.fixture
def transparent() -> Callable[[nn.Module], nn.Module]:
    return make_transparent
