from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training.networks import build_network
from convoy.training.transfer.blocks import Blocks, find_blocks

# by torchvision's name: how many blocks, the module that the first begins with, the layers that give logits
FAMILIES = {
    "alexnet": (8, "features.0", ["classifier.6"]),  # the paper: 5 convolutional + 3 fully connected layers
    "convnext_tiny": (1 + 3 + 3 + 9 + 3 + 3 + 1, "features.0", ["classifier.2"]),  # stem, blocks, 3 reductions, head
    "densenet121": (1 + 6 + 12 + 24 + 16 + 3 + 1, "features.conv0", ["classifier"]),  # and 3 transitions
    "efficientnet_b0": (1 + 16 + 1 + 1, "features.0", ["classifier.1"]),  # 16 MBConv between two convolutions
    "efficientnet_v2_s": (1 + 40 + 1 + 1, "features.0", ["classifier.1"]),
    "googlenet": (3 + 9 + 1, "conv1", ["fc", "aux1.fc2", "aux2.fc2"]),  # 9 inception modules
    "inception_v3": (5 + 11 + 1, "Conv2d_1a_3x3", ["fc", "AuxLogits.fc"]),
    "maxvit_t": (2 + 11 * 3 + 1 + 1, "stem.0", ["classifier.5"]),  # 11 layers of MBConv, window and grid attention
    "mnasnet0_5": (3 + 16 + 1 + 1, "layers.0", ["classifier.1"]),
    "mobilenet_v2": (1 + 17 + 1 + 1, "features.0", ["classifier.1"]),
    "mobilenet_v3_small": (1 + 11 + 1 + 2, "features.0", ["classifier.3"]),
    "regnet_y_400mf": (1 + 16 + 1, "stem", ["fc"]),
    "resnet18": (1 + 8 + 1, "conv1", ["fc"]),
    "resnet50": (1 + 16 + 1, "conv1", ["fc"]),
    "resnext50_32x4d": (1 + 16 + 1, "conv1", ["fc"]),
    "shufflenet_v2_x0_5": (1 + 16 + 1 + 1, "conv1", ["fc"]),
    "squeezenet1_1": (1 + 8 + 1, "features.0", ["classifier.1"]),
    "swin_t": (1 + 12 + 3 + 1, "features.0", ["head"]),  # 12 transformer blocks, 3 mergings
    "swin_v2_t": (1 + 12 + 3 + 1, "features.0", ["head"]),
    "vgg11": (11, "features.0", ["classifier.6"]),  # the paper: 11 weight layers
    "vgg16_bn": (16, "features.0", ["classifier.6"]),
    "vit_b_32": (1 + 12 + 1, "conv_proj", ["heads.head"]),
    "wide_resnet50_2": (1 + 16 + 1, "conv1", ["fc"]),
}


def build(name: str) -> nn.Module:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    # without numbers: milliseconds; a regnet computes its widths with tensors and needs them
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network: nn.Module = get_model(name, num_classes=7, **options)
    return network


