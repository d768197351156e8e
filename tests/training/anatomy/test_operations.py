from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from convoy.training.anatomy import Anatomy, examine

HEIGHT_PX, WIDTH_PX = 14, 11


class Network(nn.Module):
    """Two convolutions around an operation; what the last gives is a map."""

    def __init__(self, operation: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 4, (1, 7), padding=(0, 3))
        self.tall = nn.Conv2d(4, 4, (7, 1), padding=(3, 0))
        self.dilated = nn.Conv2d(4, 4, 3, dilation=3, padding=3)
        self.sparse = nn.Conv2d(4, 4, 1, stride=2)
        self.halving = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.mixing = nn.Linear(4, 4)
        self.last = nn.LazyConv2d(3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.first(pixels)
        result: Tensor = self.last(self.operation(self, x))
        return result


def shuffle(x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    return x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)


OPERATIONS: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "nothing": lambda net, x: x,
    "the cross of a wide and a tall filter": lambda net, x: net.wide(x) + net.tall(x),
    "the same side by side": lambda net, x: torch.cat([net.wide(x), net.tall(x)], dim=1),
    "a filter with holes": lambda net, x: net.dilated(x),
    "a filter beside one with holes": lambda net, x: net.dilated(x) + x,
    "every second place": lambda net, x: net.sparse(x),
    "a shortcut that is sliced and padded with zeros": lambda net, x: (
        net.halving(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    ),
    "a shortcut that is pooled and beside zeros": lambda net, x: (
        net.halving(x)[:, :, :, :5] + torch.cat([functional.avg_pool2d(x, 2), torch.zeros_like(functional.avg_pool2d(x, 2))], dim=1)
    ),
    "padding and cutting": lambda net, x: functional.pad(x, (3, -2, 0, 1)),
    "reflection": lambda net, x: functional.pad(x, (2, 3, 1, 2), mode="reflect"),
    "repetition of the border": lambda net, x: functional.pad(x, (2, 0, 1, 2), mode="replicate"),
    "a pool whose windows overlap": lambda net, x: functional.avg_pool2d(x, 3, stride=2, padding=1),
    "a pool that hangs over": lambda net, x: functional.avg_pool2d(x, 3, stride=3, ceil_mode=True),
    "an adaptive pool that divides evenly": lambda net, x: functional.adaptive_avg_pool2d(x, (7, 11)),
    "one that does not": lambda net, x: functional.adaptive_avg_pool2d(x, (5, 4)),
    "one that enlarges": lambda net, x: functional.adaptive_avg_pool2d(x, (17, 13)),
    "squeeze and excitation": lambda net, x: x * functional.adaptive_avg_pool2d(x, 1).sigmoid(),
    "a mean over rows": lambda net, x: x + x.mean(dim=2, keepdim=True),
    "a mean over rows that are put back": lambda net, x: x + x.mean(dim=-2).unsqueeze(2),
    "a shuffle of channels": lambda net, x: shuffle(x),
    "channels last": lambda net, x: net.mixing(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "rows and columns exchanged and back": lambda net, x: net.wide(x.transpose(2, 3)).transpose(2, 3),
    "one position that is enlarged": lambda net, x: functional.adaptive_avg_pool2d(functional.adaptive_avg_pool2d(x, 1), 3),
    "halves of the channels": lambda net, x: torch.cat([net.wide(x).chunk(2, dim=1)[0], x.split(1, dim=1)[2]], dim=1),
    "one channel": lambda net, x: x.select(1, 2).unsqueeze(1),
    "one row": lambda net, x: functional.pad(x[:, :, 4].unsqueeze(2), (0, 0, 0, 1)),
    "response normalisation": lambda net, x: functional.local_response_norm(x.abs(), 3),
    "instance normalisation": lambda net, x: functional.instance_norm(x),
    "group normalisation": lambda net, x: functional.group_norm(x, 2),
    "layer normalisation of channels": lambda net, x: functional.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2),
    "softmax over channels": lambda net, x: x.softmax(dim=1),
    "dropout and an activation": lambda net, x: functional.dropout(functional.elu(x), training=net.training),
    "an activation in place": lambda net, x: functional.leaky_relu_(x.clone()),
    "a copy": lambda net, x: torch.empty_like(x).copy_(x),
    "a global gate by a fully connected layer": lambda net, x: x * net.mixing(x.mean(dim=(2, 3)))[:, :, None, None],
}

UNKNOWN: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "roll": lambda net, x: x.roll(1, dims=2),
    "transposed convolution": lambda net, x: functional.conv_transpose2d(x, torch.ones(4, 4, 2, 2, device=x.device)),
    "interpolation": lambda net, x: functional.interpolate(x, scale_factor=2),
    "a map that is flattened and cut up otherwise": lambda net, x: x.flatten(2).unflatten(2, (WIDTH_PX, HEIGHT_PX)),
    "half of a map written into another": lambda net, x: write_half(x),
    "rows beside rows": lambda net, x: torch.cat([x, x], dim=2),
}


