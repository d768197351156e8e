from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.training.anatomy import Anatomy, examine
from convoy.training.networks import LeNet5


def torchvision_network(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of weights that would be drawn differently
        return torchvision.models.get_model(name, weights=None)  # type: ignore[no-any-return]


def examine_photo(name: str, side: int = 224) -> Anatomy:
    return examine(lambda: torchvision_network(name), channels=3, height_px=side, width_px=side)


def count_by_hooks(network: nn.Module, pixels: Tensor) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes by path, and multiply-accumulates by the rules for convolutional and fully connected layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    macs = 0

    def note(path: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
            nonlocal macs
            shapes[path] = tuple(result.shape[1:])
            if isinstance(module, nn.Conv2d):
                filter_size = module.kernel_size[0] * module.kernel_size[1]
                macs += result[0].numel() * filter_size * module.in_channels // module.groups
            if isinstance(module, nn.Linear):
                macs += module.in_features * module.out_features

        return hook

    for path, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(note(path))  # type: ignore[arg-type]
    network.eval()(pixels)
    return shapes, macs


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "densenet121", "shufflenet_v2_x0_5", "vgg11_bn"])
def test_shapes_and_costs_are_those_of_the_network_as_it_runs(name: str) -> None:
    anatomy = examine_photo(name, side=96)
    network = torchvision_network(name).to("meta")
    shapes, macs = count_by_hooks(network, torch.zeros(1, 3, 96, 96, device="meta"))
    assert {layer.name: layer.dims for layer in anatomy.layers if not layer.is_operation} == shapes
    assert anatomy.macs == macs
    assert anatomy.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_lenet5_is_counted_as_by_hand() -> None:
    anatomy = examine(LeNet5, channels=1, height_px=28, width_px=28)
    counted = {layer.name: (layer.kind, layer.formula, layer.macs) for layer in anatomy.layers if layer.macs}
    assert counted == {
        "c1": ("Conv-6 5x5 pad 2", "6 (5*5*1 + 1) = 156", 28 * 28 * 6 * 25),
        "c3": ("Conv-16 5x5", "16 (5*5*6 + 1) = 2,416", 10 * 10 * 16 * 25 * 6),
        "c5": ("FC-120", "120 (400 + 1) = 48,120", 48_000),
        "f6": ("FC-84", "84 (120 + 1) = 10,164", 10_080),
        "output": ("FC-10", "10 (84 + 1) = 850", 840),
    }
    assert anatomy.parameters == 61_706


@pytest.mark.parametrize(
    ("module", "formula"),
    [
        (nn.Conv2d(4, 8, (3, 5), bias=False), "8 (3*5*4) = 480"),
        (nn.Conv2d(4, 8, 3, groups=2), "8 (3*3*2 + 1) = 152"),
        (nn.BatchNorm2d(4), "2*4 = 8"),
        (nn.PReLU(), "1"),
        (nn.ReLU(), None),
    ],
)
def test_formulas_give_the_number_of_parameters(module: nn.Module, formula: str | None) -> None:
    layer = examine(lambda: module, channels=4, height_px=8, width_px=8).layers[0]
    assert layer.formula == formula
    assert layer.parameters == sum(parameter.numel() for parameter in module.parameters())


def test_heads_that_work_in_training_only_count_as_such() -> None:
    anatomy = examine_photo("googlenet")
    network = torchvision_network("googlenet")
    heads = sum(p.numel() for name, p in network.named_parameters() if name.startswith("aux"))
    assert anatomy.training_only_parameters == heads > 0
    assert not any(layer.name.startswith("aux") for layer in anatomy.layers)


def test_weights_that_are_used_without_their_layer_are_counted() -> None:
    # attention multiplies by the weights of its last layer, which is never called
    anatomy = examine_photo("vit_b_16")
    assert anatomy.training_only_parameters == 0
    assert anatomy.parameters == 86_567_656


def test_a_layer_that_runs_twice_is_counted_once_and_costs_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, pixels: Tensor) -> Tensor:
            result: Tensor = self.layer(self.layer(pixels))
            return result

    anatomy = examine(Twice, channels=1, height_px=8, width_px=8)
    assert [layer.parameters for layer in anatomy.layers] == [10, 0]
    assert anatomy.macs == 2 * 9 * 64
    field = anatomy.layers[-1].field
    assert field is not None
    assert field.size_px == (5, 5)


def test_large_networks_hold_no_memory_and_leave_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    anatomy = examine_photo("vgg11")
    examine(LeNet5, channels=1, height_px=28, width_px=28)
    assert torch.equal(torch.rand(1), expected)
    assert {parameter.device.type for parameter in anatomy.network.parameters()} == {"meta"}


def test_a_network_that_reads_values_while_it_is_built_is_built_for_real() -> None:
    anatomy = examine_photo("regnet_y_400mf")
    assert anatomy.parameters == 4_344_144


def test_images_that_a_network_does_not_take_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected a network that takes images of 8x8x3; it failed:.*--image-size"):
        examine_photo("alexnet", side=8)


def test_features_behind_a_flattened_map_see_all_that_the_map_sees() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, stride=4), nn.Flatten(), nn.Linear(2 * 7 * 7, 5))
    anatomy = examine(lambda: network, channels=1, height_px=28, width_px=28)
    field = anatomy.layers[-1].field
    assert field is not None
    assert (field.is_map, field.size_px, field.jump_px) == (False, (27, 27), None)
    assert field.least_pixels_share == pytest.approx((7 * 3) ** 2 / 28**2)
