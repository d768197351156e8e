from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from convoy.training.data import Augment, Dataset
from convoy.training.data.augmentation import flip_warning
from convoy.training.loop import Hardware
from convoy.training.networks.preprocessing import has_light_border
from convoy.training.recipes import Augmentation, get_recipe
from convoy.training.run import train

LENET5 = get_recipe("lenet5").augmentation


def augment(amounts: Augmentation, images: Tensor, seed: int = 0) -> Tensor:
    return Augment(amounts, torch.Generator().manual_seed(seed))(images)


EVERYTHING = Augmentation(
    shift_px=2,
    rotation_deg=10,
    elastic_px=1.4,
    crop_px=3,
    crop_area_fraction=0.5,
    flip_probability=0.5,
    brightness_fraction=0.3,
    saturation_fraction=0.3,
    hue_fraction=0.2,
    contrast_fraction=0.2,
    randaugment_operations=2,
)


@pytest.fixture
def images(digits: Dataset) -> Tensor:
    return torch.from_numpy(digits.train.images[:32])


def test_it_is_drawn_anew_each_time_and_repeats_with_the_seed(images: Tensor) -> None:
    generator = torch.Generator().manual_seed(3)
    distort = Augment(LENET5, generator)
    first, second = distort(images), distort(images)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert not torch.equal(first, second)
    generator.manual_seed(3)
    assert torch.equal(distort(images), first)


def test_each_image_is_distorted_differently(images: Tensor) -> None:
    same = images[:1].expand(8, -1, -1, -1)
    distorted = augment(LENET5, same)
    assert len({image.numpy().tobytes() for image in distorted}) == 8


def test_it_leaves_its_input_alone(images: Tensor) -> None:
    before = images.clone()
    augment(LENET5, images)
    assert torch.equal(images, before)


def test_zero_amounts_change_nothing(images: Tensor) -> None:
    assert Augmentation().is_off
    assert augment(Augmentation(), images) is images
    barely = Augmentation(rotation_deg=1e-9)
    assert torch.equal(augment(barely, images), images)


@pytest.mark.parametrize("background", [0, 90, 255])
def test_what_moves_in_is_the_background(background: int) -> None:
    image = torch.full((16, 20, 30, 3), background, dtype=torch.uint8)
    image[:, 8:12, 10:20] = 128
    moved = augment(Augmentation(shift_px=6, rotation_deg=30, scale_fraction=0.5, shear_deg=20), image)
    corners = moved[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == background).all()


def test_a_shift_stays_within_its_bound_and_reaches_all_sides() -> None:
    image = torch.zeros((200, 21, 21, 1), dtype=torch.uint8)
    image[:, 10, 10] = 255
    moved = augment(Augmentation(shift_px=3), image).float()[..., 0]
    places = torch.arange(21.0) - 10
    mass = moved.sum(dim=(1, 2))
    y, x = (moved.sum(dim=2) @ places) / mass, (moved.sum(dim=1) @ places) / mass
    for offset in (x, y):
        assert offset.abs().max() <= 3.02
        assert offset.min() < -2.5
        assert offset.max() > 2.5


