"""What the lecture says of convolution and receptive fields, checked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from convoy.training.anatomy import Anatomy, examine

IMAGE = ("11100", "01110", "00111", "00110", "01100")
FILTER = ("101", "010", "101")
MAP = ("434", "243", "234")
TOTALS_OF_28_PIXELS = [2, 2, 3, 3, 3, 3, *[4] * 16, 3, 3, 3, 3, 2, 2]


def matrix(rows: tuple[str, ...]) -> Tensor:
    return torch.tensor([[float(digit) for digit in row] for row in rows])[None, None]


def true_convolution(image: Tensor, kernel: Tensor) -> Tensor:
    """(k*f)(x, y) = sum over dx, dy of k(dx, dy) f(x - dx, y - dy), where the kernel lies within the image."""
    height, width = kernel.shape
    rows, columns = image.shape[0] - height + 1, image.shape[1] - width + 1
    result = torch.zeros(rows, columns)
    for x in range(rows):
        for y in range(columns):
            for dx in range(height):
                for dy in range(width):
                    result[x, y] += kernel[dx, dy] * image[x + height - 1 - dx, y + width - 1 - dy]
    return result


def two_stages(*, padding: int, pooled: bool = True) -> nn.Sequential:
    """The lecture's convolutional LeNet300 up to its second pool."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (channels, maps) in enumerate(((1, 6), (6, 16)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, maps, 5, padding=padding)
        if pooled:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def examine_digit(build: Callable[[], nn.Module], *, height_px: int = 28) -> Anatomy:
    return examine(build, channels=1, height_px=height_px, width_px=28)


def test_the_worked_convolution_gives_the_map_of_the_lecture() -> None:
    assert torch.equal(functional.conv2d(matrix(IMAGE), matrix(FILTER)), matrix(MAP))
    # the filter is the same flipped, so that the lecture's definition and a layer agree on it
    assert torch.equal(true_convolution(matrix(IMAGE)[0, 0], matrix(FILTER)[0, 0]), matrix(MAP)[0, 0])


def test_a_layer_correlates_where_a_true_convolution_flips_the_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    image, kernel = torch.rand((7, 6), generator=generator), torch.rand((3, 2), generator=generator)
    layer = functional.conv2d(image[None, None], kernel[None, None])[0, 0]
    assert not torch.allclose(layer, true_convolution(image, kernel))
    torch.testing.assert_close(layer, true_convolution(image, kernel.flip(0, 1)))


def test_a_convolution_is_equivariant_to_shifts() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 4, 5, padding=2)
    image = torch.zeros(1, 1, 28, 28)
    image[:, :, 8:18, 8:18] = torch.rand(10, 10)
    shifted = image.roll((3, -2), dims=(2, 3))
    maps = convolution(image) - convolution.bias[None, :, None, None]  # type: ignore[index]
    maps_of_shifted = convolution(shifted) - convolution.bias[None, :, None, None]  # type: ignore[index]
    torch.testing.assert_close(maps_of_shifted, maps.roll((3, -2), dims=(2, 3)))
    assert not torch.allclose(maps_of_shifted, maps)


@pytest.mark.parametrize(
    ("filter_px", "stride", "padding", "size"),
    [(5, 1, 0, 24), (5, 1, 2, 28), (3, 1, 0, 26), (3, 1, 1, 28), (5, 2, 2, 14), (3, 2, 1, 14)],
)
def test_narrow_convolutions_shrink_and_wide_ones_keep_the_size(filter_px: int, stride: int, padding: int, size: int) -> None:
    anatomy = examine_digit(lambda: nn.Conv2d(1, 2, filter_px, stride=stride, padding=padding))
    assert anatomy.layers[0].dims == (2, size, size)
    assert (28 - filter_px + 2 * padding) // stride + 1 == size


