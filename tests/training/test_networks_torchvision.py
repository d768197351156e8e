"""torchvision's networks by name, and weights that others trained."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training.networks import build_network
from convoy.training.networks.torchvision_networks import torchvision_names
from convoy.training.recipes import Architecture

RGB = ImageSpec(height_px=64, width_px=64, channels=3)
GREY = ImageSpec(height_px=64, width_px=64, channels=1)
PHOTO = ImageSpec(height_px=224, width_px=224, channels=3)
WEIGHTS = Path(os.environ.get("CONVOY_DATA", "")) / "cifar10_resnet_weights"
CIFAR10 = Path(os.environ.get("CONVOY_DATA", "")) / "cifar10"

OF_EACH_FAMILY = [
    *("convnext_tiny", "densenet121", "efficientnet_b0", "inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32"),
    *("wide_resnet50_2", "torchvision-alexnet", "torchvision-googlenet", "maxvit_t"),
]


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_a_network_of_each_family_has_a_head_of_our_classes_and_takes_dropout(name: str) -> None:
    image = PHOTO if name in ("inception_v3", "maxvit_t") else RGB
    if name.startswith("regnet"):  # draws its widths with torch, which gives no numbers on meta
        network = build_network(name, image=image, n_classes=7, architecture=Architecture(dropout=0.3))
    else:
        with torch.device("meta"):
            network = build_network(name, image=image, n_classes=7, architecture=Architecture(dropout=0.3))
    device = next(network.parameters()).device
    shape = (2, 3, image.height_px, image.width_px)
    assert network.eval()(torch.zeros(shape, device=device)).shape == (2, 7)
    shares = {getattr(layer, "p", getattr(layer, "dropout", None)) for layer in network.modules()}
    assert 0.3 in shares


def test_without_a_choice_a_network_is_torchvisions_own() -> None:
    with torch.device("meta"):
        ours = build_network("torchvision-resnet18", image=RGB, n_classes=1000)
        assert repr(ours) == repr(models.resnet18())
        assert repr(build_network("resnet18", image=RGB, n_classes=1000)) != repr(ours)  # the small-image variant


def test_networks_of_the_lecture_take_torchvisions_weights_where_they_are_its_networks() -> None:
    for name, theirs in (
        ("resnet18", "resnet18"),
        ("resnet50", "resnet50"),
        ("vgg-a", "vgg11"),
        ("vgg-d", "vgg16"),
        ("vgg-e", "vgg19"),
    ):
        with torch.device("meta"):
            ours = build_network(name, image=PHOTO, n_classes=1000).state_dict()
            expected = models.get_model(theirs, weights=None).state_dict()
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in expected.items()}


def test_dropout_before_the_head_changes_no_name_of_a_weight() -> None:
    with torch.device("meta"):
        plain = build_network("shufflenet_v2_x0_5", image=RGB, n_classes=5).state_dict()
        dropped = build_network("shufflenet_v2_x0_5", image=RGB, n_classes=5, architecture=Architecture(dropout=0.4)).state_dict()
    assert list(plain) == list(dropped)


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "torchvision-alexnet"])
def test_on_grey_images_a_network_computes_what_it_computes_on_three_equal_channels(name: str) -> None:
    torch.manual_seed(0)
    rgb = build_network(name, image=RGB, n_classes=5).eval()
    torch.manual_seed(0)
    grey = build_network(name, image=GREY, n_classes=5).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = rgb(x.expand(-1, 3, -1, -1))
        assert expected.abs().max() > 0
        assert torch.allclose(grey(x), expected, rtol=1e-4, atol=1e-5)


# RegNets draw their widths with torch, which gives no numbers on meta; one of them is built above.
@pytest.mark.parametrize("name", [name for name in torchvision_names() if not name.startswith("regnet")])
def test_every_network_has_a_first_convolution_of_three_channels(name: str) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        network = models.get_model(name, weights=None, **options)
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert first.in_channels == 3
    assert first.groups == 1


def test_what_a_vision_transformer_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="vit_b_16 takes square images; the data has 64x96"):
        build_network("vit_b_16", image=ImageSpec(height_px=64, width_px=96, channels=3), n_classes=5)
    with pytest.raises(UsageError, match=r"vit_b_16 does not take images of 60x60: .*--set image_size_px=224"):
        build_network("vit_b_16", image=ImageSpec(height_px=60, width_px=60, channels=3), n_classes=5)
    with pytest.raises(UsageError, match="offers no choice of activation"):
        build_network("mobilenet_v2", image=RGB, n_classes=5, architecture=Architecture(activation="tanh"))


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs cifar10_resnet_weights under CONVOY_DATA")
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_published_weights_load_and_read_real_photos(depth: int) -> None:
    (path,) = WEIGHTS.glob(f"resnet{depth}-*.th")
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network = build_network(f"cifar-resnet{depth}", image=ImageSpec(height_px=32, width_px=32, channels=3), n_classes=10).eval()
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in weights.items()})
    images = np.asarray(Image.open(CIFAR10 / "cifar10_batch_0.png").convert("RGB")).reshape(1000, 32, 32, 3)[:100]
    labels = torch.from_numpy(np.load(CIFAR10 / "labels.npy")[:100].astype(np.int64))
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        top1 = (network(x).argmax(dim=1) == labels).double().mean()
    assert top1 >= 0.95  # these are training images; on unseen ones ResNet-20 has 91.5 %