@pytest.mark.parametrize(("height", "width"), [(41, 41), (31, 61)])
def test_a_rotation_keeps_lengths_in_pixels_whatever_the_aspect(height: int, width: int) -> None:
    image = torch.zeros((64, height, width, 1), dtype=torch.uint8)
    image[:, height // 2 - 12 : height // 2 + 13, width // 2 - 1 : width // 2 + 2] = 255  # an upright bar, 25 px long
    turned = augment(Augmentation(rotation_deg=60), image).double()[..., 0]
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    mass = turned.sum(dim=(1, 2))
    xx = (turned * (x - width // 2) ** 2).sum(dim=(1, 2)) / mass
    yy = (turned * (y - height // 2) ** 2).sum(dim=(1, 2)) / mass
    assert xx.max() > 20  # some do turn
    spread = (xx + yy).sqrt()  # the radius of gyration does not depend on the angle
    assert spread.max() / spread.min() < 1.05


def test_scales_are_as_often_up_as_down() -> None:
    image = torch.zeros((400, 41, 41, 1), dtype=torch.uint8)
    image[:, 13:28, 13:28] = 255
    area = (augment(Augmentation(scale_fraction=0.3), image).float() / 255).sum(dim=(1, 2, 3)) / 15**2
    assert 1 / 1.3**2 - 0.02 <= area.min() < 0.75
    assert 1.35 < area.max() <= 1.3**2 + 0.02
    assert abs((area > 1).float().mean() - 0.5) < 0.08


def test_faded_images_keep_their_polarity_and_some_of_their_contrast(images: Tensor) -> None:
    both = torch.cat([images, 255 - images])
    faded = augment(Augmentation(contrast_fraction=0.49), both)
    dark = has_light_border(faded.permute(0, 3, 1, 2).float())
    assert dark.tolist() == [False] * len(images) + [True] * len(images)
    spread = faded.amax(dim=(1, 2, 3)).int() - faded.amin(dim=(1, 2, 3)).int()
    original = both.amax(dim=(1, 2, 3)).int() - both.amin(dim=(1, 2, 3)).int()
    assert (spread >= 0.5 * original).all()
    assert (spread <= original).all()
    assert spread.float().std() > 5


def test_a_seed_distorts_alike_on_every_machine() -> None:
    image = torch.zeros((2, 9, 9, 1), dtype=torch.uint8)
    image[:, 3:6, 3:6] = 200
    distorted = augment(Augmentation(shift_px=2, rotation_deg=20), image, seed=1)
    mass = distorted.numpy().astype(np.int64).sum(axis=(1, 2, 3))
    assert np.abs(mass - 9 * 200).max() < 90  # interpolation moves mass, it neither makes nor loses it


def test_what_there_was_at_first_draws_and_distorts_as_it_always_has(images: Tensor) -> None:
    # the first version of this module, written out for lenet5's five amounts
    g = torch.Generator().manual_seed(5)

    def expected(pixels: Tensor) -> Tensor:
        n, _, height, width = pixels.shape
        draws = [2 * torch.rand(n, generator=g) - 1 for _ in range(6)]
        angle, slant = draws[0] * math.radians(12), torch.tan(draws[1] * math.radians(8))
        scale_x, scale_y = torch.exp(draws[2] * math.log1p(0.25)), torch.exp(draws[3] * math.log1p(0.25))
        cos, sin, a = torch.cos(angle), torch.sin(angle), height / width
        row_x = torch.stack([cos * scale_x, (cos * slant - sin) * scale_y * a, draws[4] * 2.0 * (2 / width)], dim=1)
        row_y = torch.stack([sin * scale_x / a, (sin * slant + cos) * scale_y, draws[5] * 2.0 * (2 / height)], dim=1)
        grid = functional.affine_grid(torch.stack([row_x, row_y], dim=1), list(pixels.shape), align_corners=False)
        edges = torch.cat([pixels[:, :, 0, :], pixels[:, :, -1, :], pixels[:, :, :, 0], pixels[:, :, :, -1]], dim=2)
        background = edges.median(dim=2).values[:, :, None, None]
        moved = functional.grid_sample(pixels - background, grid, align_corners=False) + background
        gain = (1 - 0.3 * torch.rand(n, generator=g)).view(n, 1, 1, 1)
        level = (255 * torch.rand(n, generator=g)).view(n, 1, 1, 1)
        return (level + gain * (moved - level)).round().clamp(0, 255).to(torch.uint8)

    distort = Augment(LENET5, torch.Generator().manual_seed(5))
    wide = torch.randint(0, 256, (5, 20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for batch in (images, wide, images):
        assert torch.equal(distort(batch), expected(batch.permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_everything_at_once_keeps_shape_and_repeats_with_the_seed(channels: int) -> None:
    images = torch.randint(0, 256, (40, 24, 32, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    first, again, other = (augment(EVERYTHING, images, seed) for seed in (1, 1, 2))
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def test_a_part_of_a_batch_is_distorted_as_in_the_whole(images: Tensor) -> None:
    # what processes that share a batch rely on
    distort = Augment(EVERYTHING, torch.Generator().manual_seed(1))
    draws = distort.draw(32, height_px=28, width_px=28)
    whole = distort.apply(images, draws)
    for part in (slice(0, 16), slice(16, 32), torch.tensor([3, 30, 7])):
        assert torch.equal(distort.apply(images[part], draws[part]), whole[part])


def test_each_amount_draws_only_for_itself() -> None:
    # switching one on in a recipe must not switch others on
    one_each = {
        "shift_px": 1.0,
        "contrast_fraction": 0.1,
        "crop_px": 1,
        "crop_area_fraction": 0.5,
        "flip_probability": 0.5,
        "elastic_px": 1.0,
        "hue_fraction": 0.1,
        "randaugment_operations": 1,
    }
    for name, amount in one_each.items():
        draws = Augment(Augmentation.model_validate({name: amount}), torch.Generator()).draw(4, height_px=8, width_px=8)
        assert len([values for values in vars(draws).values() if values is not None]) == 1, name


def test_mixup_alone_leaves_images_to_the_loop(images: Tensor) -> None:
    assert not Augmentation(mixup_alpha=0.2).is_off
    assert augment(Augmentation(mixup_alpha=0.2), images) is images


@pytest.mark.parametrize("labels", [tuple("0123456789"), ("1", "7"), ("a", "b")])
def test_flips_of_characters_are_warned_of(labels: tuple[str, ...]) -> None:
    warning = flip_warning(Augmentation(flip_probability=0.5), labels)
    assert warning is not None
    assert "flip_probability is 0.5" in warning
    assert "Set flip_probability=0" in warning
    assert flip_warning(LENET5, labels) is None


def test_training_on_mirrored_digits_says_so(few_digits: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    for probability, expected in ((0.0, 0), (0.5, 1)):
        caplog.clear()
        recipe = get_recipe("lenet5", assignments=["epochs=1", "patience_epochs=1", f"flip_probability={probability}"])
        train(recipe, few_digits, hardware=Hardware(device="cpu"))
        assert [record.levelname for record in caplog.records if "flip_probability" in record.message] == ["WARNING"] * expected


def test_flips_of_things_are_not() -> None:
    assert flip_warning(Augmentation(flip_probability=0.5), ("ship", "truck")) is None
    assert flip_warning(Augmentation(flip_probability=0.5), ("a", "truck")) is None
