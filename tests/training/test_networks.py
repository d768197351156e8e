"""Every network of the lecture against the numbers of its paper: parameters, shapes, gradients, what evaluation answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training.networks import TrainingLogits, build_network
from convoy.training.networks.registry import NETWORKS
from convoy.training.recipes import Architecture

DIGIT = ImageSpec(height_px=28, width_px=28, channels=1)
SMALL = ImageSpec(height_px=32, width_px=32, channels=3)
PHOTO = ImageSpec(height_px=224, width_px=224, channels=3)

DIGIT_PARAMETERS = {
    "linear": 7_850,
    "lenet300-1": 300 * 785 + 10 * 301,
    "lenet300": 300 * 785 + 100 * 301 + 10 * 101,
    "lenet300-conv": 6 * 26 + 100 * (28 * 28 * 6 + 1) + 10 * 101,
    "lenet300-conv-pool": 6 * 26 + 100 * (14 * 14 * 6 + 1) + 10 * 101,
    "lenet300-conv-pool2": 6 * 26 + 16 * (25 * 6 + 1) + 100 * (7 * 7 * 16 + 1) + 10 * 101,
    "lenet1": 2_578,  # the paper's count
    "lenet5": 61_706,
    "lenet5-1998": 60_000,  # the paper's count
}
PHOTO_PARAMETERS = {
    "alexnet": 62_378_344,  # the lecture: 62.3 million
    "vgg-a": 132_863_336,
    "vgg-a-lrn": 132_863_336,
    "vgg-b": 133_047_848,
    "vgg-c": 133_638_952,
    "vgg-d": 138_357_544,
    "vgg-e": 143_667_240,
    "googlenet": 13_378_280,  # 6,998,552 of them without the auxiliary heads
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "plain18": 11_689_512 - 173_824,  # three shortcuts of 1x1 convolutions with batch normalisation
    "plain34": 21_797_672 - 173_824,
}
CIFAR_PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}  # the paper: 0.27, 0.46, 0.66, 0.85 million


def on_meta(name: str, image: ImageSpec, n_classes: int) -> nn.Module:
    """A network without numbers: its shapes cost nothing, however large it is."""
    with torch.device("meta"):
        return build_network(name, image=image, n_classes=n_classes)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def pixels(image: ImageSpec, n: int = 2, device: str = "cpu") -> Tensor:
    torch.manual_seed(1)
    return torch.randn(n, image.channels, image.height_px, image.width_px, device=device)


@pytest.mark.parametrize(("name", "expected"), DIGIT_PARAMETERS.items())
def test_networks_on_digits_have_the_parameters_of_the_lecture_and_the_papers(name: str, expected: int) -> None:
    assert count(build_network(name, image=DIGIT, n_classes=10)) == expected


@pytest.mark.parametrize(("name", "expected"), PHOTO_PARAMETERS.items())
def test_networks_on_photos_have_the_parameters_of_the_papers(name: str, expected: int) -> None:
    assert count(on_meta(name, PHOTO, 1000)) == expected


@pytest.mark.parametrize("kind", ["resnet", "plain"])
@pytest.mark.parametrize(("depth", "expected"), CIFAR_PARAMETERS.items())
def test_networks_on_cifar_have_the_parameters_of_the_paper_and_so_have_their_plain_twins(
    kind: str, depth: int, expected: int
) -> None:
    network = build_network(f"cifar-{kind}{depth}", image=SMALL, n_classes=10)
    assert count(network) == expected
    assert sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in network.modules()) == depth


def test_all_networks_are_counted() -> None:
    cifar = {f"cifar-{kind}{depth}" for kind in ("resnet", "plain") for depth in CIFAR_PARAMETERS}
    assert set(NETWORKS) == {*DIGIT_PARAMETERS, *PHOTO_PARAMETERS, *cifar}


def test_the_conv_layers_of_alexnet_hold_six_percent_of_its_parameters() -> None:
    network = on_meta("alexnet", PHOTO, 1000)
    assert round(100 * count(network.get_submodule("features")) / count(network)) == 6


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        *(("alexnet", 8), ("vgg-a", 11), ("vgg-a-lrn", 11), ("vgg-b", 13), ("vgg-c", 16), ("vgg-d", 16), ("vgg-e", 19)),
        *(("resnet18", 18), ("resnet34", 34), ("resnet50", 50), ("resnet101", 101), ("resnet152", 152)),
        *(("plain18", 18), ("plain34", 34)),
    ],
)
def test_a_network_has_as_many_layers_with_weights_as_its_name_or_its_table_says(name: str, layers: int) -> None:
    counted = [
        module
        for path, module in on_meta(name, PHOTO, 1000).named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "downsample" not in path
    ]
    assert len(counted) == layers


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_have_one_column_a_class_and_every_parameter_learns(name: str) -> None:
    image = DIGIT if name in DIGIT_PARAMETERS else SMALL
    network = on_meta(name, image, 7) if name not in DIGIT_PARAMETERS else build_network(name, image=image, n_classes=7)
    answer = network.train()(pixels(image, device=next(network.parameters()).device.type))
    if isinstance(answer, TrainingLogits):
        total = answer.logits.sum() + sum(logits.sum() for logits in answer.auxiliary)
        shapes = [tuple(logits.shape) for logits in (answer.logits, *answer.auxiliary)]
    else:
        total, shapes = answer.sum(), [tuple(answer.shape)]
    assert set(shapes) == {(2, 7)}
    total.backward()
    assert [path for path, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["alexnet", "vgg-a", "vgg-c", "googlenet", "resnet18", "resnet50", "plain34"])
@pytest.mark.parametrize("size", [(224, 224), (65, 96), (48, 64)])
def test_networks_on_photos_take_images_of_other_sizes(name: str, size: tuple[int, int]) -> None:
    image = ImageSpec(height_px=size[0], width_px=size[1], channels=3)
    network = on_meta(name, image, 5).eval()
    assert network(pixels(image, device="meta")).shape == (2, 5)


@pytest.mark.parametrize("name", [*DIGIT_PARAMETERS, "alexnet", "googlenet", "resnet18", "cifar-resnet20"])
def test_gradients_reach_every_parameter_and_evaluation_answers_alike(name: str) -> None:
    torch.manual_seed(0)
    image = DIGIT if name in DIGIT_PARAMETERS else ImageSpec(height_px=16, width_px=16, channels=3)
    network = build_network(name, image=image, n_classes=4).train()
    batch = pixels(image, 4)
    answer = network(batch)
    logits = (answer.logits, *answer.auxiliary) if isinstance(answer, TrainingLogits) else (answer,)
    sum(nn.functional.cross_entropy(each, torch.arange(4)) for each in logits).backward()
    still = [path for path, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.abs().max() > 0]
    assert still == []
    network.eval()
    with torch.no_grad():
        first = network(batch)
        assert torch.equal(network(batch), first)
        assert torch.allclose(network(batch[:1]), first[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["alexnet", "vgg-d", "googlenet", "resnet50", "plain34", "cifar-resnet20", "cifar-plain20"])
def test_deep_networks_take_grey_images(name: str) -> None:
    network = on_meta(name, ImageSpec(height_px=32, width_px=32, channels=1), 10).eval()
    assert network(torch.zeros(2, 1, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "alexnet"])
def test_up_to_64_pixels_the_stem_is_a_3x3_convolution_of_stride_1(name: str) -> None:
    for size, kernel in ((64, (3, 3)), (65, (11, 11) if name == "alexnet" else (7, 7))):
        network = on_meta(name, ImageSpec(height_px=size, width_px=size, channels=3), 10)
        stem = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        assert stem.kernel_size == kernel
        assert (stem.stride == (1, 1)) is (size == 64)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vgg-a", 31, "vgg-a takes images of at least 32x32 pixels; the data has 31x31: --set image_size_px=32 enlarges them"),
        ("alexnet", 8, "alexnet takes images of at least 15x15 pixels"),
        ("lenet300-conv-pool2", 3, "at least 4x4 pixels"),
        ("lenet5-1998", 30, "takes images of 28x28 or 32x32 pixels; the data has 30x30"),
        ("lenet1", 64, "takes images of 28x28 or 32x32 pixels"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_what_to_do(name: str, size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_network(name, image=ImageSpec(height_px=size, width_px=size, channels=1), n_classes=10)


def test_the_smallest_images_that_are_taken_do_not_vanish() -> None:
    for name, least in (("alexnet", 15), ("vgg-e", 32), ("lenet300-conv-pool2", 4), ("googlenet", 8), ("resnet50", 1)):
        image = ImageSpec(height_px=least, width_px=least, channels=3)
        assert on_meta(name, image, 3).eval()(pixels(image, device="meta")).shape == (2, 3)


def test_an_unknown_network_comes_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="there is no network 'resnet19': did you mean 'resnet1"):
        build_network("resnet19", image=SMALL, n_classes=10)
    with pytest.raises(UsageError, match=r"there is no network '\?': known: linear, lenet300-1.*, and torchvision's"):
        build_network("?", image=SMALL, n_classes=10)


def test_the_auxiliary_heads_of_googlenet_answer_in_training_alone_and_count_three_tenths() -> None:
    network = on_meta("googlenet", SMALL, 3)
    answer = network.train()(pixels(SMALL, device="meta"))
    assert isinstance(answer, TrainingLogits)
    assert len(answer.auxiliary) == 2
    assert answer.weight == 0.3
    assert network.eval()(pixels(SMALL, device="meta")).shape == (2, 3)


def test_batch_norm_takes_the_place_of_response_norm_in_googlenet() -> None:
    with torch.device("meta"):
        plain = build_network("googlenet", image=SMALL, n_classes=3, architecture=Architecture(batch_norm="none"))
        normed = build_network("googlenet", image=SMALL, n_classes=3, architecture=Architecture(batch_norm="conv-bn-relu"))
    for network, response, batch in ((plain, 2, 0), (normed, 0, 59)):  # 57 convolutions and those of the two auxiliary heads
        assert sum(isinstance(layer, nn.LocalResponseNorm) for layer in network.modules()) == response
        assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == batch


def test_response_norm_is_the_formula_of_the_alexnet_paper() -> None:
    from convoy.training.networks.normalisation import ResponseNorm

    x = 30 * pixels(ImageSpec(height_px=2, width_px=2, channels=3), 1).repeat(1, 3, 1, 1)  # (1, 9, 2, 2), large enough to matter
    expected = torch.stack(
        [x[:, i] / (2 + 1e-4 * x[:, max(0, i - 2) : i + 3].square().sum(dim=1)) ** 0.75 for i in range(9)], dim=1
    )
    assert torch.allclose(ResponseNorm()(x), expected, rtol=1e-5)
    assert (x / 2**0.75 - expected).abs().max() > 0.1


def test_a_plain_network_is_its_residual_twin_without_what_goes_around() -> None:
    from convoy.training.networks.cifar_resnet import Block

    torch.manual_seed(0)
    residual, plain = Block(4, 8, plain=False).eval(), Block(4, 8, plain=True).eval()
    plain.load_state_dict(residual.state_dict())
    for block in (residual, plain):
        nn.init.zeros_(block.bn2.weight)  # the block itself gives 0, what is left goes around
    x = torch.rand(1, 4, 6, 6)
    around = torch.zeros(1, 8, 3, 3)
    around[:, 2:6] = x[:, :, ::2, ::2]  # every second pixel, between maps of zeros
    assert torch.equal(residual(x), around)
    assert torch.equal(plain(x), torch.zeros(1, 8, 3, 3))