def test_a_convolution_is_a_fully_connected_layer_with_zeros_and_shared_weights() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 3, padding=1)
    height, width = 6, 5
    dense = torch.zeros(3, height, width, 2, height, width)
    for row in range(height):
        for column in range(width):
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if 0 <= row + dy < height and 0 <= column + dx < width:
                        dense[:, row, column, :, row + dy, column + dx] = convolution.weight[:, :, dy + 1, dx + 1]
    weights = dense.reshape(3 * height * width, 2 * height * width)
    assert convolution.bias is not None
    biases = convolution.bias.repeat_interleave(height * width)
    image = torch.rand(4, 2, height, width)
    torch.testing.assert_close(functional.linear(image.flatten(1), weights, biases), convolution(image).flatten(1))
    # most of the weights are zeros, and the rest are those of the filters over and over
    assert (weights != 0).float().mean() < 9 / (height * width)
    assert set(weights[weights != 0].tolist()) == set(convolution.weight.flatten().tolist())


def test_a_pool_widens_a_receptive_field_of_5x5_to_6x6() -> None:
    anatomy = examine_digit(lambda: two_stages(padding=2))
    sizes = [layer.field.size_px for layer in anatomy.layers if layer.field]
    assert sizes[:2] == [(5, 5), (6, 6)]


@pytest.mark.parametrize("padding", [0, 2])
def test_behind_two_convolutions_and_two_pools_a_feature_sees_16x16(padding: int) -> None:
    field = examine_digit(lambda: two_stages(padding=padding)).layers[-1].field
    assert field is not None
    assert (field.size_px, field.jump_px) == ((16, 16), (4, 4))


def test_pixels_at_the_border_reach_fewer_features() -> None:
    anatomy = examine_digit(lambda: two_stages(padding=2))
    reach = anatomy.reaches[-1]
    assert reach is not None
    features = reach.features_per_pixel()
    np.testing.assert_array_equal(features, np.outer(TOTALS_OF_28_PIXELS, TOTALS_OF_28_PIXELS))
    assert features[0, 0] == features.min() == 4
    assert features[14, 14] == features.max() == 16


def test_the_totals_of_a_row_of_28_pixels_are_those_of_the_lecture() -> None:
    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv1d(1, 1, 5, padding=2), nn.Conv1d(1, 1, 5, padding=2))

        def forward(self, pixels: Tensor) -> Tensor:
            x = functional.avg_pool1d(self.conv1(pixels), 2)
            result: Tensor = functional.avg_pool1d(self.conv2(x), 2)
            return result

    row = Row()
    for parameter in row.parameters():
        nn.init.ones_(parameter)
    pixels = torch.rand(1, 1, 28, requires_grad=True)
    features = row(pixels)[0, 0]
    assert features.shape == (7,)
    reached = torch.stack([torch.autograd.grad(feature, pixels, retain_graph=True)[0][0, 0] != 0 for feature in features])
    assert reached.sum(dim=0).tolist() == TOTALS_OF_28_PIXELS

    anatomy = examine_digit(
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 1, (1, 5), padding=(0, 2)), nn.MaxPool2d((1, 2)), nn.Conv2d(1, 1, (1, 5), padding=(0, 2))),
            nn.MaxPool2d((1, 2)),
        ),
        height_px=1,
    )
    reach = anatomy.reaches[-1]
    assert reach is not None
    assert reach.features_per_pixel()[0].tolist() == TOTALS_OF_28_PIXELS
    np.testing.assert_array_equal([reach.mask(0, place)[0] for place in range(7)], reached.numpy())


def test_a_stride_of_2_gives_the_shapes_of_a_pool() -> None:
    pooled = examine_digit(lambda: nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.MaxPool2d(2)))
    strided = examine_digit(lambda: nn.Sequential(nn.Conv2d(1, 6, 5, stride=2, padding=2)))
    assert pooled.layers[-1].dims == strided.layers[-1].dims == (6, 14, 14)
    assert pooled.parameters == strided.parameters
    assert pooled.macs == 4 * strided.macs
    pooled_field, strided_field = pooled.layers[-1].field, strided.layers[-1].field
    assert pooled_field is not None
    assert strided_field is not None
    assert (pooled_field.size_px, strided_field.size_px) == ((6, 6), (5, 5))
    assert pooled_field.jump_px == strided_field.jump_px == (2, 2)
