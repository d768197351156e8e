from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from convoy.training.data import Augment
from convoy.training.data.augmentation import randaugment
from convoy.training.data.augmentation.randaugment import OPERATIONS
from convoy.training.recipes import Augmentation

NAMES = list(OPERATIONS)


def augment(amounts: Augmentation, images: Tensor, seed: int = 0) -> Tensor:
    return Augment(amounts, torch.Generator().manual_seed(seed))(images)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 200, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def photos(n: int, channels: int = 3, height: int = 24, width: int = 24) -> Tensor:
    """uint8 (N, C, H, W), smooth as photos are, within a black border."""
    coarse = noise(n, channels, height // 4, width // 4).float()
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").round().to(torch.uint8)
    pixels[:, :, [0, -1]] = 0
    pixels[:, :, :, [0, -1]] = 0
    return pixels


COLOUR: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda pixels, _: pixels,
    "Brightness": lambda pixels, s: vision.adjust_brightness(pixels, 1 + 0.9 * s),
    "Color": lambda pixels, s: vision.adjust_saturation(pixels, 1 + 0.9 * s),
    "Contrast": lambda pixels, s: vision.adjust_contrast(pixels, 1 + 0.9 * s),
    "Sharpness": lambda pixels, s: vision.adjust_sharpness(pixels, 1 + 0.9 * s),
    "Posterize": lambda pixels, s: vision.posterize(pixels, 8 - round(4 * abs(s))),
    "Solarize": lambda pixels, s: vision.solarize(pixels, min(255.0, 256 * (1 - abs(s)))),
    "AutoContrast": lambda pixels, _: vision.autocontrast(pixels),
    "Equalize": lambda pixels, _: vision.equalize(pixels),
}
SHAPE = {
    "ShearX": {"shear": lambda s: [math_degrees(0.3 * s), 0.0]},
    "ShearY": {"shear": lambda s: [0.0, math_degrees(0.3 * s)]},
    "TranslateX": {"translate": lambda s: [150 / 331 * 24 * s, 0.0]},
    "TranslateY": {"translate": lambda s: [0.0, 150 / 331 * 24 * s]},
    "Rotate": {"angle": lambda s: 30 * s},
}


def math_degrees(slope: float) -> float:
    return torch.rad2deg(torch.atan(torch.tensor(slope))).item()


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.3, 1.0])
@pytest.mark.parametrize("name", COLOUR)
def test_an_operation_on_colours_is_torchvisions(name: str, strength: float) -> None:
    pixels = photos(5)
    actual = OPERATIONS[name](pixels, torch.full((5,), strength))
    expected = COLOUR[name](pixels, strength)
    assert (actual.int() - expected.int()).abs().max() <= 2  # it rounds down, and in between
    if name not in ("Identity", "Solarize"):  # at 0.3 no value here is above the threshold
        assert not torch.equal(actual, pixels)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("name", SHAPE)
def test_an_operation_on_shapes_is_torchvisions_one_way_or_the_other(name: str, strength: float) -> None:
    pixels = photos(5)
    both = [OPERATIONS[name](pixels, torch.full((5,), signed)).int() for signed in (strength, -strength)]
    ((field, value),) = SHAPE[name].items()
    arguments = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0], "center": [12.0, 12.0]}
    expected = []
    for signed in (strength, -strength):
        # as floats, where it does not move by whole pixels alone
        moved = vision.affine(
            pixels.float(), **{**arguments, field: value(signed)}, interpolation=vision.InterpolationMode.BILINEAR
        )
        expected.append(moved.round().int())
    for one, other in (both, both[::-1]):
        if (one - expected[0]).abs().max() <= 2:
            assert (other - expected[1]).abs().max() <= 2
            break
    else:
        pytest.fail(f"{name} moves as torchvision neither to one side nor to the other")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("AutoContrast", "Equalize")])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_operation_without_strength_changes_nothing(name: str, channels: int) -> None:
    pixels = torch.randint(0, 256, (6, channels, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(OPERATIONS[name](pixels, torch.zeros(6)), pixels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_operation_treats_each_image_by_itself(name: str, channels: int) -> None:
    pixels, strength = photos(6, channels), torch.linspace(-1, 1, 6)
    whole = OPERATIONS[name](pixels, strength)
    assert (whole.dtype, whole.shape) == (torch.uint8, pixels.shape)
    for i in range(6):
        assert torch.equal(OPERATIONS[name](pixels[i : i + 1], strength[i : i + 1])[0], whole[i])


def test_all_operations_and_both_signs_are_drawn_equally_often() -> None:
    drawn = randaugment.draw(Augmentation(randaugment_operations=3), 4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 3, 2)
    counts = torch.bincount(drawn[..., 0].flatten(), minlength=14)
    assert len(counts) == 14
    assert (counts - 12_000 / 14).abs().max() < 150  # five standard deviations
    assert set(drawn[..., 1].unique().tolist()) == {-1, 1}
    assert abs(drawn[..., 1].float().mean()) < 0.05


def test_each_image_gets_its_own_operations_in_their_order() -> None:
    distort = Augment(Augmentation(randaugment_operations=2, randaugment_magnitude=20), torch.Generator().manual_seed(0))
    pixels = photos(64)
    images = pixels.permute(0, 2, 3, 1)
    draws = distort.draw(64, height_px=24, width_px=24)
    assert draws.operations is not None
    actual = distort.apply(images, draws)
    for i in range(64):
        expected = pixels[i : i + 1]
        for which, sign in draws.operations[i].tolist():
            expected = OPERATIONS[NAMES[which]](expected, torch.tensor([sign * 20 / 30]))
        assert torch.equal(actual[i], expected[0].permute(1, 2, 0))


def test_more_magnitude_changes_more() -> None:
    images = photos(256).permute(0, 2, 3, 1)
    changes = [
        (augment(Augmentation(randaugment_operations=1, randaugment_magnitude=m), images).int() - images.int()).abs().float().mean()
        for m in (0, 9, 30)
    ]
    assert changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_images_are_no_exception(size: int) -> None:
    images = noise(56, size, size, 3)
    assert augment(Augmentation(randaugment_operations=2, randaugment_magnitude=30), images).shape == images.shape