def write_half(x: Tensor) -> Tensor:
    buffer = torch.zeros_like(x)
    buffer[:, :, :5] = x[:, :, 5:10]
    return buffer


def build(operation: Callable[[Network, Tensor], Tensor]) -> Network:
    torch.manual_seed(0)
    network = Network(operation)
    network(torch.zeros(1, 2, HEIGHT_PX, WIDTH_PX))  # the last convolution learns how many channels it has
    return network.eval()


def examined(operation: Callable[[Network, Tensor], Tensor]) -> Anatomy:
    return examine(lambda: build(operation), channels=2, height_px=HEIGHT_PX, width_px=WIDTH_PX)


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_agree_at_every_place(name: str, measure_reach: Any) -> None:
    anatomy = examined(OPERATIONS[name])
    reach, layer = anatomy.reaches[-1], anatomy.layers[-1]
    assert reach is not None, layer.not_followed
    assert reach.is_exact
    rows, columns = layer.dims[1:]
    assert (rows, columns) == (reach.n_positions(0), reach.n_positions(1))
    places = [(row, column) for row in range(rows) for column in range(columns)]
    # weights are drawn at random: that a gradient vanishes by chance does not happen
    measured = measure_reach(build(OPERATIONS[name]).double(), "last", (2, HEIGHT_PX, WIDTH_PX), places)
    for place, mask in measured.items():
        np.testing.assert_array_equal(reach.mask(*place), mask, err_msg=str(place))
    pixels = np.array([[measured[row, column].sum() for column in range(columns)] for row in range(rows)])
    np.testing.assert_array_equal(reach.pixels_per_feature(), pixels)
    np.testing.assert_array_equal(reach.features_per_pixel(), np.sum([*measured.values()], axis=0))


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_rule_is_not_guessed(name: str) -> None:
    last = examined(UNKNOWN[name]).layers[-1]
    assert last.field is None
    assert last.not_followed


def test_the_field_without_a_border_is_the_hull_of_what_reaches_the_middle() -> None:
    for name in ("nothing", "the cross of a wide and a tall filter", "a filter with holes", "every second place"):
        anatomy = examined(OPERATIONS[name])
        reach, field = anatomy.reaches[-1], anatomy.layers[-1].field
        assert reach is not None
        assert field is not None
        assert field.start_px is not None
        assert field.jump_px is not None
        row, column = (n // 2 for n in anatomy.layers[-1].dims[1:])
        ys, xs = np.nonzero(reach.mask(row, column))
        assert (ys.max() - ys.min() + 1, xs.max() - xs.min() + 1) == field.size_px
        assert (ys.min(), xs.min()) == (
            field.start_px[0] + row * field.jump_px[0],
            field.start_px[1] + column * field.jump_px[1],
        )
        assert field.centre_px == (
            field.start_px[0] + (field.size_px[0] - 1) / 2,
            field.start_px[1] + (field.size_px[1] - 1) / 2,
        )
