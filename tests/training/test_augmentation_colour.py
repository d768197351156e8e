from __future__ import annotations

import colorsys

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from convoy.training.data import Augment
from convoy.training.data.augmentation import Draws, colour
from convoy.training.recipes import Augmentation


def augment(amounts: Augmentation, images: Tensor, seed: int = 0) -> Tensor:
    return Augment(amounts, torch.Generator().manual_seed(seed))(images)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def recoloured(amounts: Augmentation, pixels: Tensor, brightness: float, saturation: float, hue: float) -> Tensor:
    drawn = Draws(colour=torch.tensor([[brightness, saturation, hue]]).repeat(len(pixels), 1))
    return colour.recolour(pixels, amounts, drawn)


@pytest.mark.parametrize("drawn", [-1.0, -0.3, 0.0, 0.5, 1.0])
def test_each_change_is_torchvisions(drawn: float) -> None:
    pixels = noise(4, 3, 9, 9)
    amounts = Augmentation(brightness_fraction=0.4, saturation_fraction=0.4, hue_fraction=0.4)
    for actual, expected in (
        (recoloured(amounts, pixels, drawn, 0, 0), vision.adjust_brightness(pixels, 1 + 0.4 * drawn)),
        (recoloured(amounts, pixels, 0, drawn, 0), vision.adjust_saturation(pixels, 1 + 0.4 * drawn)),
        (recoloured(amounts, pixels, 0, 0, drawn), vision.adjust_hue(pixels, 0.4 * drawn)),
    ):
        assert (actual - expected.float()).abs().max() < 2.01  # it rounds in between


def test_a_turned_hue_is_the_textbooks() -> None:
    pixels = noise(1, 3, 12, 12).float()
    turned = recoloured(Augmentation(hue_fraction=0.5), pixels, 0, 0, 0.6)
    for before, after in zip(pixels[0].flatten(1).T.tolist(), turned[0].flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in before))
        expected = colorsys.hsv_to_rgb((hue + 0.3) % 1, saturation, value)
        assert after == pytest.approx([255 * channel for channel in expected], abs=1e-3)


def test_half_a_circle_twice_is_the_whole() -> None:
    pixels = noise(4, 3, 9, 9).float()
    amounts = Augmentation(hue_fraction=0.5)
    once = recoloured(amounts, pixels, 0, 0, 1)
    assert (once - pixels).abs().mean() > 20
    assert torch.allclose(recoloured(amounts, once, 0, 0, 1), pixels, atol=1e-3)


def test_grey_has_no_colour_to_change() -> None:
    amounts = Augmentation(saturation_fraction=1, hue_fraction=0.5)
    grey = noise(8, 9, 9, 1)
    assert torch.equal(augment(amounts, grey), grey)
    assert torch.equal(augment(amounts, grey.expand(-1, -1, -1, 3)), grey.expand(-1, -1, -1, 3))
    brighter = augment(Augmentation(brightness_fraction=0.5), grey)
    assert not torch.equal(brighter, grey)


def test_brightness_multiplies_by_what_is_asked_image_by_image() -> None:
    images = torch.full((2000, 2, 2, 1), 100, dtype=torch.uint8)
    factor = augment(Augmentation(brightness_fraction=0.5), images)[:, 0, 0, 0].float() / 100
    assert factor.min() >= 0.5
    assert factor.max() <= 1.5
    assert factor.mean().item() == pytest.approx(1, abs=0.03)
    assert factor.std().item() == pytest.approx(0.5 / 3**0.5, abs=0.02)


def test_values_stay_in_range() -> None:
    amounts = Augmentation(brightness_fraction=0.99, saturation_fraction=1, hue_fraction=0.5, contrast_fraction=0.4)
    pixels = noise(64, 3, 8, 8)
    draws = Augment(amounts, torch.Generator().manual_seed(0)).draw(64, height_px=8, width_px=8)
    changed = colour.recolour(pixels, amounts, draws)
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_nothing_asked_changes_nothing() -> None:
    images = noise(8, 9, 9, 3)
    barely = Augmentation(brightness_fraction=1e-9, saturation_fraction=1e-9, hue_fraction=1e-9)
    assert torch.equal(augment(barely, images), images)
