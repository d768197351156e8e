from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training.networks import LeNet5, build_network


def convolution(maps: int, filter_px: int, channels: int) -> int:
    return maps * (filter_px**2 * channels + 1)


def fully_connected(units: int, inputs: int) -> int:
    return units * (inputs + 1)


def test_its_parameters_are_those_of_the_formulas() -> None:
    by_layer = {
        "c1": convolution(6, 5, 1),
        "c3": convolution(16, 5, 6),
        "c5": fully_connected(120, 16 * 5 * 5),
        "f6": fully_connected(84, 120),
        "output": fully_connected(10, 84),
    }
    network = LeNet5()
    built = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    assert {name: n for name, n in built.items() if n} == by_layer
    assert sum(p.numel() for p in network.parameters()) == sum(by_layer.values()) == 61_706


def test_its_layers_have_the_shapes_of_the_lecture() -> None:
    network = LeNet5()
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append(tuple(output.shape[1:]))

    for layer in (network.c1, network.s2, network.c3, network.s4, network.c5, network.f6, network.output):
        layer.register_forward_hook(note)
    network(torch.zeros(2, 1, 28, 28))
    assert shapes == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120,), (84,), (10,)]


def test_it_has_as_many_outputs_as_there_are_classes() -> None:
    network = build_network("lenet5", image=ImageSpec(height_px=28, width_px=28, channels=1), n_classes=3)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 3)


def test_it_takes_32x32_images_as_they_are_and_photos_too() -> None:
    network = build_network("lenet5", image=ImageSpec(height_px=32, width_px=32, channels=3), n_classes=10)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_images_of_other_sizes_are_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="takes images of 28x28 or 32x32 pixels; the data has 28x20: --set image_size_px=28"):
        build_network("lenet5", image=ImageSpec(height_px=28, width_px=20, channels=1), n_classes=10)
