from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torchvision
from torch import nn

from convoy.contract.image import ImageSpec
from convoy.training.anatomy import Anatomy, examine
from convoy.training.networks import build_network
from convoy.training.networks.registry import NETWORKS

# as large as it takes for some fields to end inside the image; deep networks see all of it
TORCHVISION = {
    "resnet18": 96,
    "googlenet": 96,
    "vgg11_bn": 96,
    "densenet121": 64,
    "squeezenet1_0": 96,
    "shufflenet_v2_x0_5": 64,
    "mnasnet0_5": 96,
    "mobilenet_v3_small": 96,
}

DEEPER = {
    *("vgg-b", "vgg-d", "vgg-e", "resnet34", "resnet101", "resnet152", "plain34"),
    *(f"cifar-{kind}{depth}" for kind in ("resnet", "plain") for depth in (32, 44, 56)),
}
"""Networks of which a shallower one with the same blocks is checked."""


def torchvision_network(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of weights that would be drawn differently
        return torchvision.models.get_model(name, weights=None)  # type: ignore[no-any-return]


def image_of(name: str) -> ImageSpec:
    if name.startswith(("linear", "lenet")):
        return ImageSpec(height_px=28, width_px=28, channels=1)
    if name.startswith("cifar"):
        return ImageSpec(height_px=32, width_px=32, channels=3)
    return ImageSpec(height_px=96, width_px=96, channels=3)


def check_against_gradients(anatomy: Anatomy, network: nn.Module, measure_reach: Any) -> None:
    """Compare four maps of a network, first to last, at the corners and in the middle."""
    calls = [layer.name for layer in anatomy.layers if not layer.is_operation]
    maps = [
        (layer, reach)
        for layer, reach in zip(anatomy.layers, anatomy.reaches, strict=True)
        if layer.field and layer.field.is_map and not layer.is_minor and not layer.is_operation and calls.count(layer.name) == 1
    ]
    for index in sorted({round(i * (len(maps) - 1) / 3) for i in range(4)}):
        layer, reach = maps[index]
        assert reach is not None
        rows, columns = reach.n_positions(0), reach.n_positions(1)
        places = [(0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)]
        measured = measure_reach(network, layer.name, anatomy.image_dims, places)
        for place, mask in measured.items():
            np.testing.assert_array_equal(reach.mask(*place), mask, err_msg=f"{layer.name} at {place}")
            assert reach.pixels_per_feature()[place] == mask.sum()


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - DEEPER))
def test_gradients_reach_the_pixels_that_are_said_to_reach(name: str, measure_reach: Any, transparent: Callable[..., Any]) -> None:
    spec = image_of(name)

    def build() -> nn.Module:
        return build_network(name, image=spec, n_classes=10)

    anatomy = examine(build, channels=spec.channels, height_px=spec.height_px, width_px=spec.width_px)
    assert not any(layer.not_followed for layer in anatomy.layers)
    if anatomy.last_map is not None:
        check_against_gradients(anatomy, transparent(build()), measure_reach)


@pytest.mark.parametrize("name", TORCHVISION)
def test_so_they_do_in_the_networks_of_torchvision(name: str, measure_reach: Any, transparent: Callable[..., Any]) -> None:
    side = TORCHVISION[name]
    anatomy = examine(lambda: torchvision_network(name), channels=3, height_px=side, width_px=side)
    assert anatomy.last_map is not None
    check_against_gradients(anatomy, transparent(torchvision_network(name)), measure_reach)


@pytest.mark.parametrize(
    ("name", "size_px", "jump_px"),
    # published: Araujo, Norris, Sim 2019, Computing Receptive Fields of Convolutional Neural Networks (distill.pub), table 1
    [("alexnet", 195, 32), ("vgg16", 212, 32)],
)
def test_the_sizes_are_those_that_are_published(name: str, size_px: int, jump_px: int) -> None:
    anatomy = examine(lambda: torchvision_network(name), channels=3, height_px=224, width_px=224)
    pools = [layer for layer in anatomy.layers if layer.kind.startswith("max pool")]
    field = pools[-1].field
    assert field is not None
    assert (field.size_px, field.jump_px) == ((size_px, size_px), (jump_px, jump_px))


def test_where_a_network_cannot_be_followed_it_says_so() -> None:
    anatomy = examine(lambda: torchvision_network("vit_b_16"), channels=3, height_px=224, width_px=224)
    (patches,) = [layer for layer in anatomy.layers if layer.role == "convolution"]
    assert patches.field is not None
    assert patches.field.size_px == (16, 16)
    assert anatomy.layers[-1].field is None
    assert anatomy.layers[-1].not_followed is not None
    assert "no rule for" in anatomy.layers[-1].not_followed
    assert anatomy.last_map is None