def check(blocks: Blocks, network: nn.Module) -> None:
    covered = [name for block in blocks.row for name in block.parameters]
    assert sorted(covered) == sorted(name for name, _ in network.named_parameters())
    assert all(block.parameters for block in blocks.row)
    assert all(name.startswith(blocks.head.modules) for name in blocks.outputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_is_a_row_of_the_papers_blocks(name: str) -> None:
    network = build(name)
    blocks = find_blocks(network)
    n_blocks, first, outputs = FAMILIES[name]
    assert len(blocks.row) == n_blocks
    assert blocks.row[0].name == first
    assert list(blocks.outputs) == outputs
    check(blocks, network)


def test_no_family_of_torchvision_is_left_out() -> None:
    def family(name: str) -> str:
        stems = ("densenet", "efficientnet_v2", "swin_v2", "wide_resnet", "resnext", "resnet", "vgg", "vit", "mobilenet_v3")
        return next((stem for stem in stems if name.startswith(stem)), name.rstrip("0123456789").split("_")[0].rstrip("0123456789"))

    assert {family(name) for name in FAMILIES} == {family(name) for name in list_models(module=torchvision.models)}


def test_batch_norm_belongs_to_the_convolution_before_it_and_dropout_to_the_layer_behind_it() -> None:
    network = build("vgg11_bn")
    blocks = {block.name: block for block in find_blocks(network).row}
    assert blocks["features.0"].modules[:2] == ("features.0", "features.1")
    assert blocks["features.0"].parameters[2:] == ("features.1.weight", "features.1.bias")
    assert blocks["classifier.6"].modules == ("classifier.6", "classifier.5")
    assert isinstance(network.get_submodule("classifier.5"), nn.Dropout)


def test_tokens_and_positions_learn_with_what_they_are_put_into() -> None:
    blocks = {block.name: block for block in find_blocks(build("vit_b_32")).row}
    assert "class_token" in blocks["conv_proj"].parameters
    assert "encoder.pos_embedding" in blocks["encoder.layers.encoder_layer_0"].parameters
    assert "encoder.ln.weight" in blocks["encoder.layers.encoder_layer_11"].parameters


@pytest.mark.parametrize(
    ("name", "n_blocks", "outputs"),
    [
        ("linear", 1, ["layers.output"]),
        ("lenet300-conv-pool2", 4, ["layers.output"]),
        ("lenet5", 5, ["output"]),
        ("lenet5-1998", 4, ["output"]),  # radial basis functions on fixed bitmaps: F6 learns with them
        ("alexnet", 8, ["classifier.fc8"]),
        ("vgg-e", 19, ["classifier.6"]),
        ("googlenet", 3 + 9 + 1, ["output", "auxiliary1.output", "auxiliary2.output"]),
        ("plain34", 1 + 16 + 1, ["fc"]),
        ("resnet152", 1 + 50 + 1, ["fc"]),
        ("cifar-resnet56", 1 + 27 + 1, ["linear"]),
    ],
)
def test_convoys_own_networks_are_rows_of_their_layers_or_blocks(name: str, n_blocks: int, outputs: list[str]) -> None:
    is_digit = name.startswith("le") or name == "linear"
    image = ImageSpec(height_px=28, width_px=28, channels=1) if is_digit else ImageSpec(height_px=224, width_px=224, channels=3)
    with torch.device("meta"):
        network = build_network(name, image=image, n_classes=10)
    blocks = find_blocks(network, channels=image.channels)
    assert len(blocks.row) == n_blocks
    assert list(blocks.outputs) == outputs
    check(blocks, network)


class Backwards(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3)
        self.first = nn.Conv2d(3, 4, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.norm(self.first(pixels))).mean(dim=(2, 3)))
        return logits


def test_the_order_is_that_of_the_forward_pass_not_of_the_attributes() -> None:
    blocks = find_blocks(Backwards())
    assert [block.modules for block in blocks.row] == [("first", "norm"), ("second",), ("head",)]


def test_a_network_that_refuses_to_be_probed_is_taken_in_the_order_of_its_attributes() -> None:
    class Refuses(Backwards):
        def forward(self, pixels: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("only for training")
            return super().forward(pixels)

    assert [block.name for block in find_blocks(Refuses()).row] == ["head", "second", "first"]


def test_a_backbone_in_a_wrapper_is_taken_apart() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = build("resnet18")
            self.scale = nn.Parameter(torch.ones(1, device="meta"))
            self.classifier = nn.Linear(7, 3, device="meta")

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.scale * self.backbone(pixels))
            return logits

    network = Wrapped()
    blocks = find_blocks(network)
    assert len(blocks.row) == 11
    assert blocks.outputs == ("classifier",)
    check(blocks, network)


def test_looking_changes_neither_modes_nor_numbers_nor_what_is_drawn_next() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    find_blocks(network)
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_network_without_a_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a network with a convolution or a fully connected layer"):
        find_blocks(nn.Sequential(nn.Flatten(), nn.ReLU()))
